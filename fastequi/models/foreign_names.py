"""Networks of other packages by name, all freshly initialised; nothing is downloaded.

* `timm:NAME`: a model of timm; its `forward_features`.
* `torchvision:NAME`: a classifier of torchvision; its last map, or the tokens of its ViTs.
* `hf:FOLDER`: a folder with a config.json of transformers; the model's `last_hidden_state`.
* `package.module:function`: called without arguments, it returns a module whose output is a map
  [B, D, h, w] or tokens [B, N, D], the patches' row by row. Of tokens, two attributes of the module
  count: `num_prefix_tokens` before the patches (none: 0), and `has_class_token`, whether the first
  of them is a class token (none: it is).

timm, torchvision and transformers are optional.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastequi.functional import arguments
from fastequi.models.foreign import ForeignEncoder, Reading, dry_forward


def create(name: str, image_size: int, in_chans: int = 3) -> ForeignEncoder:
    """The encoder of a name (see the module), made for square images.

    Args:
        name: "timm:convnext_tiny", ...
        image_size: their side in pixels.
        in_chans: their channels; torchvision's networks are of three alone.

    Raises:
        ImportError: its package is not installed.
        ValueError: there is no such network, or it cannot be an encoder; says why.
    """
    kind, _, what = name.partition(":")
    make = _PACKAGES.get(kind)
    found = make(what, image_size, in_chans) if make is not None else _of_function(name)
    return ForeignEncoder(name, *found, image_size, in_chans)


def expect_importable(name: str) -> None:
    """Refuses a name whose package or function cannot be imported, before anything is made of it.

    Raises:
        ImportError: its package is not installed.
        ValueError: there is no such function or folder.
    """
    kind, _, what = name.partition(":")
    if kind not in _INSTALLED:
        _function(name)
        return
    if kind == "hf":
        _config_folder(what)
    _package(_INSTALLED[kind], name)


def imported(spec: str) -> Any:
    """What `package.module:name` names; also found from the current folder.

    Raises:
        Exception: whatever importing it raises; AttributeError if the module has no such name.
    """
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, os.getcwd())
    return getattr(import_module(module), name)


def _package(package: str, needed_by: str) -> Any:
    try:
        return import_module(package)
    except Exception as error:  # a broken installation raises more than ImportError
        why = f"{type(error).__name__}: {error}"
        raise ImportError(
            f"model.name: {needed_by} needs {package}: pip install {package} ({why})"
        ) from error


def _expect_known(package: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"model.name: {package} has no {name!r}{hint}")


@contextmanager
def _made(name: str, image_size: int) -> Iterator[None]:
    """Says of any error that a package raises which network could not be made."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(
            f"model.name: {name} cannot be made for data.image_size={image_size} ({what})"
        ) from error


def _of_timm(name: str, image_size: int, in_chans: int) -> tuple[nn.Module, Reading]:
    timm = _package("timm", f"timm:{name}")
    architecture = name.partition(".")[0]  # without the tag, which names weights
    _expect_known("timm", architecture, timm.list_models())
    channels = {} if in_chans == 3 else {"in_chans": in_chans}
    make = partial(timm.create_model, name, pretrained=False, num_classes=0, **channels)
    with _made(f"timm:{name}", image_size):
        if not timm.get_pretrained_cfg(architecture).fixed_input_size:
            network = make()
        else:
            try:
                network = make(img_size=image_size, dynamic_img_size=True)
            except TypeError:  # it takes no other sizes
                network = make(img_size=image_size)
    features = _timm_channels_last if getattr(network, "output_fmt", "") == "NHWC" else _timm
    prefix = getattr(network, "num_prefix_tokens", None) or 0
    classes = prefix > 0 and getattr(network, "cls_token", None) is not None
    stages = getattr(network, "feature_info", None)
    stride = stages[-1].get("reduction") if isinstance(stages, list) and stages else None
    return network, Reading(features, prefix, classes, stride)


def _timm(network: Any, images: Tensor) -> Tensor:
    return network.forward_features(images)


def _timm_channels_last(network: Any, images: Tensor) -> Tensor:
    return network.forward_features(images).permute(0, 3, 1, 2)


_HEADS = ("avgpool", "classifier", "fc", "head", "heads", "AuxLogits", "aux1", "aux2")
"""Modules of torchvision's classifiers that come after the last map, or beside it."""


def _of_torchvision(name: str, image_size: int, in_chans: int) -> tuple[nn.Module, Reading]:
    models = _package("torchvision", f"torchvision:{name}").models
    _expect_known("torchvision", name, models.list_models(module=models))
    if in_chans != 3:
        raise ValueError(
            f"data.channels: expected three for torchvision:{name}, whose networks take no other "
            f"images, got {in_chans}; timm's and functions of yours take any"
        )
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    with _made(f"torchvision:{name}", image_size):
        network = models.get_model(name, weights=None, **options)
    layer = _last_grid(f"torchvision:{name}", network, image_size)
    has_class = name.startswith("vit_")
    return network, Reading(partial(_output_of, layer), int(has_class), has_class)


def _last_grid(name: str, network: nn.Module, image_size: int) -> str:
    """The module whose output is the last map, or the last tokens, before the classifier."""
    found: list[str] = []

    def noting(layer: str) -> Callable[..., None]:
        def note(_module: nn.Module, _given: object, out: object) -> None:
            if isinstance(out, Tensor) and out.ndim in (3, 4):
                found.append(layer)

        return note

    def features(network: nn.Module, images: Tensor) -> Tensor:
        return network(images)[:, :, None]  # logits [B, classes]

    hooks = [
        module.register_forward_hook(noting(layer))
        for layer, module in network.named_modules()
        if layer and layer.partition(".")[0] not in _HEADS
    ]
    try:
        dry_forward(name, network, features, (3, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"model.name: {name}: expected a network with maps or tokens, found none")
    return found[-1]


def _output_of(layer: str, network: nn.Module, images: Tensor) -> Tensor:
    """The output of one of a network's modules."""
    outputs: list[Tensor] = []
    module = network.get_submodule(layer)
    hook = module.register_forward_hook(lambda *given: outputs.append(given[-1]))
    try:
        network(images)
    finally:
        hook.remove()
    return outputs[-1]


def _config_folder(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(
            f"model.name: hf:{folder}: expected a folder with a config.json, seen from "
            f"{os.getcwd()}"
        )
    return path


def _of_huggingface(folder: str, image_size: int, in_chans: int) -> tuple[nn.Module, Reading]:
    name, path = f"hf:{folder}", _config_folder(folder)
    transformers = _package("transformers", name)
    with _made(name, image_size):
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if in_chans != getattr(config, "num_channels", 3):
            config.num_channels = in_chans
        network = transformers.AutoModel.from_config(config).float()
    taken = signature(network.forward).parameters
    options = {n: True for n in ("interpolate_pos_encoding",) if n in taken}  # any image size
    features = partial(_last_hidden_state, options)
    out = dry_forward(name, network, features, (in_chans, image_size, image_size))
    patch = getattr(config, "patch_size", None)
    if out.ndim == 3 and isinstance(patch, int) and image_size % patch == 0:
        prefix = out.shape[1] - (image_size // patch) ** 2
        if prefix >= 0:
            return network, Reading(features, prefix, prefix > 0, patch)
    return network, Reading(features)  # a map, or tokens of patches that were merged


def _last_hidden_state(options: dict[str, bool], network: nn.Module, images: Tensor) -> Tensor:
    return network(pixel_values=images, **options).last_hidden_state


def _function(name: str) -> Callable[[], object]:
    try:
        return imported(name)  # type: ignore[no-any-return]
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"model.name: {name} cannot be imported ({what}), also not from {os.getcwd()}"
        ) from error


def _of_function(name: str) -> tuple[nn.Module, Reading]:
    function = _function(name)
    try:
        network = function()
    except Exception as error:
        raise ValueError(
            f"model.name: {name}() failed ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"model.name: {name}() returned {type(network).__name__}, expected a torch.nn.Module"
        )
    prefix = arguments.integer("num_prefix_tokens", getattr(network, "num_prefix_tokens", 0), 0)
    has_class = prefix > 0 and bool(getattr(network, "has_class_token", True))
    return network, Reading(_called, prefix, has_class)


def _called(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


_INSTALLED = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
_PACKAGES = {"timm": _of_timm, "torchvision": _of_torchvision, "hf": _of_huggingface}

"""What is evaluated: a run, one of its checkpoints, public weights, or your own function.

Every evaluation takes an :class:`Encoder` and needs no more of it than tokens by name. A spec is:

* a run's folder (its newest checkpoint), or one of its `checkpoints/step_*` folders;
* a file or a folder of a ViT's weights in any layout of `fastequi.weights`, a run's own
  model.safetensors among them;
* `module:function`, also found from the current folder: called with the device, it returns an
  :class:`Encoder`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fastequi.build import build, build_token_encoder
from fastequi.config import Config
from fastequi.data.channels import DTYPE
from fastequi.data.config import DataConfig
from fastequi.data.sources.local import expect_local
from fastequi.evaluate.checked import Features, noise
from fastequi.evaluate.encoder import Encoder
from fastequi.methods.method import Method
from fastequi.models import lora
from fastequi.models.encoder import TokenEncoder
from fastequi.models.foreign_names import imported
from fastequi.models.vit import VisionTransformer
from fastequi.runtime import checkpoint
from fastequi.runtime.devices import use_device
from fastequi.weights.architecture import ASKED, UNSTATED, Asked, Stated
from fastequi.weights.beside import read_config
from fastequi.weights.files import SUFFIXES, holds_weights
from fastequi.weights.reader import Weights, fill, load_weights

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
_SEED = 0  # of fresh weights where no run says one


def load_encoder(
    spec: str,
    device: torch.device | str = "auto",
    stated: Stated = UNSTATED,
    insist: bool = True,
    asked: Asked = ASKED,
) -> Encoder:
    """The encoder a spec names (see the module), with the weights that evaluation should use.

    Those are a run's EMA if it keeps one, else its last; the teacher's where there is one.
    `encoder.features(images)` takes normalised floats [B, C, H, W] on the device;
    `fastequi.functional.normalise.normalise(images, encoder.mean, encoder.std)` makes them of
    uint8 and uint16 images. Of sizes other than `encoder.image_size` see :class:`Encoder`.

    Args:
        spec: a folder, a file, or `module:function`.
        device: "auto" takes a GPU where there is one; or "cpu", "cuda", "cuda:1".
        stated: heads and image size of a file's ViT, which its tensors do not say, and what is
            asked of it.
        insist: `stated` goes before what the file says, and is an error for anything but a file or
            a folder of weights; else the file goes first, and others ignore it.

        asked: how errors call what the file does not say.

    Raises:
        FileNotFoundError: no such file, or a run without a checkpoint.
        ValueError: the file or the function is not what it should be, or there is no such device.
        FloatingPointError: its features are not finite.
    """
    where = use_device(device) if isinstance(device, str) else device
    encoder = _found(expect_local("CHECKPOINT", spec), where, stated, insist, asked)
    # finite? before any work
    encoder.features(noise(encoder.image_size, encoder.device, encoder.in_chans))
    return encoder


def _found(spec: str, where: torch.device, stated: Stated, insist: bool, asked: Asked) -> Encoder:
    path = Path(spec).expanduser()
    is_file = path.name.endswith((*SUFFIXES, ".index.json")) and not path.is_dir()
    if is_file or (path.is_dir() and not _is_run(path) and holds_weights(path)):
        return _of_file(path, where, stated, insist, asked)
    if insist and stated != UNSTATED:
        given = ", ".join(f"--{n.replace('_', '-')}" for n, v in vars(stated).items() if v)
        raise ValueError(f"{given}: only for a file or a folder of weights, got {spec}")
    if path.is_dir():
        return _of_run(path, where)
    if ":" in spec and not path.exists():
        return _of_function(spec, where)
    if path.exists():
        raise ValueError(f"CHECKPOINT: {_EXPECTED}, got the file {path}")
    raise FileNotFoundError(f"CHECKPOINT: {path} does not exist; {_EXPECTED}")


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's or one of its checkpoints, even if it also holds weights."""
    if (folder / "state.json").is_file() or (folder / "checkpoints").is_dir():
        return True
    file = folder / "config.json"
    return file.is_file() and '"method"' in file.read_text(encoding="utf-8", errors="replace")


_EXPECTED = (
    "expected a run's folder, a checkpoint's, a file or folder of weights, or module:function"
)


def random_init(encoder: Encoder) -> Encoder:
    """The same architecture with fresh weights, those that its run started from if it is one.

    Raises:
        ValueError: it cannot be made again (a function's, unless it gives `fresh`).
    """
    if encoder.fresh is None:
        raise ValueError(f"encoder: {encoder.name} gives no `fresh`, so it has no random init")
    fresh = encoder.fresh()
    return replace(fresh, name="random init", fresh=encoder.fresh, is_baseline=True)


def load_all(
    spec: str,
    against: Sequence[str] = (),
    device: torch.device | str = "auto",
    stated: Stated = UNSTATED,
) -> tuple[Encoder, dict[str, Encoder]]:
    """An encoder, and all of a table by name: its random init if it can be made, others, itself.

    Encoders of the same name are numbered. `stated` is for the first; for the others only where
    their files do not say.

    Args:
        spec: of the encoder.
        against: specs of the others.
        device, stated: see :func:`load_encoder`.
    """
    encoder = load_encoder(spec, device, stated)
    found = {} if encoder.fresh is None else {"random init": random_init(encoder)}
    others = (load_other(other, device, stated) for other in against)
    for one in (*others, encoder):
        label, same = one.name, 1
        while label in found:
            label, same = f"{one.name} ({same + 1})", same + 1
        encoder = replace(one, name=label)
        found[label] = encoder
    return encoder, found


def expect_the_same_images(encoder: Encoder, encoders: Mapping[str, Encoder]) -> None:
    """Refuses those of :func:`load_all` that take other channels or values than the first."""
    for label, other in encoders.items():
        mine, theirs = (
            f"data.channels={one.channels} and data.value_range={one.value_range}"
            for one in (encoder, other)
        )
        if mine != theirs:
            raise ValueError(
                f"--against: expected an encoder of the same images as {encoder.name}, which takes "
                f"{mine}, got {label}, which takes {theirs}"
            )


def load_other(
    spec: str, device: torch.device | str = "auto", stated: Stated = UNSTATED
) -> Encoder:
    """The encoder of a spec that `--against` gave, which its errors name; see :func:`load_all`."""
    try:
        return load_encoder(spec, device, stated, insist=False)
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        if not said.startswith("CHECKPOINT"):
            raise
        said = said.removeprefix("CHECKPOINT").removeprefix(": ")
        raise ValueError(f"--against: {said}") from error


def of_method(method: Method, config: Config, name: str = "run") -> Encoder:
    """A run's method as it is, put into eval mode; its device is that of its parameters."""
    device = next(method.parameters()).device
    names = _given(method.eval().features, config.data, device)
    network = method.encoder

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        tokens = method.features(images)
        return {key: tokens[key] for key in names}

    def fresh() -> Encoder:
        return of_method(_seeded(lambda: build(config), config).to(device), config)

    return Encoder(
        name=name,
        features=features,
        names=names,
        patch_size=network.patch_size if isinstance(network, TokenEncoder) else None,
        **_images_of(config.data),
        device=device,
        network=method.encoder,
        method=method,
        config=config,
        fresh=fresh,
    )


def _images_of(data: DataConfig) -> dict[str, Any]:
    """What :class:`Encoder` says of a run's images."""
    said = ("image_size", "mean", "std", "channels", "value_range")
    return {name: getattr(data, name) for name in said} | {"colors": data.has_colors}


def _of_run(path: Path, device: torch.device) -> Encoder:
    is_step = (path / "state.json").is_file()
    run = path.resolve().parent.parent if is_step else path.resolve()
    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"CHECKPOINT: {run} holds no config.json; {_EXPECTED}")
    file = run / "config.json"
    config = read_config(f"CHECKPOINT: {file}", file.read_text(encoding="utf-8"))
    found = path if is_step else checkpoint.latest(run / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"CHECKPOINT: {run} has no checkpoint yet")
    method = _seeded(lambda: build(config), config)
    try:
        checkpoint.load_for_evaluation(found, method)
    except RuntimeError as error:
        raise ValueError(
            f"CHECKPOINT: the weights do not fit {run / 'config.json'}: {_shortened(error)}"
        ) from error
    lora.merge(method)
    name = f"{run.name}/{found.name}" if is_step else run.name
    return of_method(method.to(device), config, name)


def _shortened(error: Exception) -> str:
    """The beginning of a message that may name every parameter."""
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]} ..."


def _seeded(make: Callable[[], Network], config: Config | None) -> Network:
    """With the weights that a run starts from; leaves the caller's generator as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed if config else _SEED)
        return make()


def _of_file(
    path: Path, device: torch.device, stated: Stated, insist: bool, asked: Asked
) -> Encoder:
    if not path.exists():
        raise FileNotFoundError(f"CHECKPOINT: {path} does not exist; {_EXPECTED}")
    config = _foreign_config(path)
    if config is not None:
        if insist and stated != UNSTATED:
            whose = f"{path} is of {config.model.name}"
            raise ValueError(f"--num-heads, --img-size: only for a ViT, {whose}")
        return _of_foreign(path, config, device)
    weights = load_weights(path, stated, insist, asked)
    network = _seeded(weights.make, weights.config)
    if remarks := fill(network, weights).remarks():
        logger.warning("%s: %s", path, "; ".join(remarks))
    height, width = network.img_size
    if height != width:
        logger.warning(
            "%s is made for %dx%d px: evaluations use squares, for which its positions are "
            "interpolated",
            path,
            height,
            width,
        )
    whole = path.resolve()
    name = whole.name if whole.is_dir() else f"{whole.parent.name}/{whole.stem}"
    return _of_vit(network.to(device), weights, name)


def _foreign_config(path: Path) -> Config | None:
    """The settings of the run that left a file, if its network is one of another package."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(checkpoint.SETTINGS, "")
    except (SafetensorError, OSError):
        return None
    config = read_config(f"CHECKPOINT: {path}'s metadata", text) if text else None
    return config if config is not None and config.model.is_foreign else None


def _of_foreign(path: Path, config: Config, device: torch.device) -> Encoder:
    data = config.data

    def make() -> TokenEncoder:
        return build_token_encoder(config.model, data.image_size, data.in_chans)

    encoder = _seeded(make, config)
    try:
        encoder.network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"CHECKPOINT: {path} does not fit {config.model.name}: {_shortened(error)}"
        ) from error
    name = f"{path.resolve().parent.name}/{path.stem}"
    about = {"name": name, **_images_of(data)}
    return _of_tokens(encoder.to(device), make, config, about)


def _of_vit(network: VisionTransformer, weights: Weights, name: str) -> Encoder:
    size = round(math.prod(network.grid_size(*network.img_size)) ** 0.5) * network.patch_size
    channels, value_range = weights.values
    about = {"name": name, "image_size": size, "mean": weights.mean, "std": weights.std}
    about |= {"channels": channels, "value_range": value_range or DTYPE}
    return _of_tokens(network, weights.make, weights.config, about)


def _of_tokens(
    network: TokenEncoder,
    make: Callable[[], TokenEncoder],
    config: Config | None,
    about: dict[str, Any],
) -> Encoder:
    """An encoder without a method.

    Args:
        make: the same with fresh weights.
        config: of the run that it is from.
        about: name, image_size, mean, std, channels and value_range.
    """
    device = next(network.eval().parameters()).device

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        tokens = network.forward_features(images)
        out = {"patch": tokens.patch}
        return out if tokens.cls is None else {**out, "cls": tokens.cls}

    def fresh() -> Encoder:
        return _of_tokens(_seeded(make, config).to(device), make, config, about)

    return Encoder(
        features=features,
        names=("patch", "cls") if network.has_class_token else ("patch",),
        patch_size=network.patch_size,
        device=device,
        network=network,
        config=config,
        fresh=fresh,
        **about,
    )


def _of_function(spec: str, device: torch.device) -> Encoder:
    try:
        function = imported(spec)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"CHECKPOINT: {spec} cannot be imported ({error}); expected a run, a file or folder of "
            f"weights, or package.module:function, which gets a device and returns an Encoder"
        ) from error
    try:
        encoder = function(device)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"CHECKPOINT: {spec}({device}) failed ({why})") from error
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"CHECKPOINT: {spec}(device) returned {type(encoder).__name__}, expected a "
            f"fastequi.evaluate.encoders.Encoder"
        )
    return encoder


@torch.no_grad()
def _given(features: Features, data: DataConfig, device: torch.device) -> tuple[str, ...]:
    """The names of features with at least one channel: a base alone has no z_equi."""
    tokens = features(noise(data.image_size, device, data.in_chans))
    return tuple(name for name, value in tokens.items() if value.shape[-1])

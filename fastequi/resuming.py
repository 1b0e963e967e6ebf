"""What a run finds in its folder when it begins: nothing, a run to continue, or one that ended; and
which settings a run that goes on may change."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastequi.config import Config
from fastequi.config_json import recipe_of
from fastequi.data.views_choice import chosen
from fastequi.runtime import checkpoint
from fastequi.runtime.processes import Processes
from fastequi.runtime.watch import NAME as STOPPED
from fastequi.runtime.watch import Stopped, stopped_before

logger = logging.getLogger(__name__)

Changes = dict[str, tuple[Any, Any]]
"""{"section.field": (before, after)}."""

# Settings that a resumed run cannot change, since its weights' shapes or meaning or its position in
# the data depend on them. Of some, only whether they are 0. An mlp_ratio of None is 4, as it was
# before it could be None, but of vit_so150m and vit_huge_plus.
_KEPT: dict[str, Callable[[Any], Any]] = {
    name: lambda value: value
    for name in (
        *("method", "optim.kind", "optim.muon_encoder", "optim.lora_rank", "optim.lora_alpha"),
        *("data.image_size", "data.samples_per_decode", "data.repeat", "data.order"),
        *("data.shuffle", "data.window", "data.channels", "data.value_range"),
        *("data.file_channels", "data.file_depth", "data.file_part"),
        "data.file_colors",
        *("init.path", "init.sha256", "init.network", "init.img_size", "init.patch_size"),
        *("init.channels", "teacher.sha256", "teacher.network"),
        *("model.name", "model.num_blocks", "model.patch_size", "model.embed_dim", "model.depth"),
        *("model.num_heads", "model.mlp", "model.mlp_hidden", "model.qkv_bias", "model.norm_eps"),
        *("model.final_norm", "model.pos", "model.embed_class", "model.rope_theta"),
        *("model.layer_scale", "model.reg_tokens", "model.mlp_ratio"),
        *("model.class_token", "tir.base", "tir.num_steps", "tir.dim", "tir.equi_dim"),
        *("tir.decoder", "tir.decoder_width", "tir.decoder_convs", "tir.expander"),
        *("tir.decoder_depth", "tir.decoder_heads", "tir.decoder_shared", "tir.equi_layer"),
        *("tir.decoder_overlap", "tir.projector"),
        *("distill.prototypes", "distill.hidden_dim", "distill.bottleneck_dim"),
        *("gtsa.dim", "gtsa.rotation_dims"),
    )
}
_KEPT["anchor.kind"] = lambda value: value != "none"
_KEPT |= dict.fromkeys(("tir.recon_weight", "data.mask_share", "train.ema_momentum"), bool)
_HINTS = {
    "data.file_part": " by the index; a scan with the --axes, --array and --nodata that the run's "
    "images were scanned with takes them as it did"
}
_OWN_RATIO = ("vit_so150m", "vit_huge_plus")


def changes(begun: Config, config: Config, without: str = "") -> Changes:
    """The settings that a run resumed with `config` changes.

    Args:
        begun: as the run has it.
        config: that it is resumed with.
        without: a section that is not looked at.

    Raises:
        ValueError: a setting that a resumed run cannot change.
    """
    before, after = (_flat(dataclasses.asdict(one)) for one in (begun, config))
    found = {name: (before[name], after[name]) for name in after if before[name] != after[name]}
    found = {name: pair for name, pair in found.items() if name.partition(".")[0] != without}
    if config.optim.kind != "muon":
        found.pop("optim.muon_encoder", None)  # it says nothing then
    if config.data.shuffle != "window":
        found.pop("data.window", None)  # nor this
    ratios = found.get("model.mlp_ratio")
    if ratios is not None and config.model.name not in _OWN_RATIO and set(ratios) == {None, 4.0}:
        del found["model.mlp_ratio"]  # said by one and not by the other
    for name, (old, new) in found.items():
        if name in _KEPT and _KEPT[name](old) != _KEPT[name](new):
            kept = f"expected {old}, which --resume cannot change, got {new}"
            raise ValueError(f"{name}: {kept}{_HINTS.get(name, '')}")
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


def check_folder(run_dir: Path, resume: bool) -> None:
    """Refuses a folder that is not what `resume` says it is."""
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"--run-dir: expected a folder, {run_dir} is a file")
    begun = (run_dir / "config.json").exists()
    if resume and not begun and not checkpoint.steps(run_dir / "checkpoints"):
        raise FileNotFoundError(f"--resume: no run in {run_dir}")
    if not resume and begun:
        raise FileExistsError(f"--run-dir: {run_dir} already holds a run; --resume continues it")


def check_start(config: Config, run_dir: Path, resume: bool) -> None:
    """Refuses what a run cannot begin with, as far as its images need not be known for that.

    Raises:
        ValueError: there is no such device, or a setting that a resumed run cannot change.
        OSError: the folder is not what `resume` says it is.
    """
    config.train.resolved_device()
    check_folder(run_dir, resume)
    file = run_dir / "config.json"
    if resume and file.is_file():
        changes(Config.from_json(file.read_text()), config, without="data")


def check_settings(file: Path, config: Config) -> tuple[str, Changes | None]:
    """The run's recipe, or "", and what a resumed run changes; None: its settings are gone.

    Raises:
        ValueError: a setting that a resumed run cannot change.
    """
    if not file.is_file():
        return "", None
    text = file.read_text()
    return recipe_of(text), changes(Config.from_json(text), config)


def tell_changes(file: Path, changed: Changes | None) -> None:
    """Logs what :func:`check_settings` found in a file."""
    if changed is None:
        logger.warning("%s is missing: the given settings are used as the run's own", file)
    elif changed:
        lines = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
        logger.info("changed settings from here on: %s", lines)


def with_views(
    config: Config, run_dir: Path, resume: bool, device: torch.device, processes: Processes
) -> Config:
    """With `data.views=auto` as what the run began with, or as what it means here; the same in all
    processes."""
    if config.data.views != "auto":
        return config
    data, file = config.data, run_dir / "config.json"
    if resume and file.is_file():
        begun = Config.from_json(file.read_text()).data.views
        data = replace(data, views=begun)
    (fused,) = processes.all_reduce_max([float(chosen(data, device) == "fused")])
    return replace(config, data=replace(data, views="fused" if fused else "dali"))


def with_files(config: Config, run_dir: Path, resume: bool) -> Config:
    """With what the run wrote down of its files: colours are augmented as it began."""
    file = run_dir / "config.json"
    if not resume or not file.is_file() or config.data.is_rgb or config.data.file_channels:
        return config
    begun = Config.from_json(file.read_text()).data
    names = ("file_channels", "file_depth", "file_part", "file_colors")
    known = {name: getattr(begun, name) for name in names}
    return replace(config, data=replace(config.data, **known))


def find_checkpoint(run_dir: Path, resume: bool, processes: Processes) -> Path | None:
    """The checkpoint to resume from; the first process chooses, so that all take the same one."""
    found = checkpoint.latest(run_dir / "checkpoints") if processes.first else None
    if processes.first and resume and found is None:
        logger.info("%s has no checkpoint yet: starting from step 0", run_dir)
    (step,) = processes.all_reduce_max([-1.0 if found is None else checkpoint.step_of(found)])
    return None if step < 0 else checkpoint.folder_of(run_dir / "checkpoints", int(step))


def why_stopped(run_dir: Path, resume: bool, changed: bool, processes: Processes) -> Stopped | None:
    """Why a resumed run ended before; the same in all processes.

    As it was, it would end so again. With a changed setting it goes on from its best checkpoint.
    """
    why = stopped_before(run_dir) if processes.first and resume else None
    if why is not None and changed:
        logger.info("it was %s", why)
        (run_dir / STOPPED).unlink()
        why = None
    (ended,) = processes.all_reduce_max([float(why is not None)])
    return stopped_before(run_dir) if ended else None

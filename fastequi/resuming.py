"""What a run finds in its folder when it begins: nothing, a run to continue, or one that ended."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from fastequi.config import Config, changes, recipe_of
from fastequi.data.fused import chosen
from fastequi.runtime import checkpoint
from fastequi.runtime.processes import Processes
from fastequi.runtime.watch import NAME as STOPPED
from fastequi.runtime.watch import Stopped, stopped_before

logger = logging.getLogger(__name__)


def check_folder(run_dir: Path, resume: bool) -> None:
    """Refuses a folder that is not what `resume` says it is."""
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"--run-dir: expected a folder, {run_dir} is a file")
    begun = (run_dir / "config.json").exists()
    if resume and not begun and not checkpoint.steps(run_dir / "checkpoints"):
        raise FileNotFoundError(f"--resume: no run in {run_dir}")
    if not resume and begun:
        raise FileExistsError(f"--run-dir: {run_dir} already holds a run; --resume continues it")


def check_settings(file: Path, config: Config) -> tuple[str, bool]:
    """Logs which settings a resumed run changes, or refuses them.

    Returns:
        The run's recipe, or "", and whether a setting changes.
    """
    if not file.is_file():
        logger.warning("%s is missing: the given settings are used as the run's own", file)
        return "", True
    text = file.read_text()
    changed = changes(Config.from_json(text), config)
    if changed:
        lines = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
        logger.info("changed settings from here on: %s", lines)
    return recipe_of(text), bool(changed)


def with_views(config: Config, run_dir: Path, resume: bool, device: torch.device) -> Config:
    """With `data.views=auto` as what the run began with, or as what it means here."""
    if config.data.views != "auto":
        return config
    views, file = chosen("auto", device), run_dir / "config.json"
    if resume and file.is_file():
        begun = Config.from_json(file.read_text()).data.views
        views = chosen(begun, device)
    return replace(config, data=replace(config.data, views=views))


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

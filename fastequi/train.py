"""A run from its settings to its weights; `fastequi.loop` takes the steps.

A run folder holds config.json, machine.json (processor, device, versions, commit), images.jsonl
(the images at the start, see `fastequi.data.sources.kept`), metrics.jsonl, checkpoints/ (see
`fastequi.runtime.checkpoint`), tensorboard/ where TensorBoard is installed, and at the end
model.safetensors, a ViT under timm's parameter names, another network under its own; stopped.json
where an online probe ended it (`fastequi.runtime.watch`).
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastequi.atomic import replace_text, replacing, save_tensors
from fastequi.build import build, build_optimizer
from fastequi.config import Config
from fastequi.data.loader import make_loader
from fastequi.data.settling import settled
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import Source
from fastequi.data.views_choice import about as about_views
from fastequi.evaluate.online import online_probes
from fastequi.loop import Loop
from fastequi.methods.method import Method
from fastequi.models import lora
from fastequi.optim import WeightEMA
from fastequi.resuming import (
    Changes,
    check_folder,
    check_settings,
    find_checkpoint,
    tell_changes,
    why_stopped,
    with_files,
    with_views,
)
from fastequi.runtime import checkpoint, lock
from fastequi.runtime.machine import machine
from fastequi.runtime.metrics import Log
from fastequi.runtime.processes import (
    Processes,
    leave_groups,
    shard,
    started,
)
from fastequi.runtime.progress import Progress, Silent
from fastequi.runtime.watch import Stopped, cut_back
from fastequi.sharded import is_fsdp
from fastequi.versions import commit
from fastequi.weights.start import start
from fastequi.weights.teachers import attach, with_teacher

logger = logging.getLogger(__name__)


def pretrain(
    config: Config,
    source: Source,
    run_dir: Path,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    progress: Progress | None = None,
    recipe: str = "",
) -> Method:
    """Trains a method on a source and leaves a complete run folder.

    Args:
        config: the run; written to `run_dir/config.json`. It may ask for online probes
            (`fastequi.evaluate.online`).
        source: images, decoded by the loader.
        run_dir: created; refused if it holds a run, unless `resume`.
        resume: go on from the folder's newest checkpoint, or from the start of a run that was
            stopped before its first.
        max_steps: stop after this many optimiser steps in all, on the full schedule.
        progress: how the run is shown; a bar on the terminal by default.
        recipe: name of the recipe that the settings come from, written to config.json.

    Returns:
        The method in eval mode, with the EMA of its weights if the config keeps one; with
        `train.parallel=fsdp` this process's parts of it. After `train.stop_if_worse` ended the run
        it is that of the best checkpoint.

    Under torchrun every process calls it; the first one writes the files.

    Raises:
        FileExistsError: `run_dir` already holds a run and `resume` is False.
        FileNotFoundError: `resume` without a run.
        ValueError: `resume` with settings that a run cannot change; the others are applied and
            logged. Or `config.init`'s weights are not those of the config's model.
        BlockingIOError: another run holds the folder, and did not end while this one waited.
        FloatingPointError: `train.max_skipped` consecutive steps were not finite.
        RuntimeError: `train.stop_if_worse`, and the probe before the first step gave no score. Or
            more images are damaged than `config.data.tolerate` allows, or another process has none
            any more; all steps so far are saved.
        OSError, MemoryError: the machine or a network cannot give this process's next images; all
            steps so far are saved if they are a step's first ones (`train.accumulate`).
        Preempted: one of `fastequi.runtime.preempt.SIGNALS` arrived; all steps so far are saved.
        KeyboardInterrupt: a second Ctrl-C, or one before the first step.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(started(config.train.resolved_device()))
        device = processes.device(config.train.resolved_device())
        config = with_views(config, run_dir, resume, device, processes)
        config = with_files(config, run_dir, resume)
        config = replace(config, data=settled(config.data, source))
        if not resume:  # runs begun before any three channels were colours go on
            config.expect_colors()
        config, teacher = with_teacher(config)
        if teacher is not None:
            asked = config.teacher
            _expect_one_file("--teacher.path", asked.path, asked.sha256, processes)
        changed: Changes | None = {}
        if processes.first:
            check_folder(run_dir, resume)
            if resume:  # a new run makes its folder once all else is in order
                begun, changed = check_settings(run_dir / "config.json", config)
                recipe = begun or recipe
                stack.enter_context(lock.alone(run_dir))
        found = find_checkpoint(run_dir, resume, processes)
        if resume:
            source = kept.as_begun(run_dir / kept.NAME, source, config.data.tolerate)
        if processes.size > 1 and not _is_one(source.fingerprint(), processes):
            raise ValueError(
                "--data: expected the same images for all processes; their names or sizes differ "
                "(of remote shards, one --index for all makes sure of it)"
            )
        probes = online_probes(config, source) if processes.first else []
        tell_changes(run_dir / "config.json", changed)
        why = why_stopped(run_dir, resume, changed != {}, processes)
        torch.manual_seed(config.train.seed)
        method: Method = build(config)
        if config.init.path and found is None:
            config = _started(method, config, processes)
        if found is None:
            method.begin()
        method = method.to(device)
        attach(method, teacher, device)
        if processes.first:
            views = about_views(config.data.views, device)
            logger.info("%s", "\n".join(filter(None, (method.about_encoder(), views))))
        in_parts = config.train.parallel == "fsdp" and processes.size > 1
        if in_parts:
            shard(method, processes)
        if why is not None:
            _leave_best(method, run_dir, why, processes)
            _write_encoder(method, config, run_dir, processes)
            return method.eval()
        optimizer = build_optimizer(method, config)
        momentum = config.train.ema_momentum
        ema = WeightEMA(method, momentum) if momentum else None
        if processes.rank:  # random numbers of its own; rank 0 has those of a single process
            torch.manual_seed(config.train.seed + processes.rank)
        state: dict[str, Any] = {"step": 0, "data": None, "seconds": 0.0}
        if found is not None:
            state = checkpoint.load(found, method, optimizer, ema, processes.rank)
        if config.train.compile:
            method.compile()
        loader = stack.enter_context(
            make_loader(
                source,
                config.data,
                config.path.build(config.data.in_chans),
                seed=config.train.seed,
                device=device,
                state=state["data"],
                rank=processes.rank,
                world_size=processes.size,
                dtype=config.train.autocast_dtype(device) or torch.float32,
                grid=config.data.image_size // config.model.patch_size,
            )
        )
        if processes.first:
            if not resume:
                stack.enter_context(lock.alone(run_dir))
                check_folder(run_dir, resume)  # another run may have started meanwhile
            replace_text(run_dir / "config.json", config.to_json(recipe))
            made_on = machine() | ({"commit": tree} if (tree := commit()) else {})
            replace_text(run_dir / "machine.json", json.dumps(made_on, indent=1) + "\n")
            kept.keep(run_dir / kept.NAME, source)
        writes_to = run_dir if processes.first else None
        from_step = -1 if found is None else state["step"]
        log = stack.enter_context(Log(writes_to, from_step, config.train.tensorboard))
        bar: Progress | Silent = (progress or Progress()) if processes.first else Silent()
        stack.enter_context(bar)
        saver = stack.enter_context(
            checkpoint.Saver(
                run_dir / "checkpoints", config.train.keep_checkpoints, config.train.async_save
            )
        )
        loop = Loop(
            config=config,
            method=method,
            optimizer=optimizer,
            ema=ema,
            loader=loader,
            log=log,
            bar=bar,
            probes=probes,
            processes=processes,
            saver=saver,
        )
        loop.run(state, max_steps)
        why = loop.watch.stopped()
        if why is not None:
            _leave_best(method, run_dir, why, processes)
        elif ema is not None:
            method.load_state_dict(ema.state_dict())
        _write_encoder(method, config, run_dir, processes)
        leave_groups(method)
    return method.eval()


def _started(method: Method, config: Config, processes: Processes) -> Config:
    """Fills a method with the weights that the run starts from, the same in all processes."""
    config, report = start(method, config)
    _expect_one_file("--init", config.init.path, config.init.sha256, processes)
    if processes.first:
        logger.info("%s", "\n".join(report.lines()))
    return config


def _expect_one_file(option: str, path: str, sha256: str, processes: Processes) -> None:
    """Raises ValueError unless all processes have read the same."""
    if not _is_one(sha256, processes):
        raise ValueError(f"{option}: expected one file for all processes, {path} differs")


def _is_one(digest: str, processes: Processes) -> bool:
    """Whether all processes have the same hexadecimal digits; twelve of them are compared."""
    number = float(int(digest[:12], 16))  # exact in float64
    highest, lowest = processes.all_reduce_max([number, -number])
    return highest == -lowest


def _leave_best(method: Method, run_dir: Path, why: Stopped, processes: Processes) -> None:
    """Cuts a run that became worse back to its best checkpoint, which the method then has."""
    if processes.first:
        cut_back(run_dir, why)
        logger.warning("%s", why)
    processes.barrier()
    best = checkpoint.folder_of(run_dir / "checkpoints", why.best_step)
    checkpoint.load_for_evaluation(best, method)


def _write_encoder(method: Method, config: Config, run_dir: Path, processes: Processes) -> None:
    """Writes model.safetensors; of sharded weights every process calls it."""
    in_parts = is_fsdp(method)
    encoder = checkpoint.whole_state(method.saved) if processes.first or in_parts else {}
    if processes.first:
        about = {"format": "pt", checkpoint.SETTINGS: config.to_json()}
        with replacing(run_dir / "model.safetensors") as unfinished:
            save_tensors(unfinished, lora.merged(encoder, config.optim.lora_alpha), about)

"""The loop: one screen that knows no method.

A run folder holds config.json, machine.json (what it ran on, with versions), images.jsonl (what it
began with, see `fastequi.data.sources.kept`), metrics.jsonl, checkpoints/ (see
`fastequi.runtime.checkpoint`), tensorboard/ where TensorBoard is installed, and at the end
model.safetensors, the encoder under timm's parameter names.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fastequi.atomic import replace_text, replacing, save_tensors
from fastequi.build import build
from fastequi.config import Config, changes, recipe_of
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import Source
from fastequi.data.views.batch import Batch
from fastequi.evaluate.online import OnlineProbe, measured_online, online_probes
from fastequi.methods.method import Method
from fastequi.optim import (
    WeightAverage,
    adamw,
    clip_gradients,
    schedule,
    sgd,
    stepped,
    take_step,
    warmup_cosine,
)
from fastequi.runtime import checkpoint, lock
from fastequi.runtime.guard import Guard
from fastequi.runtime.machine import machine
from fastequi.runtime.metrics import Log
from fastequi.runtime.pace import Clock, Meter, Timer
from fastequi.runtime.preempt import Notice, Preempted
from fastequi.runtime.processes import Processes, let_go, replicated, shard, started, together
from fastequi.runtime.progress import Progress, Silent
from fastequi.runtime.scale import LossScale

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
        config: the run; written to `run_dir/config.json`. It may ask for online
            probes (`fastequi.evaluate.online`).
        source: images, decoded by the loader.
        run_dir: created; refused if it holds a run, unless `resume`.
        resume: go on from the folder's newest checkpoint, or from the start of a run that was
            stopped before its first.
        max_steps: stop after this many optimiser steps in all, on the full schedule.
        progress: what shows the run; a bar on the terminal by default.
        recipe: the name of what the settings began as, for the folder to tell.

    Returns:
        The method in eval mode, with averaged weights if the config keeps an average; with
        `train.parallel=fsdp` this process's parts of it.

    Under torchrun every process calls it; the first one writes the files.

    Raises:
        FileExistsError: `run_dir` already holds a run and `resume` is False.
        FileNotFoundError: `resume` without a run.
        ValueError: `resume` with settings that the run cannot go on with; those that it can are
            applied and said.
        BlockingIOError: another run is in the folder, and did not end while this one waited.
        FloatingPointError: `train.max_skipped` steps in a row were not finite.
        Preempted: one of `fastequi.runtime.preempt.SIGNALS` came; the steps taken so far are saved.
        KeyboardInterrupt: a second Ctrl-C, or one before the first step.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(started(config.train.resolved_device()))
        device = processes.device(config.train.resolved_device())
        if processes.first:
            _check_folder(run_dir, resume)
            if resume:  # a new run makes its folder once all else is in order
                recipe = _check_settings(run_dir / "config.json", config) or recipe
                stack.enter_context(lock.alone(run_dir))
        found = _find_checkpoint(run_dir, resume, processes)
        if resume:
            source = kept.as_begun(run_dir / kept.NAME, source, config.data.tolerate)
        online = online_probes(config, source) if processes.first else []
        torch.manual_seed(config.train.seed)
        method: Method = build(config).to(device)
        in_parts = config.train.parallel == "fsdp" and processes.size > 1
        if in_parts:
            shard(method, processes)
        optimizer = build_optimizer(method, config)
        momentum = config.train.average_momentum
        average = WeightAverage(method, momentum) if momentum else None
        if processes.rank:  # each its own random numbers; the first one's are a single process's
            torch.manual_seed(config.train.seed + processes.rank)
        state: dict[str, Any] = {"step": 0, "data": None, "seconds": 0.0}
        if found is not None:
            state = checkpoint.load(found, method, optimizer, average, processes.rank)
        if config.train.compile:
            method.compile()
        loader = stack.enter_context(
            make_loader(
                source,
                config.data,
                config.path.build(),
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
                _check_folder(run_dir, resume)  # another one may have begun meanwhile
            replace_text(run_dir / "config.json", config.to_json(recipe))
            told = json.dumps(machine(), indent=1) + "\n"
            replace_text(run_dir / "machine.json", told)
            kept.keep(run_dir / kept.NAME, source)
        writes_to = run_dir if processes.first else None
        log = stack.enter_context(Log(writes_to, state["step"], config.train.tensorboard))
        bar: Progress | Silent = (progress or Progress()) if processes.first else Silent()
        stack.enter_context(bar)
        saver = stack.enter_context(
            checkpoint.Saver(
                run_dir / "checkpoints", config.train.keep_checkpoints, config.train.save_later
            )
        )
        parts = config, method, optimizer, average, loader, log, bar, online, processes, saver
        _Run(*parts).loop(state, max_steps)
        if average is not None:
            method.load_state_dict(average.state_dict())
        encoder = checkpoint.whole_state(method.encoder) if processes.first or in_parts else {}
        if processes.first:
            about = {"format": "pt", checkpoint.SETTINGS: config.to_json()}
            with replacing(run_dir / "model.safetensors") as unfinished:
                save_tensors(unfinished, encoder, about)
        let_go(method)
    return method.eval()


def build_optimizer(method: Method, config: Config) -> torch.optim.Optimizer:
    """The optimiser of a run, at its peak rate."""
    optim, peak = config.optim, config.peak_lr()
    rates = {
        "encoder": method.backbone,
        "layer_decay": optim.layer_decay,
        "patch_embed_lr": optim.patch_embed_lr,
    }
    if optim.kind == "sgd":
        return sgd(method, peak, optim.weight_decay, optim.momentum, **rates)
    return adamw(method, peak, optim.weight_decay, optim.betas, **rates)


def rates_at(progress: float, config: Config) -> tuple[float, float]:
    """Learning rate and weight decay, for the share of the training done."""
    optim, peak = config.optim, config.peak_lr()
    if optim.milestones:
        lr = stepped(progress, peak, optim.milestones, optim.factor)
    else:
        lr = warmup_cosine(progress, peak, optim.final_lr, optim.warmup)
    last = optim.final_weight_decay
    return lr, warmup_cosine(
        progress, optim.weight_decay, optim.weight_decay if last is None else last
    )


class _Run:
    """The state of one run between its start and its end."""

    def __init__(
        self,
        config: Config,
        method: Method,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        loader: Loader,
        log: Log,
        bar: Progress | Silent,
        online: list[OnlineProbe],
        processes: Processes,
        saver: checkpoint.Saver,
    ) -> None:
        self.online, self.processes, self.saver = online, processes, saver
        self.config, self.method, self.optimizer, self.average = config, method, optimizer, average
        self.loader, self.log, self.bar = loader, log, bar
        self.device = next(method.parameters()).device
        self.autocast = config.train.autocast_dtype(self.device)
        self.scale = LossScale(self.device) if self.autocast is torch.float16 else None
        self.model = replicated(method, processes, method.may_lack_gradients)

    def loop(self, state: dict[str, Any], max_steps: int | None) -> None:
        train, step = self.config.train, state["step"]
        total = self.config.total_steps(len(self.loader))
        clock = Clock(train.minutes, total, max_steps, state["seconds"])
        meter = Meter(self.config.data.batch_size)
        batches = meter.timed(iter(self.loader))
        params = [p for p in self.method.parameters() if p.requires_grad]
        guard = Guard(self.method, train.max_skipped, self.processes.group, self.scale)
        guard.load_state_dict(state)
        self.method.train()
        with Notice(self.processes.first) as notice:
            timer = Timer(train.checkpoint_minutes)
            progress, asked, late = self._agree(clock, step, notice, timer)
            last = clock.done(step, progress) or bool(asked)
            if last and not asked:
                logger.info("step %d was reached before: no step is taken", step)
            while not last:
                lr, decay = rates_at(progress, self.config)
                schedule(self.optimizer, lr, decay)
                self.method.before_step(progress)
                guard.begin()
                for left in reversed(range(train.accumulate)):
                    batch = next(batches)
                    with together(self.model, left == 0):
                        out = self._forward(batch)
                        self._backward(out["loss"] / train.accumulate)
                    guard.saw(out["loss"], batch.sample_ids)
                    meter.add(out, batches=1)
                norm = self._clip(params)
                step += 1
                taken = guard.judge(step, norm)
                take_step(self.optimizer, taken)
                self.optimizer.zero_grad()
                self.method.after_step(progress, taken)
                guard.restore(taken)
                if self.average is not None:
                    self.average.update(self.method, taken)
                meter.add({"grad_norm": norm})
                progress, asked, late = self._agree(clock, step, notice, timer)
                last = clock.done(step, progress) or bool(asked)
                probes_due = self._probes_due(step, last)
                every = train.checkpoint_every
                saves = last or late or (every > 0 and step % every == 0)
                logs = step % train.log_every == 0 or last or step == 1 or probes_due
                if logs or saves:  # all processes do so at the same steps
                    guard.read()
                    self.loader.leave_out(self.processes.union(self.loader.left_out))
                if logs:
                    when = {"step": step, "epoch": self.loader.epoch, "seconds": clock.seconds()}
                    means = self.processes.mean(meter.read())
                    lost = {**guard.lost(), "quarantined": len(self.loader.quarantined)}
                    row = {**when, "lr": lr, **means, **lost}
                    if due := [one for one in self.online if one.every in probes_due]:
                        start = time.monotonic()
                        row |= measured_online(due, self.method, self.config)
                        for watch in (clock, meter):
                            watch.skip(time.monotonic() - start)
                    self.log.write(row)
                    self.bar.show(progress, clock.left(step), row)
                if saves:
                    self._save(step, clock.seconds(), guard)
                    timer.wind()
            self.saver.wait()
            self.processes.most([0.0])  # torchrun ends all soon after the first that leaves
            if asked:
                saved = f": saved after step {step}" if step > state["step"] else " before a step"
                raise Preempted(f"{notice.name(asked)} came{saved}", asked)

    def _agree(
        self, clock: Clock, step: int, notice: Notice, timer: Timer
    ) -> tuple[float, int, bool]:
        """Progress, the signal that asks all to stop (or 0), and whether it is time to save.

        By the first process's clock, so that all do the same.
        """
        own = (clock.progress(step), timer.due()) if self.processes.first else (0.0, False)
        progress, late, number = self.processes.most([*own, notice.number])
        return progress, int(number), bool(late)

    def _probes_due(self, step: int, last: bool) -> set[int]:
        """The intervals of the online probes that are due; the same on all processes."""
        every = {self.config.train.knn_every, self.config.train.r2_every} - {0}
        return {interval for interval in every if step % interval == 0 or last}

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=enabled):
            out: dict[str, Tensor] = self.model(batch)
            return out

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scale is None else loss * self.scale.value).backward()

    def _clip(self, params: list[nn.Parameter]) -> Tensor:
        """The gradients' norm, before they are clipped."""
        if self.scale is not None:
            self.scale.unscale(params)
        return clip_gradients(params, self.config.optim.clip, self.config.optim.clip_per_tensor)

    def _save(self, step: int, seconds: float, guard: Guard) -> None:
        state = {"data": self.loader.state_dict(), "seconds": seconds, **guard.state_dict()}
        generators = checkpoint.generators(self.processes)
        parts = self.method, self.optimizer, state, self.average, self.config.to_json()
        if isinstance(self.method, FSDPModule):
            taken = checkpoint.snapshot(step, *parts, generators=generators, in_parts=True)
            folder, keep = self.saver.folder, self.saver.keep
            checkpoint.write_parts(folder, taken, self.processes, keep)
        elif self.processes.first:
            copy = self.saver.later
            self.saver.save(checkpoint.snapshot(step, *parts, generators=generators, copy=copy))
        self.processes.most([0.0])  # none goes on alone if it fails


def _check_folder(run_dir: Path, resume: bool) -> None:
    """Refuses a folder that is not what `resume` says it is."""
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"--run-dir: expected a folder, {run_dir} is a file")
    begun = (run_dir / "config.json").exists()
    if resume and not begun and not checkpoint.steps(run_dir / "checkpoints"):
        raise FileNotFoundError(f"--resume: no run in {run_dir}")
    if not resume and begun:
        raise FileExistsError(f"--run-dir: {run_dir} already holds a run; --resume continues it")


def _check_settings(file: Path, config: Config) -> str:
    """Says what a resumed run changes, or refuses it; the recipe it began as, "" if unknown."""
    if not file.is_file():
        logger.warning("%s is gone: these settings are taken for the run's own", file)
        return ""
    text = file.read_text()
    changed = changes(Config.from_json(text), config)
    told = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
    if told:
        logger.info("settings that are others from now on: %s", told)
    return recipe_of(text)


def _find_checkpoint(run_dir: Path, resume: bool, processes: Processes) -> Path | None:
    """The checkpoint to go on from; the first process looks, so that all take the same one."""
    found = checkpoint.latest(run_dir / "checkpoints") if processes.first else None
    if processes.first and resume and found is None:
        logger.info("%s has no checkpoint yet: from the start", run_dir)
    (step,) = processes.most([-1.0 if found is None else checkpoint.step_of(found)])
    return None if step < 0 else checkpoint.folder_of(run_dir / "checkpoints", int(step))

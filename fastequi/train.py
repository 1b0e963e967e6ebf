"""The training loop, the same for every method.

A run folder holds config.json, machine.json (processor, device, versions, commit), images.jsonl
(the images at the start, see `fastequi.data.sources.kept`), metrics.jsonl, checkpoints/ (see
`fastequi.runtime.checkpoint`), tensorboard/ where TensorBoard is installed, and at the end
model.safetensors, the encoder under timm's parameter names.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fastequi.atomic import replace_text, replacing, save_tensors
from fastequi.build import build
from fastequi.config import Config, changes, recipe_of
from fastequi.data.fused import chosen
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import Source
from fastequi.data.views.batch import Batch
from fastequi.evaluate.online import OnlineProbe, measured_online, online_probes
from fastequi.methods.method import Method
from fastequi.optim import (
    WeightEMA,
    adamw,
    clip_gradients,
    muon,
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
from fastequi.runtime.preempt import Preempted, PreemptionHandler
from fastequi.runtime.processes import (
    Processes,
    accumulating,
    leave_groups,
    replicated,
    shard,
    started,
)
from fastequi.runtime.progress import Progress, Silent
from fastequi.runtime.scale import LossScale
from fastequi.versions import commit
from fastequi.weights.start import start

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
        `train.parallel=fsdp` this process's parts of it.

    Under torchrun every process calls it; the first one writes the files.

    Raises:
        FileExistsError: `run_dir` already holds a run and `resume` is False.
        FileNotFoundError: `resume` without a run.
        ValueError: `resume` with settings that a run cannot change; the others are applied and
            logged. Or `config.init`'s weights are not those of the config's model.
        BlockingIOError: another run holds the folder, and did not end while this one waited.
        FloatingPointError: `train.max_skipped` consecutive steps were not finite.
        Preempted: one of `fastequi.runtime.preempt.SIGNALS` arrived; all steps so far are saved.
        KeyboardInterrupt: a second Ctrl-C, or one before the first step.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(started(config.train.resolved_device()))
        device = processes.device(config.train.resolved_device())
        config = _with_views(config, run_dir, resume, device)
        if processes.first:
            _check_folder(run_dir, resume)
            if resume:  # a new run makes its folder once all else is in order
                recipe = _check_settings(run_dir / "config.json", config) or recipe
                stack.enter_context(lock.alone(run_dir))
        found = _find_checkpoint(run_dir, resume, processes)
        if resume:
            source = kept.as_begun(run_dir / kept.NAME, source, config.data.tolerate)
        probes = online_probes(config, source) if processes.first else []
        torch.manual_seed(config.train.seed)
        method: Method = build(config)
        if config.init.path and found is None:
            config = _started(method, config, processes)
        method = method.to(device)
        in_parts = config.train.parallel == "fsdp" and processes.size > 1
        if in_parts:
            shard(method, processes)
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
                _check_folder(run_dir, resume)  # another run may have started meanwhile
            replace_text(run_dir / "config.json", config.to_json(recipe))
            made_on = machine() | ({"commit": tree} if (tree := commit()) else {})
            replace_text(run_dir / "machine.json", json.dumps(made_on, indent=1) + "\n")
            kept.keep(run_dir / kept.NAME, source)
        writes_to = run_dir if processes.first else None
        log = stack.enter_context(Log(writes_to, state["step"], config.train.tensorboard))
        bar: Progress | Silent = (progress or Progress()) if processes.first else Silent()
        stack.enter_context(bar)
        saver = stack.enter_context(
            checkpoint.Saver(
                run_dir / "checkpoints", config.train.keep_checkpoints, config.train.async_save
            )
        )
        run = _Run(
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
        run.loop(state, max_steps)
        if ema is not None:
            method.load_state_dict(ema.state_dict())
        encoder = checkpoint.whole_state(method.encoder) if processes.first or in_parts else {}
        if processes.first:
            about = {"format": "pt", checkpoint.SETTINGS: config.to_json()}
            with replacing(run_dir / "model.safetensors") as unfinished:
                save_tensors(unfinished, encoder, about)
        leave_groups(method)
    return method.eval()


def build_optimizer(method: Method, config: Config) -> torch.optim.Optimizer:
    """The optimiser of a run, at its peak rate."""
    optim, peak = config.optim, config.peak_lr()
    rates: dict[str, Any] = {
        "encoder": method.backbone,
        "layer_decay": optim.layer_decay,
        "patch_embed_lr": optim.patch_embed_lr,
    }
    if optim.kind == "sgd":
        return sgd(method, peak, optim.weight_decay, optim.momentum, **rates)
    if optim.kind == "muon":
        rates |= {"muon_encoder": optim.muon_encoder, "muon_lr": optim.muon_lr}
        momenta = optim.betas, optim.muon_momentum
        return muon(method, peak, optim.weight_decay, *momenta, **rates)
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


@dataclass(kw_only=True)
class _Run:
    """The parts of one run between its start and its end."""

    config: Config
    method: Method
    optimizer: torch.optim.Optimizer
    ema: WeightEMA | None
    loader: Loader
    log: Log
    bar: Progress | Silent
    probes: list[OnlineProbe]
    processes: Processes
    saver: checkpoint.Saver

    def __post_init__(self) -> None:
        method = self.method
        self.device = next(method.parameters()).device
        self.autocast = self.config.train.autocast_dtype(self.device)
        self.scale = LossScale(self.device) if self.autocast is torch.float16 else None
        self.model = replicated(method, self.processes, method.find_unused_parameters)

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
        with PreemptionHandler(self.processes.first) as handler:
            timer = Timer(train.checkpoint_minutes)
            progress, number, save_due = self._agree(clock, step, handler, timer)
            last = clock.done(step, progress) or bool(number)
            if last and not number:
                logger.info(
                    "the run has already reached step %d: nothing to train (--resume with a larger "
                    "--train.epochs, or --train.minutes, goes on)",
                    step,
                )
            while not last:
                lr, decay = rates_at(progress, self.config)
                schedule(self.optimizer, lr, decay)
                self.method.before_step(progress)
                guard.begin()
                for left in reversed(range(train.accumulate)):
                    batch = next(batches)
                    with accumulating(self.model, left == 0):
                        out = self._forward(batch)
                        self._backward(out["loss"] / train.accumulate)
                    guard.record(out["loss"], batch.sample_ids)
                    meter.add(out, batches=1)
                norm = self._clip(params)
                step += 1
                taken = guard.check(step, norm)
                take_step(self.optimizer, taken)
                self.optimizer.zero_grad()
                self.method.after_step(progress, taken)
                guard.restore(taken)
                if self.ema is not None:
                    self.ema.update(self.method, taken)
                meter.add({"grad_norm": norm})
                progress, number, save_due = self._agree(clock, step, handler, timer)
                last = clock.done(step, progress) or bool(number)
                intervals = self._probes_due(step, last)
                every = train.checkpoint_every
                saves = last or save_due or (every > 0 and step % every == 0)
                logs = step % train.log_every == 0 or last or step == 1 or intervals
                if logs or saves:  # the same steps on all processes
                    guard.report()
                    self.loader.leave_out(self.processes.union(self.loader.left_out))
                if logs:
                    when = {"step": step, "epoch": self.loader.epoch, "seconds": clock.seconds()}
                    means = self.processes.mean(meter.read())
                    counts = {**guard.counts(), "quarantined": len(self.loader.quarantined)}
                    row = {**when, "lr": lr, **means, **counts}
                    if due := [probe for probe in self.probes if probe.every in intervals]:
                        start = time.monotonic()
                        row |= measured_online(due, self.method, self.config)
                        for timed in (clock, meter):
                            timed.skip(time.monotonic() - start)
                    self.log.write(row)
                    self.bar.show(progress, clock.left(step), row)
                if saves:
                    self._save(step, clock.seconds(), guard)
                    timer.restart()
            self.saver.wait()
            if not number and self.processes.first and (cut := clock.cut(step, progress)):
                logger.info(cut)
            self.processes.barrier()  # torchrun stops all soon after the first one exits
            if number:
                saved = f": saved after step {step}" if step > state["step"] else " before a step"
                raise Preempted(f"received {handler.name(number)}{saved}", number)

    def _agree(
        self, clock: Clock, step: int, handler: PreemptionHandler, timer: Timer
    ) -> tuple[float, int, bool]:
        """Progress, the signal that asks for a stop (or 0), and whether a checkpoint is due.

        Progress and checkpoints follow the first process's clock, so that all do the same.
        """
        own = (clock.progress(step), timer.due()) if self.processes.first else (0.0, False)
        progress, due, number = self.processes.all_reduce_max([*own, handler.number])
        return progress, int(number), bool(due)

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
        in_parts = isinstance(self.method, FSDPModule)
        generators = checkpoint.generators(self.processes)
        if in_parts or self.processes.first:
            snapshot = checkpoint.snapshot(
                step,
                model=self.method,
                optimizer=self.optimizer,
                state=state,
                ema=self.ema,
                config=self.config.to_json(),
                generators=generators,
                copy=self.saver.async_save,
                in_parts=in_parts,
            )
            if in_parts:
                folder, keep = self.saver.folder, self.saver.keep
                checkpoint.write_parts(folder, snapshot, self.processes, keep)
            else:
                self.saver.save(snapshot)
        self.processes.barrier()  # if saving fails, no process continues alone


def _check_folder(run_dir: Path, resume: bool) -> None:
    """Refuses a folder that is not what `resume` says it is."""
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"--run-dir: expected a folder, {run_dir} is a file")
    begun = (run_dir / "config.json").exists()
    if resume and not begun and not checkpoint.steps(run_dir / "checkpoints"):
        raise FileNotFoundError(f"--resume: no run in {run_dir}")
    if not resume and begun:
        raise FileExistsError(f"--run-dir: {run_dir} already holds a run; --resume continues it")


def _started(method: Method, config: Config, processes: Processes) -> Config:
    """Fills a method with the weights that the run starts from, the same in all processes."""
    config, report = start(method, config)
    number = float(int(config.init.sha256[:12], 16))  # exact in float64
    highest, lowest = processes.all_reduce_max([number, -number])
    if highest != -lowest:
        raise ValueError(f"--init: expected one file for all processes, {config.init.path} differs")
    if processes.first:
        logger.info("%s", "\n".join(report.lines()))
    return config


def _with_views(config: Config, run_dir: Path, resume: bool, device: torch.device) -> Config:
    """With `data.views=auto` as what the run began with, or as what it means here."""
    if config.data.views != "auto":
        return config
    views, file = chosen("auto", device), run_dir / "config.json"
    if resume and file.is_file():
        begun = Config.from_json(file.read_text()).data.views
        views = chosen(begun, device)
    return replace(config, data=replace(config.data, views=views))


def _check_settings(file: Path, config: Config) -> str:
    """Logs which settings a resumed run changes, or refuses them; the run's recipe, or ""."""
    if not file.is_file():
        logger.warning("%s is missing: the given settings are used as the run's own", file)
        return ""
    text = file.read_text()
    changed = changes(Config.from_json(text), config)
    if changed:
        lines = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
        logger.info("changed settings from here on: %s", lines)
    return recipe_of(text)


def _find_checkpoint(run_dir: Path, resume: bool, processes: Processes) -> Path | None:
    """The checkpoint to resume from; the first process chooses, so that all take the same one."""
    found = checkpoint.latest(run_dir / "checkpoints") if processes.first else None
    if processes.first and resume and found is None:
        logger.info("%s has no checkpoint yet: starting from step 0", run_dir)
    (step,) = processes.all_reduce_max([-1.0 if found is None else checkpoint.step_of(found)])
    return None if step < 0 else checkpoint.folder_of(run_dir / "checkpoints", int(step))

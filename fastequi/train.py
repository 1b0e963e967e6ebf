"""The training loop, the same for every method.

A run folder holds config.json, machine.json (processor, device, versions, commit), images.jsonl
(the images at the start, see `fastequi.data.sources.kept`), metrics.jsonl, checkpoints/ (see
`fastequi.runtime.checkpoint`), tensorboard/ where TensorBoard is installed, and at the end
model.safetensors, a ViT under timm's parameter names, another network under its own; stopped.json
where an online probe ended it (`fastequi.runtime.watch`).
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

from fastequi.atomic import replace_text, replacing, save_tensors
from fastequi.build import build
from fastequi.config import Config
from fastequi.data.fused import about as about_views
from fastequi.data.loader import Loader, make_loader
from fastequi.data.settling import settled
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import Source
from fastequi.data.views.batch import Batch
from fastequi.evaluate.online import OnlineProbe, measured_online, online_probes, score
from fastequi.freezing import Freezing
from fastequi.methods.method import Method
from fastequi.models import lora
from fastequi.optim import (
    WeightEMA,
    adamw,
    clip_gradients,
    muon,
    schedule,
    sgd,
    stepped,
    take_step,
    thawed,
    warmup_cosine,
)
from fastequi.resuming import (
    check_folder,
    check_settings,
    find_checkpoint,
    why_stopped,
    with_files,
    with_views,
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
from fastequi.runtime.watch import Stopped, Watch, cut_back
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
        RuntimeError: `train.stop_if_worse`, and the probe before the first step gave no score.
        Preempted: one of `fastequi.runtime.preempt.SIGNALS` arrived; all steps so far are saved.
        KeyboardInterrupt: a second Ctrl-C, or one before the first step.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(started(config.train.resolved_device()))
        device = processes.device(config.train.resolved_device())
        config, changed = with_views(config, run_dir, resume, device), False
        config = with_files(config, run_dir, resume)
        config = replace(config, data=settled(config.data, source))
        if not resume:  # runs begun before any three channels were colours go on
            config.expect_colors()
        config, teacher = with_teacher(config)
        if teacher is not None:
            asked = config.teacher
            _expect_one_file("--teacher.path", asked.path, asked.sha256, processes)
        if processes.first:
            check_folder(run_dir, resume)
            if resume:  # a new run makes its folder once all else is in order
                begun, changed = check_settings(run_dir / "config.json", config)
                recipe = begun or recipe
                stack.enter_context(lock.alone(run_dir))
        why = why_stopped(run_dir, resume, changed, processes)
        found = find_checkpoint(run_dir, resume, processes)
        if resume:
            source = kept.as_begun(run_dir / kept.NAME, source, config.data.tolerate)
        if processes.size > 1 and not _is_one(source.fingerprint(), processes):
            raise ValueError(
                "--data: expected the same images for all processes; their names or sizes differ "
                "(of remote shards, one --index for all makes sure of it)"
            )
        probes = online_probes(config, source) if processes.first else []
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
        why = run.watch.stopped()
        if why is not None:
            _leave_best(method, run_dir, why, processes)
        elif ema is not None:
            method.load_state_dict(ema.state_dict())
        _write_encoder(method, config, run_dir, processes)
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


def rates_at(progress: float, config: Config) -> tuple[float, float, float]:
    """Learning rate, weight decay, factor on the encoder's rate, for the share of training done."""
    optim, peak = config.optim, config.peak_lr()
    if optim.milestones:
        lr = stepped(progress, peak, optim.milestones, optim.factor)
    else:
        lr = warmup_cosine(progress, peak, optim.final_lr, optim.warmup)
    last = optim.final_weight_decay
    decay = warmup_cosine(
        progress, optim.weight_decay, optim.weight_decay if last is None else last
    )
    return lr, decay, optim.encoder_lr * thawed(progress, optim.freeze_encoder, optim.warmup)


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
        self.freezing = Freezing(method.backbone, self.config.optim.freeze_encoder)
        self.model: nn.Module = method
        self.watch = Watch(self.config.train.stop_if_worse)

    def loop(self, state: dict[str, Any], max_steps: int | None) -> None:
        train, step = self.config.train, state["step"]
        total = self.config.total_steps(len(self.loader))
        clock = Clock(train.minutes, total, max_steps, state["seconds"])
        meter = Meter(self.config.data.batch_size)
        batches = meter.timed(iter(self.loader))
        params = [p for p in self.method.parameters() if p.requires_grad]
        guard = Guard(self.method, train.max_skipped, self.processes.group, self.scale)
        guard.load_state_dict(state)
        self.watch.load_state_dict(state)
        self.method.train()
        with PreemptionHandler(self.processes.first) as handler:
            timer = Timer(train.checkpoint_minutes)
            progress, number, save_due = self._agree(clock, step, handler, timer)
            last = clock.done(step, progress) or bool(number)
            if last and not number:
                larger = "--train.epochs, or --train.minutes"
                if clock.cut(step, progress):
                    larger = "--max-steps, or without it"
                logger.info(
                    "the run has already reached step %d: nothing to train (--resume with a larger "
                    "%s, goes on)",
                    *(step, larger),
                )
            if state["data"] is None and not last:
                self._probe_first(clock, meter, guard)
            while not last:
                lr, decay, encoder = rates_at(progress, self.config)
                schedule(self.optimizer, lr, decay, encoder)
                self._freeze(progress)
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
                    figures, is_best = self._probe(intervals, step, clock, meter)
                    row = {**when, "lr": lr, **means, **counts, **figures}
                    self.log.write(row)
                    self.bar.show(progress, clock.left(step), row)
                    saves = saves or is_best
                if self.watch.stopped() is not None:
                    break
                if saves:
                    self._save(step, clock.seconds(), guard)
                    timer.restart()
            self.freezing.at(1.0)
            self.saver.wait()
            stopped = self.watch.stopped() is not None
            cut = "" if number or stopped else clock.cut(step, progress)
            if cut and self.processes.first:
                logger.info(cut)
            self.processes.barrier()  # torchrun stops all soon after the first one exits
            if number and not stopped:
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

    def _freeze(self, progress: float) -> None:
        """Freezes or thaws the encoder; DDP has to know anew which parameters get gradients."""
        if self.freezing.at(progress):
            unused = self.method.find_unused_parameters
            self.model = replicated(self.method, self.processes, unused)

    def _probes_due(self, step: int, last: bool) -> set[int]:
        """The intervals of the online probes that are due; the same on all processes."""
        every = {self.config.train.knn_every, self.config.train.r2_every} - {0}
        return {interval for interval in every if step % interval == 0 or last}

    def _probe(
        self, intervals: set[int], step: int, clock: Clock, meter: Meter
    ) -> tuple[dict[str, float], bool]:
        """The due probes' figures, on the first process; whether their score is the best, on all.

        Their time is left out.
        """
        due = [probe for probe in self.probes if probe.every in intervals]
        start = time.monotonic()
        figures = measured_online(due, self.method, self.config) if due else {}
        for timed in (clock, meter):
            timed.skip(time.monotonic() - start)
        if not (intervals and self.watch.amount):
            return figures, False
        (found,) = self.processes.all_reduce_max([score(figures, self.config)])
        return figures, self.watch.see(step, found)

    def _probe_first(self, clock: Clock, meter: Meter, guard: Guard) -> None:
        """The probes before the first step; what a watched run is compared with is saved."""
        figures, is_best = self._probe(self._probes_due(0, False), 0, clock, meter)
        if figures:
            self.log.write({"step": 0, "epoch": 0, "seconds": 0.0, **figures})
        if is_best:
            self._save(0, 0.0, guard)
        elif self.watch.amount:
            raise RuntimeError(
                "train.stop_if_worse: expected a score of the online probe before the first step, "
                "got none; the reason is logged above"
            )

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
        state |= self.watch.state_dict()
        in_parts = is_fsdp(self.method)
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
                spared=self.watch.best_step,
                copy=self.saver.async_save,
                in_parts=in_parts,
            )
            if in_parts:
                folder, keep = self.saver.folder, self.saver.keep
                checkpoint.write_parts(folder, snapshot, self.processes, keep)
            else:
                self.saver.save(snapshot)
        self.processes.barrier()  # if saving fails, no process continues alone


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

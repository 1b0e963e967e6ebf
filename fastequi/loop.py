"""The steps of a run, the same for every method: rates, forward and backward, the update, and what
follows from it, figures, online probes and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastequi.config import Config
from fastequi.data.loader import Loader
from fastequi.data.views.batch import Batch
from fastequi.evaluate.online import OnlineProbe, measured_online, score
from fastequi.freezing import Freezing
from fastequi.methods.method import Method
from fastequi.optim import (
    WeightEMA,
    clip_gradients,
    schedule,
    stepped,
    take_step,
    thawed,
    warmup_cosine,
)
from fastequi.runtime import checkpoint
from fastequi.runtime.guard import Guard
from fastequi.runtime.metrics import Log
from fastequi.runtime.pace import Clock, Meter, Timer
from fastequi.runtime.preempt import Preempted, PreemptionHandler
from fastequi.runtime.processes import Processes, accumulating, replicated
from fastequi.runtime.progress import Progress, Silent
from fastequi.runtime.scale import LossScale
from fastequi.runtime.watch import Watch
from fastequi.sharded import is_fsdp

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Loop:
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
        self.position: dict[str, Any] = {}  # the loader's, to go on from after a fault
        self.known = dict(self.loader.quarantined)  # to all processes
        self.fault: Exception | None = None  # why this process has no next batch

    def run(self, state: dict[str, Any], max_steps: int | None) -> None:
        """Trains from a checkpoint's state, or the first one's, to the end or to a signal.

        Args:
            state: the step, the loader's position (None: the start), seconds trained before, and
                what guard and watch keep.
            max_steps: as of :func:`fastequi.train.pretrain`.

        Raises:
            Preempted: a signal asked for a stop; all steps so far are saved.
            FloatingPointError, RuntimeError: as of :func:`fastequi.train.pretrain`.
            Exception: a process has no first batch for the next step, or more images are damaged
                than `data.tolerate` allows; all steps so far are saved.
        """
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
            saved, failed = step, False
            if last and not number:
                larger = "a larger --train.epochs, --train.steps or --train.minutes"
                if clock.cut(step, progress):
                    larger = "a larger --max-steps, or none,"
                logger.info(
                    "the run has already reached step %d: nothing to train (--resume with %s "
                    "goes on)",
                    *(step, larger),
                )
            if not last and self.processes.first:
                logger.info("%s", self._length(step, total, max_steps))
            if state["data"] is None and not last:
                self._probe_first(clock, meter, guard)
            while not last:
                batch, number = self._first(batches, handler)
                if failed := batch is None:
                    break
                lr, decay, encoder = rates_at(progress, self.config)
                schedule(self.optimizer, lr, decay, encoder)
                self._freeze(progress)
                self.method.before_step(progress)
                guard.begin()
                for left in reversed(range(train.accumulate)):
                    batch = next(batches) if batch is None else batch
                    with accumulating(self.model, left == 0):
                        out = self._forward(batch)
                        self._backward(out["loss"] / train.accumulate)
                    guard.record(out["loss"], batch.sample_ids)
                    meter.add(out, batches=1)
                    batch = None
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
                    failed = self._leave_out()
                if failed:
                    break
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
                    saved = step
                    timer.restart()
            if failed:
                self._give_up(step, saved, clock, guard)
            self.freezing.at(1.0)
            self.saver.wait()
            stopped = self.watch.stopped() is not None
            cut = "" if number or stopped or failed else clock.cut(step, progress)
            if cut and self.processes.first:
                logger.info(cut)
            self.processes.barrier()  # torchrun stops all soon after the first one exits
            if failed and not number:
                raise self._why()
            if self.fault is not None:
                logger.warning("%s", self.fault)
            if number and not stopped:
                told = f": saved after step {step}" if step > state["step"] else " before a step"
                raise Preempted(f"received {handler.name(number)}{told}", number)

    def _first(
        self, batches: Iterator[Batch], handler: PreemptionHandler
    ) -> tuple[Batch | None, int]:
        """The next step's first batch, None if a process has none, and the signal that came."""
        self.position, batch = self.loader.state_dict(), None
        try:
            batch = next(batches)
        except Exception as error:
            self.fault = error
        failed, number = self.processes.all_reduce_max([batch is None, handler.number])
        return None if failed else batch, int(number)

    def _leave_out(self) -> bool:
        """Has all processes leave out what one of them found damaged; whether that is too much."""
        self.position = self.loader.state_dict()
        try:
            self.loader.leave_out(self.processes.union(self.loader.left_out))
            self.known = dict(self.loader.quarantined)
        except RuntimeError as error:
            self.fault = error
        return self.fault is not None  # on all processes alike

    def _give_up(self, step: int, saved: int, clock: Clock, guard: Guard) -> None:
        """Saves what was done since the last checkpoint, before the run ends for a fault. What was
        found damaged meanwhile is not left out by that: the files may come back."""
        try:
            if step > saved:
                guard.report()
                position = {**self.position, "quarantined": self.known}
                self._save(step, clock.seconds(), guard, position)
                self.saver.wait()
        except Exception as error:
            logger.warning("step %d could not be saved: %s", step, error)
            raise self._why() from error
        if step and self.processes.first:
            logger.warning("saved after step %d; --resume goes on from there", step)

    def _why(self) -> Exception:
        """What ends the run, for each process."""
        elsewhere = "another process cannot go on; its own message says why"
        return self.fault or RuntimeError(elsewhere)

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

    def _length(self, step: int, total: int, max_steps: int | None) -> str:
        """How long the run is, in words."""
        train, data, batches = self.config.train, self.config.data, len(self.loader)
        times = data.repeat * data.samples_per_decode
        epoch = f"{batches:,} batches"
        if times > 1:
            epoch += f", each image {times} times (data.repeat x data.samples_per_decode)"
        steps = f"{total:,} steps" + f" of {train.accumulate} batches" * (train.accumulate > 1)
        epochs = f"{train.epochs:,} epoch" + "s" * (train.epochs != 1)
        whole = f"{steps}: {epochs} of {epoch}"
        if train.steps:
            whole = f"{steps}; an epoch is {epoch}"
        if train.minutes:
            whole = f"{train.minutes:g} minutes; an epoch is {epoch}"
        whole += f"; from step {step:,} on" * bool(step)
        return whole + (f"; --max-steps {max_steps:,}" if max_steps is not None else "")

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

    def _save(
        self, step: int, seconds: float, guard: Guard, position: dict[str, Any] | None = None
    ) -> None:
        data = self.loader.state_dict() if position is None else position
        state = {"data": data, "seconds": seconds, **guard.state_dict()}
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

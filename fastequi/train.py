"""The loop: one screen that knows no method.

A run folder holds config.json, machine.json (what it ran on, with versions), metrics.jsonl,
checkpoints/ (see `fastequi.checkpoint`), tensorboard/ where TensorBoard is installed, and at the
end model.safetensors, the encoder under timm's parameter names.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastequi import checkpoint
from fastequi.config import Config
from fastequi.data.batch import Batch
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources import Source
from fastequi.doctor import machine
from fastequi.evaluate.online import Look, look, looks
from fastequi.methods.method import Method
from fastequi.optim import (
    WeightAverage,
    adamw,
    clip_gradients,
    schedule,
    sgd,
    stepped,
    warmup_cosine,
)
from fastequi.pace import Clock, Meter
from fastequi.progress import Progress
from fastequi.recipes import build

logger = logging.getLogger(__name__)


def pretrain(
    config: Config,
    source: Source,
    run_dir: Path,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    progress: Progress | None = None,
) -> Method:
    """Trains a method on a source and leaves a complete run folder.

    Args:
        config: the run; written to `run_dir/config.json`. It may ask for looks at the features on
            the way (`fastequi.evaluate.online`).
        source: images, decoded by the loader.
        run_dir: created; refused if it holds a run, unless `resume`.
        resume: go on from the folder's newest checkpoint.
        max_steps: stop after this many optimiser steps in all, on the full schedule.
        progress: what shows the run; a bar on the terminal by default.

    Returns:
        The method in eval mode, with averaged weights if the config keeps an average.

    Raises:
        FileExistsError: `run_dir` already holds a run and `resume` is False.
        FileNotFoundError: `resume` without a checkpoint.
        FloatingPointError: the loss was not finite at a logging step.
    """
    found = _find_checkpoint(run_dir, resume)
    online = looks(config, source)
    device = torch.device(config.train.resolved_device())
    torch.manual_seed(config.train.seed)
    method: Method = build(config).to(device)
    optimizer = build_optimizer(method, config)
    momentum = config.train.average_momentum
    average = WeightAverage(method, momentum) if momentum else None
    state: dict[str, Any] = {"step": 0, "data": None, "seconds": 0.0}
    if found is not None:
        state = checkpoint.load(found, method, optimizer, average)
    if config.train.compile:
        method.compile()
    with ExitStack() as stack:
        loader = stack.enter_context(
            make_loader(
                source,
                config.data,
                config.path.build(),
                seed=config.train.seed,
                device=device,
                state=state["data"],
                dtype=config.train.autocast_dtype(device) or torch.float32,
                grid=config.data.image_size // config.model.patch_size,
            )
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.json").write_text(config.to_json())
        (run_dir / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
        log = stack.enter_context(Log(run_dir, state["step"], config.train.tensorboard))
        bar = stack.enter_context(progress or Progress())
        run = _Run(config, method, optimizer, average, loader, log, bar, run_dir, online)
        run.loop(state["step"], state["seconds"], max_steps)
    if average is not None:
        method.load_state_dict(average.state_dict())
    encoder = {k: v.cpu().contiguous() for k, v in method.encoder.state_dict().items()}
    save_file(encoder, run_dir / "model.safetensors", {"format": "pt"})
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
        bar: Progress,
        run_dir: Path,
        online: list[Look],
    ) -> None:
        self.online = online
        self.config, self.method, self.optimizer, self.average = config, method, optimizer, average
        self.loader, self.log, self.bar, self.run_dir = loader, log, bar, run_dir
        self.device = next(method.parameters()).device
        self.autocast = config.train.autocast_dtype(self.device)

    def loop(self, step: int, seconds: float, max_steps: int | None) -> None:
        train, optim = self.config.train, self.config.optim
        clock = Clock(train.minutes, self.config.total_steps(len(self.loader)), max_steps, seconds)
        meter = Meter(self.config.data.batch_size)
        batches = meter.timed(iter(self.loader))
        params = [p for p in self.method.parameters() if p.requires_grad]
        self.method.train()
        last = clock.done(step)
        while not last:
            progress = clock.progress(step)
            lr, decay = rates_at(progress, self.config)
            schedule(self.optimizer, lr, decay)
            self.method.before_step(progress)
            for _ in range(train.accumulate):
                out = self._forward(next(batches))
                (out["loss"] / train.accumulate).backward()
                meter.add(out, batches=1)
            norm = clip_gradients(params, optim.clip, optim.clip_per_tensor)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.method.after_step(progress)
            if self.average is not None:
                self.average.update(self.method)
            step += 1
            meter.add({"grad_norm": norm})
            last = clock.done(step)
            due = [one for one in self.online if step % one.every == 0 or last]
            if step % train.log_every == 0 or last or step == 1 or due:
                when = {"step": step, "epoch": self.loader.epoch, "seconds": clock.seconds()}
                row = {**when, "lr": lr, **meter.read()}
                if due:
                    start = time.monotonic()
                    row |= look(due, self.method, self.config)
                    for watch in (clock, meter):
                        watch.skip(time.monotonic() - start)
                self.log.write(row)
                self.bar.show(clock.progress(step), clock.left(step), row)
            if last or (train.checkpoint_every and step % train.checkpoint_every == 0):
                self._save(step, clock.seconds())

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=enabled):
            return self.method(batch)

    def _save(self, step: int, seconds: float) -> None:
        state = {"data": self.loader.state_dict(), "seconds": seconds}
        folder, keep = self.run_dir / "checkpoints", self.config.train.keep_checkpoints
        checkpoint.save(folder, step, self.method, self.optimizer, state, self.average, keep)


class Log:
    """metrics.jsonl, and TensorBoard events where it is installed."""

    def __init__(self, run_dir: Path, step: int, tensorboard: bool) -> None:
        path = run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))
        self.file = path.open("a")
        self.board = _summary_writer(run_dir / "tensorboard") if tensorboard else None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()

    def write(self, row: dict[str, float]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:
        logger.info("no TensorBoard events: %s (pip install fastequi[log])", error)
        return None
    return SummaryWriter(str(folder))


def _find_checkpoint(run_dir: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; refuses a folder that is not what `resume` says it is."""
    found = checkpoint.latest(run_dir / "checkpoints")
    if resume and found is None:
        raise FileNotFoundError(f"--resume: no checkpoint in {run_dir / 'checkpoints'}")
    if not resume and (run_dir / "config.json").exists():
        raise FileExistsError(f"--run-dir: {run_dir} already holds a run; --resume continues it")
    return found

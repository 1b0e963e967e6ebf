"""How far a run is, and how fast: its clock, and the means of its steps' scalars."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Clock:
    """The share of the training that is done, by steps or by a wall-time budget.

    Args:
        minutes: wall-time budget; 0 counts steps.
        total_steps: length of the schedule in optimiser steps.
        max_steps: stop earlier, on the same schedule.
        seconds: spent before a resume.
    """

    def __init__(
        self, minutes: float, total_steps: int, max_steps: int | None, seconds: float
    ) -> None:
        self.budget, self.total_steps = minutes * 60, total_steps
        self.max_steps = max_steps if max_steps is not None else math.inf
        self.start, self.before = time.monotonic() - seconds, seconds
        self.first: tuple[int, float] | None = None

    def skip(self, seconds: float) -> None:
        """Leaves out time that was not spent on training."""
        self.start += seconds

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        if self.budget:
            return min(self.seconds() / self.budget, 1.0)
        return step / self.total_steps

    def done(self, step: int, progress: float) -> bool:
        return progress >= 1 or step >= self.max_steps

    def cut(self, step: int, progress: float) -> str:
        """Where `max_steps` stopped the run, for its log; "" if something else did."""
        if progress >= 1 or step < self.max_steps:
            return ""
        whole = f"step {step} of {self.total_steps}"
        if self.budget:
            whole = f"step {step}, after {self.seconds() / 60:.1f} of {self.budget / 60:g} minutes"
        return f"stopped at {whole} (--max-steps); --resume goes on"

    def left(self, step: int) -> float:
        """Remaining seconds, from the rate since the first call; a budget leaves steps no say."""
        if self.first is None:
            self.first = (step, self.seconds())
        steps, seconds = step - self.first[0], self.seconds() - self.first[1]
        rate = steps / seconds if seconds > 0 else 0.0
        last = self.max_steps if self.budget else min(self.total_steps, self.max_steps)
        by_steps = (last - step) / rate if rate else math.inf
        by_time = self.budget - self.seconds() if self.budget else math.inf
        return max(min(by_steps, by_time), 0.0)


class Timer:
    """Due once `minutes` have passed since it was made or restarted; 0: never."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60 or math.inf
        self.restart()

    def restart(self) -> None:
        self.start = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.start >= self.seconds


class Meter:
    """Means of the steps' scalars, and the loop's speed; syncs with the device only when read."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.batches, self.waited, self.since = 0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        while True:
            start = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - start
            yield batch

    def skip(self, seconds: float) -> None:
        """Leaves out time that was not spent on training."""
        self.since += seconds

    def add(self, out: dict[str, Tensor], batches: int = 0) -> None:
        for name, value in out.items():
            self.values.setdefault(name, []).append(value.detach().float())
        self.batches += batches

    def read(self) -> dict[str, float]:
        """Means since the last read, with images/s and the share of time spent waiting for data.

        NaN where no value was finite.
        """
        elapsed = max(time.monotonic() - self.since, 1e-9)
        means = torch.stack([_finite_mean(values) for values in self.values.values()]).tolist()
        row = dict(zip(self.values, means, strict=True))
        row["images_per_s"] = self.batch_size * self.batches / elapsed
        row["data_wait"] = self.waited / elapsed
        self._reset()
        return row


def _finite_mean(values: list[Tensor]) -> Tensor:
    """Of those that are finite; NaN if none is."""
    every = torch.stack(values)
    return torch.where(every.isfinite(), every, torch.nan).nanmean()

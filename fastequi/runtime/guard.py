"""Skips steps with non-finite loss or gradients, on all processes, without a host sync.

The flag that says whether a step is taken stays on the device: the fused optimiser reads it there
(as under a gradient scaler), updates of EMAs and centres are multiplied by it, and buffers that the
forward changed are restored. The host reads it at the next logging step.

A gradient that overflows float16 under a loss scale (`fastequi.runtime.scale`) is not caused by a
sample: the scale is reduced, and the step counts as overflowed, not as skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastequi.runtime.scale import LossScale

logger = logging.getLogger(__name__)

_MAX_IDS = 256  # sample ids in a message


class Guard:
    """Finds and counts the skipped steps of one run.

    Args:
        method: its buffers are restored when a step is skipped.
        limit: consecutive skipped steps after which the run ends.
        group: processes that take or skip a step together.
        scale: the loss scale, if there is one.

    Attributes:
        skipped: steps skipped so far, as far as the host has read.
        overflowed: steps not taken because the scale was too large; not counted as skipped.
        in_a_row: consecutive skipped steps up to the last one read.
    """

    def __init__(
        self,
        method: nn.Module,
        limit: int,
        group: ProcessGroup | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.buffers = [b for b in method.buffers() if b.is_floating_point()]
        self.saved = [b.clone() for b in self.buffers]
        self.limit, self.group, self.scale = limit, group, scale
        self.skipped = self.in_a_row = self.overflowed = 0
        self.losses: list[Tensor] = []
        self.ids: list[Tensor] = []
        self.unread: list[tuple[int, Tensor, list[Tensor]]] = []

    def state_dict(self) -> dict[str, float]:
        """The counts and the loss scale, for a checkpoint's JSON."""
        counts = {name: getattr(self, name) for name in ("skipped", "in_a_row", "overflowed")}
        return counts if self.scale is None else {**counts, **self.scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint's state; missing counts start at 0."""
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.overflowed = state.get("overflowed", 0)
        if self.scale is not None:
            self.scale.load_state_dict(state)

    def counts(self) -> dict[str, float]:
        """Skipped and overflowed steps so far, for the log."""
        if self.scale is None:
            return {"skipped": self.skipped}
        scale = self.scale.value.item()
        return {"skipped": self.skipped, "overflowed": self.overflowed, "loss_scale": scale}

    def begin(self) -> None:
        """Called before a step's first batch."""
        self.losses, self.ids = [], []
        if self.buffers:
            torch._foreach_copy_(self.saved, self.buffers)

    def record(self, loss: Tensor, sample_ids: Tensor) -> None:
        """Called with a batch's loss [] and its sample ids [B] on the CPU."""
        self.losses.append(loss.detach())
        self.ids.append(sample_ids)

    def check(self, step: int, norm: Tensor) -> Tensor:
        """1 if the step should be taken, 0 if skipped: [] float32, the same on all processes.

        Args:
            step: its number, for messages.
            norm: of all gradients together; not finite if one of them is not.
        """
        mine = torch.stack(self.losses).isfinite()
        every = torch.stack([mine.all(), norm.detach().isfinite()]).to(torch.float32)
        if self.group is not None:
            dist.all_reduce(every, dist.ReduceOp.MIN, group=self.group)
        taken, losses = every.min(), every[0]
        overflow = losses - taken  # the losses are finite, the gradient is not
        excused = torch.zeros_like(taken) if self.scale is None else self.scale.update(overflow)
        flags = torch.cat([torch.stack([taken, losses, excused]), mine.to(torch.float32)])
        self.unread.append((step, flags, self.ids))
        return taken

    def restore(self, taken: Tensor) -> None:
        """Called after the method's updates: restores the buffers if the step was skipped."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(torch.where(taken > 0, buffer, saved))

    def report(self) -> int:
        """Logs the steps skipped since the last call, and counts them; waits for the device.

        Raises:
            FloatingPointError: `limit` consecutive steps were skipped.
        """
        before = self.skipped
        rows = torch.stack([flags for _, flags, _ in self.unread]).tolist() if self.unread else []
        for (step, _, ids), (taken, losses, excused, *mine) in zip(self.unread, rows, strict=True):
            if excused:
                self.overflowed += 1
                continue
            self.in_a_row = 0 if taken else self.in_a_row + 1
            if taken:
                continue
            self.skipped += 1
            if losses:  # then it is not known whose
                self._name(step, "gradient", torch.cat(ids))
            elif not all(mine):
                bad = [batch for batch, fine in zip(ids, mine, strict=True) if not fine]
                self._name(step, "loss", torch.cat(bad))
            if self.in_a_row >= self.limit:
                raise FloatingPointError(
                    f"{self.in_a_row} consecutive steps had a non-finite loss or gradient, "
                    f"{self.skipped} in all; weights and checkpoints are those before them. "
                    f"Lower the learning rate, or check the samples named above"
                )
        self.unread.clear()
        return self.skipped - before

    def _name(self, step: int, what: str, ids: Tensor) -> None:
        shown = ", ".join(map(str, ids[:_MAX_IDS].tolist()))
        more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
        logger.warning(
            "step %d is skipped: its %s is not finite; samples %s%s", step, what, shown, more
        )

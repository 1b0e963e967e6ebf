"""Steps whose loss or gradient is not finite are not taken, on any process, and nothing waits.

Whether a step is taken stays on the device: the fused optimiser reads it there (as it does under a
gradient scaler), averages and centres are multiplied by it, buffers that the forward changed are
put back. The host learns of it when it reads the metrics anyway.

A gradient that overflows float16 under a loss scale (`fastequi.runtime.scale`) is no sample's
fault: the scale falls, and the step counts as overflowed, not as skipped.
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

_NAMED = 256  # sample ids in a message


class Guard:
    """One run's.

    Args:
        method: whose buffers go back when a step is not taken.
        limit: steps not taken in a row after which the run ends.
        group: processes that take a step together or not at all.
        scale: of the loss, if it has one.

    Attributes:
        skipped: steps not taken so far, as far as the host has read.
        overflowed: those not taken since the scale was too large, which are not among them.
        in_a_row: how many of them were the last ones.
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
        """What a resumed run goes on counting from, JSON-ready."""
        counts = {name: getattr(self, name) for name in ("skipped", "in_a_row", "overflowed")}
        return counts if self.scale is None else {**counts, **self.scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint's state; one of an older version counts from 0."""
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.overflowed = state.get("overflowed", 0)
        if self.scale is not None:
            self.scale.load_state_dict(state)

    def lost(self) -> dict[str, float]:
        """What was lost so far, for the log."""
        if self.scale is None:
            return {"skipped": self.skipped}
        scale = self.scale.value.item()
        return {"skipped": self.skipped, "overflowed": self.overflowed, "loss_scale": scale}

    def begin(self) -> None:
        """Before a step's first batch."""
        self.losses, self.ids = [], []
        if self.buffers:
            torch._foreach_copy_(self.saved, self.buffers)

    def saw(self, loss: Tensor, sample_ids: Tensor) -> None:
        """A batch's loss, [], and its samples, [B] on the CPU."""
        self.losses.append(loss.detach())
        self.ids.append(sample_ids)

    def judge(self, step: int, norm: Tensor) -> Tensor:
        """1 if the step is to be taken, else 0: [] float32, the same on all processes.

        Args:
            step: its number, for messages.
            norm: of all gradients; not finite if one of them is not.
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
        """After the method's updates: buffers as before, unless the step was taken."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(torch.where(taken > 0, buffer, saved))

    def read(self) -> int:
        """Logs what was not taken since the last call, and how many; waits for the device.

        Raises:
            FloatingPointError: `limit` in a row.
        """
        before = self.skipped
        told = torch.stack([flags for _, flags, _ in self.unread]).tolist() if self.unread else []
        for (step, _, ids), (taken, losses, excused, *mine) in zip(self.unread, told, strict=True):
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
                    f"{self.in_a_row} steps in a row had a loss or gradient that is not finite, "
                    f"{self.skipped} in all; weights and checkpoints are those before them. "
                    f"Lower the rate, or look at the samples named above"
                )
        self.unread.clear()
        return self.skipped - before

    def _name(self, step: int, what: str, ids: Tensor) -> None:
        shown = ", ".join(map(str, ids[:_NAMED].tolist()))
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        logger.warning(
            "step %d is not taken: its %s is not finite; samples %s%s", step, what, shown, more
        )

"""DINO's and iBOT's criteria as modules, with their temperature, centre and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastequi.functional import arguments, dino_loss, distributed, ibot_loss
from fastequi.functional.dino import MOST_ITERATIONS, MOST_TEMP, TARGETS
from fastequi.functional.distributed import Group
from fastequi.kernels.precision import autocast_off


class Center(nn.Module):
    """Moving average of a teacher's logits, subtracted so that no prototype dominates.

    c ← m c + (1 - m) · mean of the step's rows (Caron et al., ICCV 2021, equation 4). Rows are
    collected by :meth:`add`, over all batches of a step, and take effect in :meth:`update`, so a
    skipped step leaves the centre unchanged. So do values whose mean is not finite. All buffers
    stay in float32, in a module of half precision too: sums of many rows are beyond float16.

    Args:
        prototypes: N.
        momentum: m.
        group: the processes whose rows make up the mean, or "world"; None: this one alone.
    """

    value: Tensor
    total: Tensor
    rows: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9, group: Group = None) -> None:
        super().__init__()
        prototypes = arguments.integer("prototypes", prototypes)
        self.momentum = arguments.number("momentum", momentum, least=0, most=1)
        self.group = group
        self.register_buffer("value", torch.zeros(prototypes, dtype=torch.float32))
        self.register_buffer("total", torch.zeros_like(self.value), persistent=False)
        self.register_buffer("rows", torch.zeros((), dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Center:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():  # their values before they were rounded
            if buffer.dtype != torch.float32:
                setattr(self, name, before[name].to(buffer.device, torch.float32))
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self.value = self.value.float()  # with assign=True it has the file's type

    @torch.no_grad()
    def add(self, rows: Tensor, prototypes: Tensor | None = None) -> None:
        """Logits [..., N] of this step, or rows [..., C] that enter a layer of weight [N, C]."""
        rows = rows.flatten(0, -2)
        total = rows.sum(0, dtype=torch.float32)
        if prototypes is not None:  # the mean is linear
            with autocast_off(rows.device):  # a mean in 8 bits would not move
                total = total @ prototypes.float().T
        self.total += total
        self.rows += len(rows)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the centre towards the mean of the rows added since the last update, if any."""
        group = distributed.current(self.group)
        if group is not None and group.size() > 1:
            both = torch.cat([self.total, self.rows[None]])
            dist.all_reduce(both, group=group)
            self.total.copy_(both[:-1])
            self.rows.copy_(both[-1])
        mean = self.total / self.rows.clamp(min=1)
        mean = torch.where(mean.isfinite(), mean, self.value)
        self.value.lerp_(mean, (1 - self.momentum) * (self.rows > 0))
        self.total.zero_()
        self.rows.zero_()


class DistillationLoss(nn.Module):
    """What both have in common: options, and the teacher's centre."""

    def __init__(
        self,
        prototypes: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        targets: str = "softmax",
        group: Group = None,
        inplace: bool = False,
        iterations: int = 3,
    ) -> None:
        """The arguments are the class's, see there."""
        super().__init__()
        arguments.one_of("targets", targets, TARGETS)
        distributed.check_group(group)
        self.prototypes = arguments.integer("prototypes", prototypes)
        self.iterations = arguments.integer("iterations", iterations, most=MOST_ITERATIONS)
        self.student_temp = arguments.number("student_temp", student_temp, above=0, most=MOST_TEMP)
        arguments.flags(inplace=inplace)
        self.targets, self.inplace = targets, inplace
        self.group = group
        center_momentum = arguments.number("center_momentum", center_momentum, least=0, most=1)
        centred = targets == "softmax"
        self.center = Center(prototypes, center_momentum, group) if centred else None

    def options(
        self, student: Tensor, teacher_temp: float, layers: dict[str, Tensor | None]
    ) -> dict[str, Any]:
        """Keywords of the function, the prototypes in `layers` among them."""
        given = [layer for layer in layers.values() if layer is not None]
        columns = given[0].shape[:1] if given else student.shape[-1:]
        if self.center is not None and len(given) != 1 and columns != (self.prototypes,):
            raise ValueError(
                f"student: expected {self.prototypes} prototypes, of which this loss was made, "
                f"got {columns[0] if columns else 0}"
            )
        return {
            **layers,
            "student_temp": self.student_temp,
            "teacher_temp": teacher_temp,
            "center": None if self.center is None else self.center.value,
            "targets": self.targets,
            "iterations": self.iterations,
            "group": self.group,
            "inplace": self.inplace,
        }

    def note(self, teacher: Tensor, teacher_prototypes: Tensor | None) -> None:
        """Adds the teacher's rows to the centre, after the loss has accepted them; as with batch
        normalisation, only in training mode."""
        if self.center is not None and self.training:
            self.center.add(teacher, teacher_prototypes)

    def update(self) -> None:
        """After the optimiser's step."""
        if self.center is not None:
            self.center.update()


class DINOLoss(DistillationLoss):
    """:func:`fastequi.functional.dino_loss` between a student's views and a teacher's.

    Args:
        prototypes: N.
        student_temp: temperature of the student.
        center_momentum: of the centre, for targets="softmax".
        targets: "softmax", centred, or "sinkhorn" (DINOv2), which needs no centre.
        group: the processes that share a centre or are balanced together: "world" for all that
            there are when the loss is called, or some of them, which can be neither copied nor
            pickled; None: this one alone.
        inplace: the gradient takes the memory of the student's logits; not for rows with
            prototypes, whose logits are not stored.
        iterations: of Sinkhorn-Knopp.

    In training mode :meth:`forward` collects the teacher's logits for the centre, which
    :meth:`update` moves; call it after each optimiser step. Inside a module that DDP wraps, DDP
    needs `broadcast_buffers=False` where a step has several batches: what other processes have
    collected would be replaced by the first one's.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        teacher_temp: float = 0.04,
        *,
        prototypes: Tensor | None = None,
        teacher_prototypes: Tensor | None = None,
    ) -> Tensor:
        """A scalar; call :meth:`update` after each step.

        Args:
            student, teacher: [S, B, N], [T, B, N] logits; with prototypes [..., C] rows.
            teacher_temp: temperature of the teacher.
            prototypes, teacher_prototypes: [N, C] weights of the last layers; both or neither.
        """
        layers = {"prototypes": prototypes, "teacher_prototypes": teacher_prototypes}
        loss = dino_loss(student, teacher, **self.options(student, teacher_temp, layers))
        self.note(teacher, teacher_prototypes)
        return loss


class IBOTLoss(DistillationLoss):
    """:func:`fastequi.functional.ibot_loss` on masked patches.

    Args:
        prototypes, student_temp, center_momentum, targets, group, inplace, iterations: as of
            :class:`DINOLoss`.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        teacher_temp: float = 0.04,
        *,
        prototypes: Tensor | None = None,
        teacher_prototypes: Tensor | None = None,
    ) -> Tensor:
        """A scalar; call :meth:`update` after each step.

        Args:
            student, teacher: [M, N] logits of masked patches; with prototypes [M, C] rows.
            weight: [M] of the patches, by default 1 / M; see `fastequi.data.views.batch.Masks`.
            teacher_temp, prototypes, teacher_prototypes: as in :class:`DINOLoss`.
        """
        layers = {"prototypes": prototypes, "teacher_prototypes": teacher_prototypes}
        options = self.options(student, teacher_temp, layers)
        loss = ibot_loss(student, teacher, weight=weight, **options)
        self.note(teacher, teacher_prototypes)
        return loss

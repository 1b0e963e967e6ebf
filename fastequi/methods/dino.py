"""DINO, iBOT and DINOv2 as bases: a student predicts its EMA teacher's output for other views.

DINO (Caron et al., ICCV 2021): class tokens of all crops against the teacher's of both global
views; of an encoder without one the mean token, as there with a ResNet. iBOT (Zhou et al., ICLR
2022) adds masked patches against the teacher's, which saw them, by the same head. DINOv2 (Oquab et
al., TMLR 2024): a head of its own for patches, teachers balanced by Sinkhorn-Knopp, KoLeo on the
class tokens.

z_equi are the student's, of the patches of both global views; those of masked patches are set to
zero. The decoders see no local crops.

Where the official codes differ: iBOT's patch centre averages the masked patches, whose logits are
the only ones computed (as in DINOv2), instead of all; the teacher's heads run in eval mode like its
encoder; temperatures and momenta change with every step, not by epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastequi.data.views.batch import Batch, Masks
from fastequi.functional.distributed import even_sizes, world
from fastequi.kernels.graphs import outside_of_graphs
from fastequi.losses.dino import DINOLoss, IBOTLoss
from fastequi.losses.koleo import KoLeoLoss
from fastequi.methods.base import Base, BaseOutput
from fastequi.methods.teacher import follow, momentum_at, quieten, spread
from fastequi.models.encoder import TokenEncoder, Tokens
from fastequi.models.heads import DINOHead, EquiHead
from fastequi.models.vit import VisionTransformer


@dataclass(frozen=True)
class Schedule:
    """Schedules; times are shares of the training.

    Attributes:
        momentum: of the teacher's weights at the start; half a cosine raises it to 1.
        teacher_temp: reached linearly from `first_teacher_temp` after `temp_warmup`.
        freeze: time during which the prototypes are frozen.
    """

    momentum: float = 0.996
    teacher_temp: float = 0.07
    first_teacher_temp: float = 0.04
    temp_warmup: float = 0.0375
    freeze: float = 0.00125

    def temp_at(self, progress: float) -> float:
        risen = 1.0 if progress >= self.temp_warmup else progress / self.temp_warmup
        return self.first_teacher_temp + risen * (self.teacher_temp - self.first_teacher_temp)


class Branch(nn.Module):
    """A student or a teacher.

    Args:
        encoder: a ViT with a class token, or any other without `equi_head`.
        head: of the class token, or of the mean token.
        patch_head: of the patches; the same object if it is shared, whose weights then count once.
        equi_head: gives z_equi from patches of an earlier block instead; the heads then have none.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        head: DINOHead,
        patch_head: DINOHead,
        equi_head: EquiHead | None = None,
    ) -> None:
        super().__init__()
        is_vit = isinstance(encoder, VisionTransformer)
        if is_vit and not encoder.has_class_token:
            raise ValueError("encoder: expected one with a class token")
        if equi_head is not None and not is_vit:
            raise ValueError(f"encoder: expected a ViT beside equi_head, got {type(encoder)}")
        self.encoder, self.head = encoder, head
        self.own_head = patch_head if patch_head is not head else None
        self.equi_head = equi_head

    @property
    def patch_head(self) -> DINOHead:
        return self.head if self.own_head is None else self.own_head

    @property
    def equi_dim(self) -> int:
        """Channels of z_equi; 0: there is none."""
        return (
            self.patch_head.equi_dim if self.equi_head is None else self.equi_head.proj.out_features
        )

    def encode(
        self,
        groups: Sequence[Tensor],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> tuple[list[Tokens], Tensor]:
        """The tokens of each group of images, and the first group's patches that z_equi is from.

        Args:
            groups: images [B_i, C, H_i, W_i].
            mask, mask_token: of the first group, as in :meth:`VisionTransformer.embed`.
        """
        encoder = self.encoder
        if not isinstance(encoder, VisionTransformer):
            tokens = encoder.forward_groups(groups)
            return tokens, tokens[0].patch
        embedded = [encoder.embed(groups[0], mask, mask_token), *map(encoder.embed, groups[1:])]
        block = len(encoder.blocks) if self.equi_head is None else self.equi_head.block
        last, middle = encoder.encode_both(embedded, block)
        tokens = [encoder.split(group) for group in last]
        early = encoder.split(middle[0]).patch
        return tokens, tokens[0].patch if self.equi_head is None else early

    def equivariant(self, patches: Tensor) -> Tensor:
        """z_equi [B, L, d_equi] of the patches that :meth:`encode` gives for it."""
        if self.equi_head is not None:
            return self.equi_head(patches)
        _, z_equi = self.patch_head.embed(patches.flatten(0, 1), equi=True)
        assert z_equi is not None
        return z_equi.unflatten(0, patches.shape[:2])


class SelfDistillation(Base):
    """DINO (no masks in the batch), iBOT, DINOv2.

    Args:
        student: its networks; the teacher starts as their copy.
        schedule: of momentum, temperature and the prototypes' freeze.
        targets: "softmax", centred, or "sinkhorn".
        masked: masked patches are predicted (iBOT, DINOv2); batches then carry masks.
        patch_weight: of that loss.
        koleo_weight: of KoLeo on the student's class tokens, summed over both global views.
        student_temp, center_momentum: of the losses.
        chunked: prototype layers and losses together, so that logits are never stored whole: less
            memory for two more matrix products.
    """

    def __init__(
        self,
        student: Branch,
        schedule: Schedule = Schedule(),
        targets: str = "softmax",
        masked: bool = False,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.0,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        chunked: bool = False,
    ) -> None:
        super().__init__()
        if masked and not isinstance(student.encoder, VisionTransformer):
            raise ValueError(f"student: expected a ViT for masks, got {type(student.encoder)}")
        self.chunked = chunked
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.schedule, self.patch_weight, self.koleo_weight = schedule, patch_weight, koleo_weight
        width = student.head.prototypes
        options = student_temp, center_momentum, targets, world(), not chunked
        self.class_loss = DINOLoss(width, *options)
        self.patch_loss = IBOTLoss(student.patch_head.prototypes, *options) if masked else None
        self.koleo_loss = KoLeoLoss(world())
        self.mask_token = nn.Parameter(torch.zeros(student.encoder.embed_dim)) if masked else None
        self.before_step(0.0)

    @property
    def backbone(self) -> TokenEncoder:
        return self.student.encoder

    @property
    def find_unused_parameters(self) -> bool:
        """Frozen prototypes have no gradient."""
        return self.schedule.freeze > 0

    @property
    def encoder(self) -> TokenEncoder:
        return self.teacher.encoder

    def train(self, mode: bool = True) -> SelfDistillation:
        """The teacher drops no path; see :func:`quieten`."""
        super().train(mode)
        quieten(self.teacher, mode)
        return self

    def before_step(self, progress: float) -> None:
        self.temp = self.schedule.temp_at(progress)
        self.frozen = progress < self.schedule.freeze

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        follow(self.teacher, self.student, momentum_at(self.schedule.momentum, progress), taken)
        for loss in (self.class_loss, self.patch_loss):
            if loss is not None:
                loss.update()

    def forward(self, v1: Tensor, v2: Tensor, batch: Batch) -> BaseOutput:
        views, masks = torch.cat([v1, v2]), batch.masks
        if (masks is None) != (self.patch_loss is None):
            raise ValueError(
                f"batch: expected {'no ' if masks is not None else ''}masks for this base"
            )
        hidden = None if masks is None else masks.mask.flatten(0, 1)
        groups = [views]
        if batch.local_crops is not None:
            groups.append(batch.local_crops.flatten(0, 1))
        (tokens, *local), source = self.student.encode(groups, hidden, self.mask_token)
        with torch.no_grad():
            seen = self.teacher.encoder.forward_features(views)
            target, _ = self.teacher.head.embed(seen.summary())
        unit, _ = self.student.head.embed(
            torch.cat([group.summary() for group in (tokens, *local)])
        )
        parts = self._classes(unit.unflatten(0, (-1, len(v1))), target.unflatten(0, (2, -1)))
        parts["loss"] = parts["class"]
        if self.koleo_weight:
            first, second = tokens.summary().chunk(2)
            sizes = even_sizes(first, self.koleo_loss.group)
            parts["koleo"] = self.koleo_loss(first, sizes) + self.koleo_loss(second, sizes)
            parts["loss"] = parts["loss"] + self.koleo_weight * parts["koleo"]
        patches, z_equi = tokens.patch, None
        if masks is not None:
            picked = seen.patch.flatten(0, 1)[masks.index]
            z_equi, parts["patch"] = self._patches(patches, picked, masks)
            if self.student.equi_head is not None:
                z_equi = self.student.equivariant(source)
                z_equi = z_equi.masked_fill(masks.mask.flatten(0, 1)[..., None], 0.0)
            parts["loss"] = parts["loss"] + self.patch_weight * parts["patch"]
        elif self.student.equi_dim:
            z_equi = self.student.equivariant(source)
        return BaseOutput(parts, patches, z_equi)

    # torch.compile would make a graph for every temperature of the warm-up; so these two, which
    # have fused kernels, run outside of its graphs.

    @outside_of_graphs
    def _classes(self, unit: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The "class" loss and statistics of unit vectors [V, B, C], the teacher's [2, B, C]."""
        student, teacher = self.student.head, self.teacher.head
        with torch.no_grad():
            teacher_logits = teacher.score(target)
        parts = self._statistics(unit[:2].flatten(0, 1), teacher_logits.flatten(0, 1))
        if self.chunked:
            layers = _layers(student.directions(self.frozen), teacher.directions())
            return {**parts, "class": self.class_loss(unit, target, self.temp, **layers)}
        logits = student.score(unit, self.frozen)
        return {**parts, "class": self.class_loss(logits, teacher_logits, self.temp)}

    @outside_of_graphs
    def _masked(self, unit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The loss of masked patches: unit vectors [M, C] of student and teacher."""
        assert self.patch_loss is not None
        student, teacher = self.student.patch_head, self.teacher.patch_head
        if self.chunked:
            layers = _layers(student.directions(self.frozen), teacher.directions())
            return self.patch_loss(unit, target, weight, self.temp, **layers)
        with torch.no_grad():
            teacher_logits = teacher.score(target)
        return self.patch_loss(student.score(unit, self.frozen), teacher_logits, weight, self.temp)

    def _patches(
        self, patches: Tensor, picked: Tensor, masks: Masks
    ) -> tuple[Tensor | None, Tensor]:
        """(z_equi, zero where masked; the loss of masked patches) of the student's [2B, L, D].

        picked: [M, D], the teacher's tokens at the masked places.
        """
        head, rows, z_equi = self.student.patch_head, patches.flatten(0, 1), None
        with torch.no_grad():
            target, _ = self.teacher.patch_head.embed(picked)
        if head.equi_dim:
            unit, flat = head.embed(rows, equi=True)
            assert flat is not None
            kept = flat.masked_fill(masks.mask.flatten()[:, None], 0.0)
            z_equi, unit = kept.unflatten(0, patches.shape[:2]), unit[masks.index]
        else:
            unit, _ = head.embed(rows[masks.index])
        return z_equi, self._masked(unit, target, masks.weight)

    @torch.no_grad()
    def _statistics(self, unit: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
        """Statistics that show a collapse, from class tokens of the global views.

        "std", the :func:`spread` of the student's unit vectors; "teacher_entropy" in nats, mean
        over rows (log N if it is uniform), before any balancing; "prototypes", how many the
        teacher uses: the exponential of the entropy of its mean distribution.
        """
        center = self.class_loss.center
        logits = teacher_logits.to(torch.promote_types(teacher_logits.dtype, torch.float32))
        logits = logits if center is None else logits - center.value
        q = torch.softmax(logits / self.temp, -1)
        mean = q.mean(0)
        return {
            "std": spread(unit),
            "teacher_entropy": torch.special.entr(q).sum(-1).mean(),
            "prototypes": torch.special.entr(mean).sum().exp(),
        }

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's: "patch", "cls" (encoder), "z_inv" (unit vectors of the head), "z_equi"."""
        teacher = self.teacher
        (tokens,), source = teacher.encode([images])
        unit, z_equi = teacher.patch_head.embed(tokens.patch.flatten(0, 1), equi=True)
        assert z_equi is not None
        z_equi = z_equi.unflatten(0, tokens.patch.shape[:2])
        if teacher.equi_head is not None:
            z_equi = teacher.equivariant(source)
        z_inv = unit.unflatten(0, tokens.patch.shape[:2])
        found = {"patch": tokens.patch, "z_inv": z_inv, "z_equi": z_equi}
        return found if tokens.cls is None else {**found, "cls": tokens.cls}

    def equivariant(self, images: Tensor) -> Tensor:
        _, source = self.student.encode([images])
        return self.student.equivariant(source)


def _layers(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Keywords of the losses for both prototype layers' weights [N, C]."""
    return {"prototypes": student, "teacher_prototypes": teacher}

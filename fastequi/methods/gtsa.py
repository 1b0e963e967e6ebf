"""GTSA: two crops have equal features where they overlap, after rotation (arXiv 2304.08014).

The student sees all crops; its EMA, the teacher, sees the two global ones. Each crop was rotated by
0, 90, 180 or 270 degrees. Over all pairs of a student's crop and another crop of the teacher:

- crop loss: both maps over their common box, the teacher's rotated to the student's orientation;
- patch correspondence: every patch and its best match in the other map;

and for every crop, the four-way cross-entropy of its rotation. The encoder's class token takes part
in its attention, as in the authors' code; its output is dropped and used nowhere. From their code
we also take that the rotation head ends in LayerNorm and a linear layer. Our choices, where paper
and code say nothing: residuals around each of the projector's convolutions; means over pairs count
every pair once; evaluation uses the teacher's encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.data.views.batch import Batch, Overlaps, Views
from fastequi.functional import correspondence_loss, crop_align_loss, rot90_batch
from fastequi.methods.anchor import Anchor, add_anchor
from fastequi.methods.method import Method
from fastequi.methods.teacher import follow, momentum_at, quieten, spread
from fastequi.models.encoder import TokenEncoder
from fastequi.models.maps import MapPredictor, MapProjector, RotationHead

GLOBAL_PAIRS = [(0, 1), (1, 0)]  # (student's view, teacher's)


def local_pairs(crops: int) -> list[tuple[int, int]]:
    """Every local crop with both global ones, in the order of `Overlaps.of_local_crops`."""
    return [(crop, view) for crop in range(crops) for view in (0, 1)]


@dataclass(frozen=True)
class Weights:
    """Weights of the losses (the crop loss has 1), and the teacher's momentum.

    Attributes:
        correspondence, rotation: weights.
        correspondence_from: share of the training after which correspondence counts.
        momentum: of the teacher's weights at the start; half a cosine raises it to 1.
    """

    correspondence: float = 0.5
    rotation: float = 0.5
    correspondence_from: float = 0.1
    momentum: float = 0.996


class Mapper(nn.Module):
    """An encoder and its projector: images to maps of patches."""

    def __init__(self, encoder: TokenEncoder, projector: MapProjector) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def patches(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Patch tokens [N, h, w, C] of each group of images [N, C, H, W]."""
        tokens = self.encoder.forward_groups(groups)
        grids = [self.encoder.grid_size(*images.shape[-2:]) for images in groups]
        pairs = zip(tokens, grids, strict=True)
        return [each.patch.unflatten(1, grid) for each, grid in pairs]


class GTSA(Method):
    """The GTSA method; batches need rotations and overlaps.

    Args:
        student: its encoder and projector; the teacher starts as their copy.
        predictor: of the student's maps.
        rotation_head: classifies the rotation from the mean token.
        views: normalisation of the images.
        bins: along a side of the common box, for global and for local crops.
        weights: of the losses, and their schedule.
        anchor: a further loss that holds the encoder near its first weights, or None.
    """

    def __init__(
        self,
        student: Mapper,
        predictor: MapPredictor,
        rotation_head: RotationHead,
        views: Views,
        bins: tuple[int, int] = (10, 4),
        weights: Weights = Weights(),
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.anchor = anchor
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.predictor, self.rotation_head = predictor, rotation_head
        self.views, self.bins, self.weights = views, bins, weights
        self.before_step(0.0)

    @property
    def backbone(self) -> TokenEncoder:
        return self.student.encoder

    @property
    def encoder(self) -> TokenEncoder:
        return self.teacher.encoder

    def train(self, mode: bool = True) -> GTSA:
        """The teacher drops no path; see :func:`quieten`."""
        super().train(mode)
        quieten(self.teacher, mode)
        return self

    def begin(self) -> None:
        if self.anchor is not None:
            self.anchor.begin(self.backbone)

    def before_step(self, progress: float) -> None:
        self.matches = progress >= self.weights.correspondence_from

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        momentum = momentum_at(self.weights.momentum, progress)
        follow(self.teacher, self.student, momentum, taken)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss, its parts ("crop", "correspondence", "rotation"), rotation "accuracy", "std"."""
        overlaps = batch.overlaps
        if overlaps is None:
            raise ValueError("batch: expected one with overlaps, where GTSA compares crops")
        views = torch.cat([batch.v1, self._normalised(batch.u, batch.v1.dtype)])
        groups = [views] if batch.local_crops is None else [views, batch.local_crops.flatten(0, 1)]
        patches = self.student.patches(groups)
        maps = [self.predictor(self.student.projector(x)) for x in patches]
        with torch.no_grad():
            target = self.teacher.projector(self.teacher.patches([views])[0])
        # [views, B, h, w, C]
        shaped = [x.unflatten(0, (-1, len(batch))) for x in (*maps, target)]
        parts = self._compare(shaped[:-1], shaped[-1], overlaps)
        tokens = torch.cat([x.mean((1, 2)) for x in patches])
        logits, rotations = self.rotation_head(tokens).float(), overlaps.rotations.flatten()
        parts["rotation"] = F.cross_entropy(logits, rotations)
        weights = self.weights
        parts["loss"] = parts["crop"] + weights.rotation * parts["rotation"]
        if self.matches:
            parts["loss"] = parts["loss"] + weights.correspondence * parts["correspondence"]
        add_anchor(parts, self.anchor, [views], patches[0].flatten(1, 2))
        with torch.no_grad():
            parts["accuracy"] = (logits.argmax(1) == rotations).float().mean()
            parts["std"] = spread(F.normalize(target.float(), dim=-1).flatten(0, 2))
        return parts

    def _normalised(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 or uint16 images normalised like the other views, not rotated again."""
        upright = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        mean, std = self.views.mean, self.views.std
        return rot90_batch(images, turns=upright, mean=mean, std=std, dtype=dtype)

    def _compare(
        self, maps: Sequence[Tensor], target: Tensor, overlaps: Overlaps
    ) -> dict[str, Tensor]:
        """ "crop" and "correspondence", means over all pairs.

        Args:
            maps: the student's, of the global crops [2, B, h, w, C] and, if any, of the local ones.
            target: [2, B, h, w, C] the teacher's.
        """
        scale = 1 / self.backbone.patch_size
        kinds = [(maps[0], overlaps.of_globals, GLOBAL_PAIRS, self.bins[0])]
        if overlaps.of_local_crops is not None:
            kinds.append(
                (maps[1], overlaps.of_local_crops, local_pairs(len(maps[1])), self.bins[1])
            )
        sums: dict[str, list[Tensor]] = {"crop": []}
        for ours, shared, pairs, bins in kinds:
            where = shared.own, shared.other, shared.rotations
            crop = crop_align_loss(ours, target, *where, bins=bins, scale=scale, pairs=pairs)
            sums["crop"].append(len(pairs) * crop)
            if self.matches:
                rows = ours.flatten(2, 3)
                top = max(rows.shape[2] // 2, 1)
                matched = correspondence_loss(rows, target.flatten(2, 3), top=top, pairs=pairs)
                sums.setdefault("correspondence", []).append(len(pairs) * matched)
        count = sum(len(pairs) for _, _, pairs, _ in kinds)
        return {name: torch.stack(values).sum() / count for name, values in sums.items()}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's "patch" tokens and "projected", the maps that the losses compare."""
        (maps,) = self.teacher.patches([images])
        projected = self.teacher.projector(maps)
        return {"patch": maps.flatten(1, 2), "projected": projected.flatten(1, 2)}

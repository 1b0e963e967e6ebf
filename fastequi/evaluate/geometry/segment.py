"""`fastequi eval segment`: classes of pixels, by a linear head and by retrieval without training.

Both see frozen tokens of training images and their masks (`linear_head.py`, `retrieval.py`). Scores
of tokens are upsampled bilinearly to the mask's own size; of several scales the mean is taken. The
figures are of all test pixels that are labelled (`iou.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.dense_maps import Sizing, held_maps, upsampled
from fastequi.evaluate.geometry.figures import Measured, table
from fastequi.evaluate.geometry.frame import Found, Say, about
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.iou import MEASURE, MOST_FREQUENT, areas, class_iou
from fastequi.evaluate.geometry.linear_head import Fit, Known, fitted
from fastequi.evaluate.geometry.masks import IGNORED, MaskSet, described
from fastequi.evaluate.geometry.published_figures import of_segments
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.retrieval import Search, class_counts, memory_of

METHODS = ("linear", "retrieval")

Predict = Callable[[Tensor], Tensor]
"""Scores [h, w, C] of tokens [h, w, D]."""


@dataclass(frozen=True)
class Segmentation:
    """What is fitted, and how.

    Attributes:
        sizing: of images.
        methods: of METHODS.
        fit: of the linear head.
        memory: patches that the retrieval remembers at most.
        neighbours, temperature: of the retrieval.
        seed: of the patches that it remembers.
        search: what finds nearest patches.
    """

    sizing: Sizing = Sizing()  # noqa: RUF009
    methods: tuple[str, ...] = METHODS
    fit: Fit = field(default_factory=Fit)
    memory: int = 100_000
    neighbours: int = 30
    temperature: float = 0.02
    seed: int = 0
    search: Search = "torch"

    def title(self, method: str) -> str:
        """Of a method's table."""
        if method == "linear":
            return f"linear head, {self.fit.steps:,} steps"
        return f"retrieval, k = {self.neighbours}, T = {self.temperature:g}"

    def expect_memory(self, maps: int) -> None:
        """Raises ValueError unless there is room for a patch of each of some maps, and for the
        neighbours."""
        if self.memory < maps:
            raise ValueError(
                f"--memory: expected at least {maps}, one patch of each training image and scale, "
                f"got {self.memory}"
            )
        if self.neighbours > self.memory:
            raise ValueError(
                f"--neighbours: expected at most {self.memory}, as --memory, got {self.neighbours}"
            )

    def predictor(
        self,
        method: str,
        maps: Sequence[Tensor],
        masks: Iterable[Tensor],
        classes: int,
        device: torch.device,
        say: Say,
    ) -> Predict:
        """A method, given maps [h, w, D] and masks [H, W] of training images."""
        both = zip(maps, masks, strict=True)
        if method == "linear":
            known = [Known.of(m, (x.shape[0], x.shape[1]), _labelled) for x, m in both]
            return fitted(maps, known, classes, _cross_entropy, device, self.fit, say)
        counts = (class_counts(m, (x.shape[0], x.shape[1]), classes) for x, m in both)
        memory = memory_of(
            maps,
            counts,
            self.memory,
            device,
            neighbours=self.neighbours,
            temperature=self.temperature,
            seed=self.seed,
            search=self.search,
        )
        if self.neighbours > len(memory.keys):
            raise ValueError(
                f"--neighbours: expected at most {len(memory.keys)}, as many patches as are "
                f"remembered, got {self.neighbours}"
            )
        return memory


def evaluate_segments(
    open_set: Callable[..., MaskSet],
    what: Segmentation,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table for each method; see the module.

    Args:
        open_set: given `read`, opens and checks the images and masks.
        what: the methods and their settings.
        grids: what gives tokens, baselines first.
        encoders: whose channels and values the images are read with.
        say: told how far it is.
    """
    what.sizing.expect_fits(grids)
    say("checking images and masks")
    masks = open_set(read=Reading.of(encoders))
    masks.expect_labels()
    if "retrieval" in what.methods:
        what.expect_memory(len(masks.pairs.train) * len(what.sizing.scales))
    constant = _most_frequent(masks)
    rows: dict[str, list[Measured]] = {
        method: [Measured(MOST_FREQUENT, _of_constant(constant, masks))] for method in what.methods
    }
    for each in grids:
        maps = held_maps(each, masks.pairs.train, masks.read, what.sizing, "--train-images", say)
        predict: dict[tuple[str, str], Predict] = {}
        for name in each.names:
            scaled = [x for of_image in maps.pop(name) for x in of_image]
            pairs = [pair for pair in masks.pairs.train for _ in what.sizing.scales]
            for method in sorted(what.methods, reverse=True):  # retrieval first: it may refuse
                told = about(each.row(name).label, say)
                told(what.title(method))
                of_pairs = map(masks.mask, pairs)
                predict[name, method] = what.predictor(
                    method, scaled, of_pairs, masks.classes, each.device, told
                )
        for (name, method), sums in _tested(each, predict, masks, what.sizing, say).items():
            rows[method].append(Measured(each.row(name), sums))
    return Found(
        tables={what.title(method): table(MEASURE, found) for method, found in rows.items()},
        document={
            **described(masks),
            "settings": what,
            "class_iou": {
                what.title(method): {
                    each.row.label: _listed(class_iou(each.sums.sum(0))) for each in found
                }
                for method, found in rows.items()
            },
        },
        remarks=[
            *masks.remarks(is_fitted=True),
            *of_segments(masks.layout),
        ],
        tested=masks.test,
        fitted=masks.train,
    )


def _tested(
    grids: Grids,
    predict: Mapping[tuple[str, str], Predict],
    masks: MaskSet,
    sizing: Sizing,
    say: Say,
) -> dict[tuple[str, str], Tensor]:
    """[N, 3 · classes] areas of the test images by name and method."""
    found: dict[tuple[str, str], list[Tensor]] = {key: [] for key in predict}
    label, count = grids.encoder or grids.names[0], len(masks.pairs.test)
    for i, pair in enumerate(masks.pairs.test):
        say(f"{label}: {i + 1} of {count} test images")
        maps, truth = sizing.maps(grids, masks.read(pair.image)), masks.mask(pair)
        for (name, method), each in predict.items():
            scores = [each(part[name]) for part in maps]
            chosen = classes_of(scores, truth.shape, is_logits=method == "linear")
            found[name, method].append(areas(chosen.cpu(), truth, masks.classes))
    return {key: torch.stack(parts) for key, parts in found.items()}


def classes_of(scores: Sequence[Tensor], size: Sequence[int], is_logits: bool) -> Tensor:
    """[H, W] int64: the classes of the highest mean probability.

    Args:
        scores: [h, w, C] of every scale.
        size: (H, W).
        is_logits: whether a softmax, of the upsampled scores, makes them probabilities.
    """
    total = torch.zeros((), device=scores[0].device)
    for each in scores:
        whole = upsampled(each, size)
        total = total + (whole.softmax(0) if is_logits and len(scores) > 1 else whole)
    return total.argmax(0)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes.long())


def _labelled(classes: Tensor) -> Tensor:
    return classes != IGNORED


def _most_frequent(masks: MaskSet) -> int:
    """The class of most training pixels."""
    counts = torch.zeros(masks.classes, dtype=torch.int64)
    for mask in map(masks.mask, masks.pairs.train):
        counts += torch.bincount(mask[mask != IGNORED].long(), minlength=masks.classes)
    return int(counts.argmax())


def _of_constant(found: int, masks: MaskSet) -> Tensor:
    truth = (masks.mask(pair) for pair in masks.pairs.test)
    return torch.stack([areas(torch.full_like(t, found), t, masks.classes) for t in truth])


def _listed(values: Tensor) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [None if value != value else value for value in values.tolist()]

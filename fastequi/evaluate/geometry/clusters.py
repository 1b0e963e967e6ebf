"""`fastequi eval clusters`: do tokens fall into the classes of an image without labels?

k-means of tokens of unit length; a token's cluster is that of all pixels of its cell. Then clusters
get classes, in one of two ways:

matching   as many clusters as classes, each class one cluster, so that the sum of their IoU is
           largest (Hungarian method)
majority   many clusters ("over-clustering"), each the class of most of its pixels

By default centres and classes of clusters are found on the test images themselves, as in Leopart's
protocol (Ziegler and Asano, arXiv 2204.13101): no classifier is tested, but how pure clusters are,
and many clusters of few images are pure by themselves: compare with the baselines, which share
that. `fit_on="train"` finds both on the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.assignment import assignment
from fastequi.evaluate.geometry.dense_maps import Sizing, held_maps
from fastequi.evaluate.geometry.figures import Measured, table
from fastequi.evaluate.geometry.frame import Found, Say
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.iou import MEASURE, MOST_FREQUENT
from fastequi.evaluate.geometry.kmeans import assigned, kmeans
from fastequi.evaluate.geometry.masks import MaskSet, described
from fastequi.evaluate.geometry.pair_folders import Pair
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.retrieval import class_counts

_MANY = 500  # as Leopart's on Pascal VOC
_TOKENS_EACH = 20  # of a cluster at least, where their number is chosen


@dataclass(frozen=True)
class Clustering:
    """How tokens are clustered.

    Attributes:
        sizing: of images, one scale.
        many: clusters of the over-clustering; 0: 500, or a twentieth of the tokens if that is less.
        tokens: that centres are found from, at most, equally many of each image.
        fit_on: "test" or "train", the images that centres and classes of clusters are found on.
        starts: of k-means with as many clusters as classes; with many there is one.
        seed: of k-means and of the tokens.
    """

    sizing: Sizing = Sizing()  # noqa: RUF009
    many: int = 0
    tokens: int = 100_000
    fit_on: str = "test"
    starts: int = 5
    seed: int = 0


def evaluate_clusters(
    open_set: Callable[..., MaskSet],
    what: Clustering,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table for matching and one for the majority; see the module.

    Args:
        open_set: given `read`, opens and checks the images and masks.
        what: the settings.
        grids: what gives tokens, baselines first.
        encoders: whose channels and values the images are read with.
        say: told how far it is.

    Raises:
        ValueError: fewer tokens than clusters or than images, or no label where clusters get their
            classes.
    """
    what.sizing.expect_fits(grids)
    say("checking images and masks")
    masks = open_set(read=Reading.of(encoders))
    if what.fit_on == "train":
        masks.expect_labels()
    fit = masks.pairs.test if what.fit_on == "test" else masks.pairs.train
    if what.tokens < len(fit):
        raise ValueError(
            f"--tokens: expected at least {len(fit)}, one of each image, got {what.tokens}"
        )
    rows: dict[str, list[Measured]] = {}
    for each in grids:
        held = _tokens(each, masks, fit, "--train-images", what, say)
        judged = held
        if what.fit_on != "test":
            judged = _tokens(each, masks, masks.pairs.test, "--test-images", what, say)
        for name in each.names:
            points = _drawn([cells.tokens for cells in held[name]], what.tokens, what.seed)
            whole = sum(len(cells.tokens) for cells in held[name])
            if len(points) < masks.classes <= whole:
                raise ValueError(
                    f"--tokens: expected enough for {masks.classes} clusters, one for each class, "
                    f"got {what.tokens}, which gives {len(points)} tokens of {len(fit)} images"
                )
            if not what.many:
                many = max(masks.classes, min(_MANY, len(points) // _TOKENS_EACH))
                what = replace(what, many=many)
            pair = held[name], judged[name]
            for title, sums in _judged(points, *pair, masks.classes, what, say).items():
                if title not in rows:
                    rows[title] = [_constant(*pair)]
                rows[title].append(Measured(each.row(name), sums))
    return Found(
        tables={title: table(MEASURE, found) for title, found in rows.items()},
        document={**described(masks), "settings": what},
        remarks=masks.remarks(is_fitted=what.fit_on == "train"),
        tested=masks.test,
        fitted=masks.test if what.fit_on == "test" else masks.train,
    )


@dataclass(frozen=True)
class Cells:
    """Tokens and classes of an image: [P, D] of unit length, and pixels [P, C] of their cells."""

    tokens: Tensor
    counts: Tensor


def _tokens(
    grids: Grids, masks: MaskSet, pairs: Sequence[Pair], option: str, what: Clustering, say: Say
) -> dict[str, list[Cells]]:
    maps = held_maps(grids, pairs, masks.read, what.sizing, option, say)
    sizes = [(x.shape[0], x.shape[1]) for (x,) in maps[grids.names[0]]]
    counts = [
        class_counts(masks.mask(pair), size, masks.classes).flatten(0, 1)
        for pair, size in zip(pairs, sizes, strict=True)
    ]
    return {
        name: [
            Cells(F.normalize(x.flatten(0, 1), dim=1), pixels)
            for (x,), pixels in zip(maps.pop(name), counts, strict=True)
        ]
        for name in grids.names
    }


def _judged(
    points: Tensor,
    fit: Sequence[Cells],
    test: Sequence[Cells],
    classes: int,
    what: Clustering,
    say: Say,
) -> dict[str, Tensor]:
    """[N, 3 · classes] areas of the test images by the table's title."""
    for option, count in (("--data", classes), ("--clusters", what.many)):
        if count > len(points):
            raise ValueError(
                f"{option}: expected at most {len(points)} clusters, as many as tokens, got {count}"
            )
    found = {}
    for title, count, starts, of_clusters in (
        (f"{classes} clusters, matched to classes", classes, what.starts, matched),
        (f"{what.many} clusters, majority of their pixels", what.many, 1, majority),
    ):
        say(f"k-means: {count} clusters")
        centres = kmeans(points, count, starts=starts, seed=what.seed)
        joint = sum(clusters_by_class(each, centres) for each in fit)
        assert isinstance(joint, Tensor)
        meaning = of_clusters(joint)
        sums = [areas_of(clusters_by_class(each, centres), meaning) for each in test]
        found[title] = torch.stack(sums)
    return found


def _drawn(tokens: Sequence[Tensor], most: int, seed: int) -> Tensor:
    """[N, D] tokens, of each image at most its share of `most`."""
    share = max(1, most // len(tokens))
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([x[torch.randperm(len(x), generator=generator)[:share]] for x in tokens])


def clusters_by_class(cells: Cells, centres: Tensor) -> Tensor:
    """[K, C] float64: pixels of every class in every cluster."""
    label = assigned(cells.tokens, centres)[0]
    found = torch.zeros(len(centres), cells.counts.shape[1], dtype=torch.float64)
    return found.index_add_(0, label, cells.counts.double())


def matched(joint: Tensor) -> Tensor:
    """[K] the class of every cluster: each class one, so that the sum of IoU is largest.

    Args:
        joint: [K, C] pixels of every class in every cluster, K = C.
    """
    union = joint.sum(1, keepdim=True) + joint.sum(0) - joint
    iou = torch.where(union > 0, joint / union.clamp(min=1), 0)
    return torch.from_numpy(assignment(-iou.numpy()))


def majority(joint: Tensor) -> Tensor:
    """[K] the class of most pixels of every cluster; of one without pixels the most frequent."""
    return torch.where(joint.sum(1) > 0, joint.argmax(1), joint.sum(0).argmax())


def areas_of(joint: Tensor, meaning: Tensor) -> Tensor:
    """[3 · C] float64 areas, as `fastequi.evaluate.geometry.iou.areas` gives them, of an image.

    Args:
        joint: [K, C] its pixels of every class in every cluster.
        meaning: [K] the class of every cluster.
    """
    classes = joint.shape[1]
    confusion = joint.new_zeros(classes, classes).index_add_(0, meaning, joint)  # found, true
    return torch.cat([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def _constant(fit: Sequence[Cells], test: Sequence[Cells]) -> Measured:
    """One cluster of everything."""
    whole = [each.counts.double().sum(0, keepdim=True) for each in fit]
    meaning = majority(torch.stack(whole).sum(0))
    sums = [areas_of(each.counts.double().sum(0, keepdim=True), meaning) for each in test]
    return Measured(MOST_FREQUENT, torch.stack(sums))

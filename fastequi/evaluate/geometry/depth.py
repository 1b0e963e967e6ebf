"""`fastequi eval depth`: depths of pixels, by a linear head that weighs bins of depth.

As DINOv2's linear depth evaluation (arXiv 2304.07193), whose head is AdaBins' (Bhat et al., arXiv
2011.14141) with fixed bins: a linear layer on frozen tokens (`linear_head.py`) gives 256 logits a
point, which are upsampled; relu(logit) + 0.1, divided by its sum, weighs bins of equal distance.
The loss is the scale-invariant one of logarithms (Eigen et al., 2014; λ = .85 as AdaBins'). DINOv2
adds half of a loss of gradients, and features of the image mirrored; both are left out here.

Figures are computed for each image and then averaged, as these papers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.dense_maps import Sizing, held_maps, upsampled
from fastequi.evaluate.geometry.depth_sets import DepthSet
from fastequi.evaluate.geometry.figures import Figure, Measured, means, sums_of_values, table
from fastequi.evaluate.geometry.frame import Found, Say, about
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.linear_head import POINTS, Fit, Known, Linear, fitted
from fastequi.evaluate.geometry.published_figures import of_depths
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.results import Row, documented
from fastequi.runtime.devices import expect_memory

MEASURE = means(
    Figure("RMSE, m", "lower"),
    Figure("AbsRel", "lower"),
    *(Figure(f"δ{i}") for i in (1, 2, 3)),
)
MEAN = Row(encoder=None, features="mean depth", is_baseline=True)
_FLOOR = 0.1  # added to every bin's weight
_EPS = 1e-3  # metres, in logarithms
_SCALE = 0.15  # 1 - λ: what the square of the mean counts


@dataclass(frozen=True)
class DepthHead:
    """How depths are fitted.

    Attributes:
        sizing: of images, one scale.
        bins: how many.
        fit: of the linear layer.
    """

    sizing: Sizing = Sizing()  # noqa: RUF009
    bins: int = 256
    fit: Fit = field(default_factory=lambda: Fit(weight_decay=0.01))


def evaluate_depths(
    open_set: Callable[..., DepthSet],
    what: DepthHead,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """One table; see the module.

    Args:
        open_set: given `read`, opens and checks the images and depths.
        what: the settings.
        grids: what gives tokens, baselines first.
        encoders: whose channels and values the images are read with.
        say: told how far it is.
    """
    what.sizing.expect_fits(grids)
    each_bin = 3 * 4 * what.fit.batch * what.fit.pixels  # logits, weights, gradients
    expect_memory("--bins", what.bins, each_bin, grids[-1].device)
    say("checking images and depths")
    depths = open_set(read=Reading.of(encoders))
    bins = torch.linspace(depths.nearest, depths.farthest, what.bins)
    rows = [Measured(MEAN, _of_constant(depths))]
    left_out = 0
    for each in grids:
        maps = held_maps(each, depths.pairs.train, depths.read, what.sizing, "--train-images", say)
        heads = {}
        for name in each.names:
            found = [x for (x,) in maps.pop(name)]
            known = [
                Known.of(depths.depth(pair), (x.shape[0], x.shape[1]), _is_known)
                for pair, x in zip(depths.pairs.train, found, strict=True)
            ]
            without = sum(not len(of_image.values) for of_image in known)
            left_out = max(left_out, without)
            if without == len(known):
                raise ValueError(
                    f"--data: expected depths at {POINTS}x{POINTS} places of the patches of images "
                    "for fitting, none is known there"
                )
            loss = _Loss(bins.to(each.device))
            told = about(each.row(name).label, say)
            heads[name] = fitted(found, known, what.bins, loss, each.device, what.fit, told)
        for name, sums in _tested(each, heads, bins.to(each.device), depths, what, say).items():
            rows.append(Measured(each.row(name), sums))
    without_truth = int((rows[0].sums == 0).all(1).sum())
    title = f"linear head of {what.bins} bins, {what.fit.steps:,} steps"
    return Found(
        tables={title: table(MEASURE, rows)},
        document={
            **documented(depths.data),
            "train_images": len(depths.train),
            "test_images": len(depths.test),
            "train_images_without_depth": left_out,
            "test_images_without_depth": without_truth,
            "metres_per_unit": depths.metres,
            "metres": [depths.nearest, depths.farthest],
            "crop": depths.crop,
            "settings": what,
        },
        remarks=[
            f"{count} of {whole} images for {use} have no known depth"
            for use, count, whole in (
                ("fitting", left_out, len(depths.train)),
                ("testing", without_truth, len(depths.test)),
            )
            if count
        ]
        + of_depths(depths.crop),
        tested=depths.test,
        fitted=depths.train,
    )


def weighed(logits: Tensor, bins: Tensor) -> Tensor:
    """[P] metres of logits [P, bins]: the mean of bins [bins], linearly normalised."""
    weights = logits.relu() + _FLOOR
    return (weights @ bins) / weights.sum(-1)


def scale_invariant(found: Tensor, truth: Tensor) -> Tensor:
    """√(Var g + .15 · mean(g)²) of g = log(found) - log(truth), of depths [P] in metres; the
    variance is that of a sample (n - 1)."""
    g = (found + _EPS).log() - (truth + _EPS).log()
    return (g.var() + _SCALE * g.mean().square()).sqrt()


def _is_known(metres: Tensor) -> Tensor:
    return ~metres.isnan()


@dataclass(frozen=True)
class _Loss:
    bins: Tensor

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        return scale_invariant(weighed(logits, self.bins), truth)


def depth_figures(found: Tensor, truth: Tensor) -> Tensor:
    """[5] of an image: RMSE, AbsRel, and the shares of pixels whose ratio to the truth, or the
    inverse, is below 1.25, 1.25², 1.25³; NaN of an image without a known depth.

    Args:
        found: [H, W] metres.
        truth: [H, W] metres, NaN where it is not known.
    """
    known = ~truth.isnan()
    f, t = found[known].double(), truth[known].double()
    ratio = torch.maximum(f / t, t / f)
    near = [(ratio < 1.25**i).double().mean() for i in (1, 2, 3)]
    return torch.stack([(f - t).square().mean().sqrt(), ((f - t).abs() / t).mean(), *near])


def _tested(
    grids: Grids,
    heads: Mapping[str, Linear],
    bins: Tensor,
    depths: DepthSet,
    what: DepthHead,
    say: Say,
) -> dict[str, Tensor]:
    """[N, 10] sums of the figures of the test images by the features' names."""
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    label, count = grids.encoder or grids.names[0], len(depths.pairs.test)
    for i, pair in enumerate(depths.pairs.test):
        say(f"{label}: {i + 1} of {count} test images")
        (maps,), truth = what.sizing.maps(grids, depths.read(pair.image)), depths.judged(pair)
        for name, head in heads.items():
            metres = predicted(head(maps[name]), bins, truth.shape)
            found[name].append(depth_figures(metres.cpu(), truth))
    return {name: sums_of_values(torch.stack(parts)) for name, parts in found.items()}


def predicted(logits: Tensor, bins: Tensor, size: torch.Size) -> Tensor:
    """[H, W] metres of logits [h, w, bins] of tokens: at POINTS² points a token, then bilinear."""
    points = POINTS * logits.shape[0], POINTS * logits.shape[1]
    fine = upsampled(logits, points).flatten(1).mT
    metres = weighed(fine, bins).view(1, 1, *points)
    return F.interpolate(metres, list(size), mode="bilinear")[0, 0]


def _of_constant(depths: DepthSet) -> Tensor:
    """The mean of all known depths for fitting, everywhere."""
    known = torch.stack([
        torch.stack([metres.nansum(), (~metres.isnan()).sum()]).double()
        for metres in map(depths.depth, depths.pairs.train)
    ]).sum(0)  # fmt: skip
    mean = known[0] / known[1]
    truth = map(depths.judged, depths.pairs.test)
    return sums_of_values(torch.stack([depth_figures(mean.expand_as(t), t) for t in truth]))

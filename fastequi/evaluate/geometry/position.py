"""`fastequi eval position`: how much of its own place does a token tell?

Ridge regression from a token to its (row, column), each from -1 to 1 across the grid; fitted on
tokens of training photographs, R² on those of test ones. This is the question of RASA, removal of
absolute spatial attributes (Venkataramanan et al., Franca, CVPR 2026, arXiv 2507.14137): a token
that says where it is answers less to what is there.

The two directions that the regression found are then projected out of all tokens, and the place is
read anew from what is left: iterative nullspace projection (Ravfogel et al., ACL 2020, arXiv
2004.07667), with RASA's two directions a round and at most its nine rounds. It ends when the place
is read with an R² below 0.05 on held-out training photographs. The difference to RASA: its
regressors are fitted by AdamW through a sigmoid, without an intercept; these are the exact minima,
of standardised channels.

All that is kept of the training tokens are their first and second moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.blocks import unknown_blocks, with_blocks
from fastequi.evaluate.geometry.figures import Figure, Measure, Measured, table
from fastequi.evaluate.geometry.frame import Found, Say, named, without
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.windows import cut_windows, expect_windows
from fastequi.evaluate.photo_windows import images_for
from fastequi.evaluate.results import documented

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of channels with variance 1
ROUNDS = 9
GONE = 0.05  # R² below which a place is not read any more
_BATCH = 16
_AXES = 2


def places(grid: tuple[int, int]) -> Tensor:
    """[h·w, 2] float64 (row, column) of a grid's tokens, -1 and 1 at its borders, row by row."""
    axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)


@dataclass(frozen=True)
class Moments:
    """Sums over tokens x [D] and their targets y [2], float64.

    Attributes:
        count: how many.
        x, y, xx, xy: [D], [2], [D, D], [D, 2].
        yy: [2], squares.
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, tokens: Tensor, targets: Tensor) -> Moments:
        """Of tokens [P, D] and targets [P, 2]."""
        x, y = tokens.double(), targets.to(tokens.device)
        return cls(len(x), x.sum(0), y.sum(0), x.mT @ x, x.mT @ y, y.square().sum(0))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )


@dataclass(frozen=True)
class Reader:
    """A linear map from a token to its place.

    Attributes:
        direction: [D, 2], of standardised channels.
        weight: [D, 2], of channels as they are.
        bias: [2].
    """

    direction: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] to places [..., 2], float64."""
        return tokens.double() @ self.weight + self.bias

    def r2(self, of: Moments) -> float:
        """On tokens with these moments, the mean over rows and columns."""
        w, b = self.weight, self.bias
        lost = (
            of.yy
            - 2 * ((w * of.xy).sum(0) + b * of.y)
            + (w * (of.xx @ w)).sum(0)
            + 2 * b * (of.x @ w)
            + of.count * b.square()
        )
        return float((1 - lost / (of.yy - of.y.square() / of.count)).mean())


@dataclass(frozen=True)
class Regression:
    """Ridge regression on standardised channels, from which directions can be taken.

    Attributes:
        covariance: [D, D] of the channels.
        cross: [D, 2], covariance of channels and targets.
        mean, scale: [D] that tokens are standardised by.
        target: [2], the mean target.
    """

    covariance: Tensor
    cross: Tensor
    mean: Tensor
    scale: Tensor
    target: Tensor

    @classmethod
    def on(cls, of: Moments, scale: Tensor) -> Regression:
        """Of tokens with these moments."""
        mean, target = of.x / of.count, of.y / of.count
        covariance = (of.xx / of.count - mean[:, None] * mean) / scale[:, None] / scale
        cross = (of.xy / of.count - mean[:, None] * target) / scale[:, None]
        return cls(covariance, cross, mean, scale, target)

    def solved(self, penalty: float) -> Reader:
        """The minimum of the mean squared error and `penalty` times the weights' squares."""
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        direction = torch.linalg.solve(self.covariance + penalty * eye, self.cross)
        weight = direction / self.scale[:, None]
        return Reader(direction, weight, self.target - self.mean @ weight)

    def without(self, q: Tensor) -> Regression:
        """The same with orthonormal directions [D, 2] projected out of the standardised tokens."""
        once = self.covariance - q @ (q.mT @ self.covariance)
        covariance = once - (once @ q) @ q.mT
        return replace(self, covariance=covariance, cross=self.cross - q @ (q.mT @ self.cross))


def scale_of(of: Moments) -> Tensor:
    """[D] standard deviation of every channel; 1 where it is constant."""
    mean = of.x / of.count
    variance = of.xx.diagonal() / of.count - mean.square()
    return torch.where(variance > 1e-12 * (1 + mean.square()), variance.sqrt(), 1.0)


def readers(fitted: Moments, held: Moments) -> list[Reader]:
    """Of tokens as they are, then after each round in which the last one's directions were removed.

    The penalty is the best on `held` in the first round; readers are fitted on all tokens.
    """
    whole = fitted + held
    part, every = (Regression.on(of, scale_of(whole)) for of in (fitted, whole))
    penalty = max(PENALTIES, key=lambda p: part.solved(p).r2(held))
    found: list[Reader] = []
    while True:
        found.append(every.solved(penalty))
        gone = len(found) > 1 and part.solved(penalty).r2(held) < GONE
        if gone or len(found) > ROUNDS or _AXES * len(found) > len(whole.x):
            return found
        q = torch.linalg.qr(found[-1].direction).Q
        part, every = part.without(q), every.without(q)


FIGURES = (
    Figure("R²", better=""),
    Figure("R² of row", better=""),
    Figure("R² of column", better=""),
    Figure("R², 2 directions out", better=""),
    Figure("R², all found out", better=""),
    Figure("directions found", better="", digits=0),
)


def _of_sums(sums: Tensor) -> Tensor:
    """Of squared residuals of three readers along both axes, squares along both, directions, 1."""
    lost, squares = sums[..., :6].unflatten(-1, (3, _AXES)), sums[..., None, 6:8]
    r2 = 1 - lost / squares
    first, once, last = r2.mean(-1).unbind(-1)
    directions = sums[..., 8] / sums[..., 9]
    return torch.stack([first, *r2[..., 0, :].unbind(-1), once, last, directions], -1)


MEASURE = Measure(FIGURES, _of_sums)


def position_sums(read: Sequence[Reader], maps: Tensor) -> Tensor:
    """[B, 10] of maps [B, h, w, D], as MEASURE takes them; `read` is of :func:`readers`."""
    target = places((maps.shape[1], maps.shape[2])).to(maps.device)
    chosen = read[0], read[min(1, len(read) - 1)], read[-1]
    tokens = maps.flatten(1, 2)
    lost = [(reader(tokens) - target).square().sum(1) for reader in chosen]
    squares = target.square().sum(0).expand(len(maps), _AXES)
    directions = squares.new_tensor([_AXES * (len(read) - 1), 1]).expand(len(maps), 2)
    return torch.cat([*lost, squares, directions], 1)


def evaluate_position(
    data: Data | None,
    test_data: Data | None,
    n: int,
    n_test: int,
    seed: int,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """One table of the features of every block, on test photographs.

    Args:
        data, test_data: see `fastequi.data.sources.splits.photographs`.
        n, n_test: windows that the regression is fitted and tested on.
        seed: of the windows.
        grids, encoders, say: of the frame.
    """
    evaluated = encoders[str(grids[-1].encoder)]
    expect_windows(evaluated, n)
    expect_windows(evaluated, n_test, option="--test-windows", beside=n)
    train, test = photographs(data, test_data, images_for(evaluated))
    say("cutting windows")
    fitted = cut_windows(train, evaluated, n, seed=2 * seed + 1)
    tested = cut_windows(test, evaluated, n_test, seed=2 * seed + 2)
    rows: list[Measured] = []
    for one in with_blocks(grids, encoders):
        say(f"{one.encoder or one.names[0]}: fitting")
        kept = n - max(n // 5, 1)
        parts = [_moments(one, x) for x in (fitted.images[:kept], fitted.images[kept:])]
        read = {name: readers(*(part[name] for part in parts)) for name in one.names}
        say(f"{one.encoder or one.names[0]}: testing")
        sums: dict[str, list[Tensor]] = {name: [] for name in one.names}
        for part in tested.images.split(_BATCH):
            for name, maps in one(part).items():
                sums[name].append(position_sums(read[name], maps).cpu())
        rows += [Measured(one.row(name), torch.cat(found)) for name, found in sums.items()]
    about = {
        **documented(data), "photographs": {"train": len(train), "test": len(test)},
        "windows": {"train": n, "test": n_test}, "seed": seed,
        "rounds": ROUNDS, "gone_below": GONE, "penalties": PENALTIES,
        "left_out": {
            "train": named(fitted.left_out, train), "test": named(tested.left_out, test),
        },
    }  # fmt: skip
    found = table(MEASURE, rows, tested.photographs, unit="windows")
    fit_on = train if data else None
    return Found(
        {"place": found},
        about,
        [
            *unknown_blocks(encoders),
            *without(fitted.left_out, train, "training"),
            *without(tested.left_out, test),
        ],
        tested=test if data else None,
        fitted=fit_on,
    )


def _moments(grids: Grids, images: Tensor) -> dict[str, Moments]:
    """Of the tokens of images [N, 3, S, S], by features."""
    found: dict[str, Moments] = {}
    for part in images.split(_BATCH):
        for name, maps in grids(part).items():
            target = places((maps.shape[1], maps.shape[2])).repeat(len(maps), 1)
            new = Moments.of(maps.flatten(0, 2), target)
            found[name] = found[name] + new if name in found else new
    return found

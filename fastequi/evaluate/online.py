"""Online probes: kNN accuracy and R² of the features during training, some seconds each.

The first are taken before the first step. They use the current weights (a teacher's where there is
one), in eval mode. They draw from none of the run's generators and do not move its position in the
data, so a run ends with the same bits with and without them. The figures are for following one run:
fewer pairs and images than an evaluation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fastequi.config import Config
from fastequi.data.labelled import LabelledSet, described, labelled_sets
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import held_out_of
from fastequi.evaluate.checked import noise
from fastequi.evaluate.class_probes import accuracy, knn_classes
from fastequi.evaluate.classification import normalise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import of_method
from fastequi.evaluate.pair_scores import pair_tokens
from fastequi.evaluate.pairs import Pairs, collect_pairs
from fastequi.evaluate.photo_windows import values_of, window_loader
from fastequi.evaluate.probes import Fit, r2, token_probe
from fastequi.evaluate.tasks import FEATURES, tasks, views_for
from fastequi.methods.method import Method

logger = logging.getLogger(__name__)

_K = 20
_TRAIN_IMAGES, _TEST_IMAGES = 4000, 1000
_TRAIN_PAIRS, _TEST_PAIRS = 4000, 500
_TOKENS = 2**30  # floats that tokens of the training pairs may take: fewer pairs of wide ones
_FIT = Fit(epochs=10, seeds=1)


@dataclass(frozen=True)
class OnlineProbe:
    """A measurement of the features every so many steps.

    Attributes:
        every: steps between two of them.
        measure: an encoder to figures by name.
    """

    every: int
    measure: Callable[[Encoder], dict[str, float]]


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Errors name the option whose images they are about."""
    try:
        yield
    except (ValueError, OSError) as error:
        said = str(error)
        if option in said:
            raise
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(f"{option}: {said}") from error


def online_probes(config: Config, source: Source) -> list[OnlineProbe]:
    """Those a config asks for.

    Args:
        config: `train.knn_every`, `train.knn_data`, `train.r2_every`.
        source: the run's images, every fifth of which tests the R² of pairs of the others.

    Raises:
        ValueError, OSError, ImportError: a probe's data is not there, before any training.
    """
    train, found = config.train, []
    if train.knn_every:
        data = Selection(train.knn_data, option="train.knn_data")
        with _naming(data.option):
            sets = labelled_sets(data, _TRAIN_IMAGES, _TEST_IMAGES, values=values_of(config.data))
        logger.info("online probe of classes: %s", described(*sets))
        found.append(OnlineProbe(train.knn_every, _Neighbours(*sets)))
    elif train.knn_data:  # as runs may have it that began before the command refused it
        logger.warning(
            "train.knn_data=%s is not used, as train.knn_every=0: there is no online probe of it",
            ",".join(train.knn_data),
        )
    if train.r2_every:
        if len(source) < 2:
            raise ValueError(f"train.r2_every: expected at least 2 images, got {len(source)}")
        tested = held_out_of(source)
        rest, held = (source.pick(np.flatnonzero(which)) for which in (~tested, tested))
        of_encoder = train.stop_if_worse > 0
        found.append(OnlineProbe(train.r2_every, _Transformations(rest, held, of_encoder)))
    return found


def score(figures: Mapping[str, float], config: Config) -> float:
    """What `train.stop_if_worse` watches: how good the encoder's own features are.

    The larger of the two kNN accuracies where a config asks for kNN, since a method may train patch
    tokens or the class token; else the mean R² of patch tokens, of a convolutional network's last
    block. -inf if it is not among the figures.
    """
    if config.train.knn_every:
        found = [value for name, value in figures.items() if name.startswith("knn_")]
    else:
        heads = ("r2_z_equi_", "r2_z_inv_")  # which begin at random on weights from elsewhere
        means = {n: v for n, v in figures.items() if n.startswith("r2_") and n.endswith("_mean")}
        found = [value for name, value in means.items() if not name.startswith(heads)]
    return max((value for value in found if math.isfinite(value)), default=-math.inf)


def measured_online(
    probes: Sequence[OnlineProbe], method: Method, config: Config
) -> dict[str, float]:
    """The figures of online probes by name; leaves the method and the generators as they were.

    A probe that fails (features that are not finite, images that are gone) is logged and gives no
    figures: the run goes on.
    """
    figures: dict[str, float] = {}
    with _aside(method), torch.no_grad():
        for probe in probes:
            try:
                figures |= probe.measure(of_method(method, config))
            except Exception as error:
                logger.warning("this online probe gives no figures: %s", error)
    return figures


@contextmanager
def _aside(module: nn.Module) -> Iterator[None]:
    """Eval mode and forked generators; afterwards everything is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@dataclass
class _Neighbours:
    """Accuracy of classes predicted from 20 neighbours; images are decoded once and kept.

    "knn_k20" is of the mean patch token (of a convolutional net's last block), "knn_k20_cls" of the
    class token: some methods train the one, some the other.
    """

    train: LabelledSet
    test: LabelledSet
    images: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        if not self.images:
            size, device = encoder.image_size, encoder.device
            for part in (self.train, self.test):
                self.images.append([(x, y) for x, _, y in part.batches(size, device)])
        y, y_test = (torch.cat([labels for _, labels in part]) for part in self.images)
        x, x_test = (self._features(encoder, part) for part in self.images)
        k = min(_K, len(y))
        preds = {name: knn_classes(x[name], y, x_test[name], [k])[k] for name in x}
        return {f"knn_k{k}{name}": accuracy(pred, y_test) for name, pred in preds.items()}

    def _features(
        self, encoder: Encoder, batches: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """[N, D] by the suffix of the figure's name."""
        kinds = {"": "patch" if "patch" in encoder.names else encoder.names[-1]}
        kinds |= {"_cls": "cls"} if "cls" in encoder.names else {}
        found: dict[str, list[Tensor]] = {name: [] for name in kinds}
        for images, _ in batches:
            tokens = encoder.features(normalise(images, encoder))
            for name, kind in kinds.items():
                found[name].append(tokens[kind].float().mean(1))
        return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass
class _Transformations:
    """R² of SE(2) in the paper's ranges by a token probe; pairs are cut once and kept.

    "r2_z_equi_mean" is of z_equi, which TIR trains on the path; other methods have none, and their
    first kind of `fastequi.evaluate.tasks.FEATURES` is used. If `of_encoder`, patch tokens have
    figures of their own ("r2_patch_mean").
    """

    train: Source
    test: Source
    of_encoder: bool = False
    pairs: list[Pairs] = field(default_factory=list)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        first = next((n for n in FEATURES if n in encoder.names), encoder.names[-1])
        if not self.pairs:
            self._cut(encoder, first)
        figures = self._r2(encoder, first)
        if self.of_encoder and first != "patch" and "patch" in encoder.names:
            figures |= self._r2(encoder, "patch")
        return figures

    def _r2(self, encoder: Encoder, name: str) -> dict[str, float]:
        """R² of one kind of tokens: their mean, and each parameter's."""
        train, test = self.pairs
        x, x_test = (pair_tokens(encoder.features, [name], p)[name] for p in (train, test))
        values = r2(token_probe(x, train.params, x_test, _FIT), test.params)[0]
        each = dict(zip(test.names, values.tolist(), strict=True))
        return {f"r2_{name}_{n}": r for n, r in {"mean": values.mean().item(), **each}.items()}

    def _cut(self, encoder: Encoder, name: str) -> None:
        chosen = tasks(["se2"])
        views, path = views_for(encoder, chosen), chosen["se2"].path
        image = noise(views.image_size, encoder.device, encoder.in_chans)
        fits = _TOKENS // (2 * encoder.features(image)[name].numel())
        counts = min(_TRAIN_PAIRS, max(fits, _TEST_PAIRS)), _TEST_PAIRS
        for seed, (part, n) in enumerate(zip((self.train, self.test), counts, strict=True), 1):
            where, values = encoder.device, values_of(encoder)
            with window_loader(part, path, views, seed=seed, device=where, values=values) as loader:
                self.pairs.append(collect_pairs(loader, path, views, n, loader.photographs_of))

"""The five tasks of the equivariance table: which transformation lies between two images?

Rotation, translation, both (SE(2)), colour and blur in the paper's ranges; of images that are not
RGB, gain and offset of every channel instead of colour. The probes of rotation
are also tested outside the range they were fitted on. All tasks see the same windows: squares of
photographs scaled to 256 px on their shorter side, cut at 1 to 1.6 of its pixels per pixel where
the photograph has room for it, with the margin that SE(2) needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastequi import paths
from fastequi.build import views_of
from fastequi.config import Config, PathConfig
from fastequi.data.loader import Loader
from fastequi.data.sources.image_sets import Source
from fastequi.data.views.batch import Views
from fastequi.evaluate.baselines import RAW_SIZE
from fastequi.evaluate.checked import Features, noise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.pair_reports import Report
from fastequi.evaluate.pair_scores import OF_TOKENS, PIXELS, PROBES, Probed, score_pairs
from fastequi.evaluate.pairs import Pairs, collect_pairs
from fastequi.evaluate.photo_windows import values_of, window_loader
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import path_loader
from fastequi.functional.normalise import denormalise, normalise
from fastequi.philox import Draws
from fastequi.runtime.devices import expect_memory

logger = logging.getLogger(__name__)

GEOMETRIC = ("rotation", "translation", "se2")
FEATURES = ("z_equi", "z_inv", "patch", "cls")
_BEYOND = 15.0  # degrees outside the range that rotation is fitted on


@dataclass(frozen=True)
class Beyond(paths.Rotation):
    """Angles of either sign from `degrees` to `top`; in units of `degrees`, as the probes give."""

    top: float = 60.0

    def sample(self, draws: Draws | int, size: int) -> Tensor:
        assert isinstance(draws, Draws)
        unit = torch.from_numpy(draws.uniform("path", 2))
        angle = self.degrees + unit[:, :1] * (self.top - self.degrees)
        return torch.where(unit[:, 1:] < 0.5, -angle, angle)


@dataclass(frozen=True)
class Task:
    """A transformation whose parameters are predicted.

    Attributes:
        path: its pairs.
        widest: what the windows have room for, whichever tasks are chosen: SE(2).
        beyond: further tests of the same probes outside their range, by name.
        photometric: changes both images of every pair, independently; None leaves them alone.
    """

    path: paths.Path
    widest: paths.Path = paths.SE2()  # noqa: RUF009
    beyond: Mapping[str, paths.Path] = field(default_factory=dict)
    photometric: Photometric | None = None


def tasks(
    names: Sequence[str] = ("rotation", "translation", "se2", "color", "blur"),
    ranges: PathConfig = PathConfig(),  # noqa: B008
    photometric: Sequence[str] = (),
) -> dict[str, Task]:
    """Tasks by the names of their path families.

    Args:
        names: of families.
        ranges: of their parameters.
        photometric: those of geometric families that are also tested on pairs with photometric
            change, as tasks of their own: "se2, photometric".

    Raises:
        ValueError: no such family, or photometric change of a family that changes colour or blur.
    """
    _expect_geometric("photometric", photometric)
    found = {}
    widest = replace(ranges, family="se2").build()
    for name in names:
        path = replace(ranges, family=name).build()  # type: ignore[arg-type]
        beyond: dict[str, paths.Path] = {}
        if isinstance(path, paths.Rotation):
            low, top = path.degrees, path.degrees + _BEYOND
            beyond[f"rotation {low:g}..{top:g}"] = Beyond(low, top)
        found[name] = Task(path, widest, beyond)
    for name in photometric:
        path = replace(ranges, family=name).build()  # type: ignore[arg-type]
        found[f"{name}, photometric"] = Task(path, widest, photometric=Photometric())
    return found


def _expect_geometric(option: str, families: Sequence[str]) -> None:
    """Photometric change would hide what a path of colour or blur changes."""
    others = set(families) - set(GEOMETRIC)
    if others:
        expected = ", ".join(GEOMETRIC)
        raise ValueError(f"{option}: expected some of {expected}, got {sorted(others)}")


@dataclass(frozen=True)
class Budget:
    """What the probes are fitted on; with fewer than 24,000 pairs R² says more of the probe than
    of the features.

    Attributes:
        train_pairs, test_pairs: of each task.
        fewer_pairs: smaller numbers of training pairs, for tables of their own.
        probes: of `fastequi.evaluate.pair_scores.PROBES`.
        pixels: baselines that need no encoder, of `fastequi.evaluate.pair_scores.PIXELS`.
        fit: of the MLPs.
        seed: of windows and parameters; test pairs never share a draw with training pairs.
        window: range of the windows' sides as shares of the photograph's shorter side, margin
            included; None follows the module's rule.
        zero_fill: windows without a margin, black where a transformed image has no pixel. Such
            borders give the transformation away; only to compare with tables made that way, as the
            paper's were.
    """

    train_pairs: int = 24_000
    test_pairs: int = 2_000
    fewer_pairs: tuple[int, ...] = ()
    probes: tuple[str, ...] = PROBES
    pixels: tuple[str, ...] = PIXELS
    fit: Fit = Fit(epochs=6)  # noqa: RUF009
    seed: int = 0
    window: tuple[float, float] | None = None
    zero_fill: bool = False

    def __post_init__(self) -> None:
        for name in ("train_pairs", "test_pairs"):
            if getattr(self, name) < 10:
                raise ValueError(f"{name}: expected at least 10, got {getattr(self, name)}")
        for n in self.fewer_pairs:
            if not 10 <= n < self.train_pairs:
                raise ValueError(
                    f"fewer_pairs: expected 10 .. {self.train_pairs - 1}, less than train_pairs, "
                    f"got {n}"
                )
        if len(set(self.fewer_pairs)) < len(self.fewer_pairs):
            raise ValueError(f"fewer_pairs: expected different numbers, got {self.fewer_pairs}")


class Windows(NamedTuple):
    """Where pairs are cut from.

    Attributes:
        views: geometry and normalisation of the images.
        loader: source, path and seed to endless batches of un-augmented windows.
    """

    views: Views
    loader: Callable[[Source, paths.Path, int], Loader]


def own_path(config: Config, device: torch.device) -> tuple[dict[str, Task], Windows]:
    """A run's own path as tasks, clean and photometric, on windows that its own loader cuts.

    Raises:
        ValueError: the path changes colour or blur, or one of its ranges is 0.
    """
    _expect_geometric("--path.family", [config.path.family])

    def loader(source: Source, path: paths.Path, seed: int) -> Loader:
        return path_loader(config, source, device, seed)

    path, name = config.path.build(config.data.in_chans), config.path.family
    for parameter, scale in zip(path.names, path.scales(config.data.image_size), strict=True):
        option = "degrees" if parameter == "angle" else "pixels"
        if not scale > 0:
            raise ValueError(
                f"--path.{option}: expected a half-range > 0, from which {parameter} is "
                f"predicted, got {getattr(config.path, option)}"
            )
    chosen = {name: Task(path), f"{name}, photometric": Task(path, photometric=Photometric())}
    return chosen, Windows(views_of(config), loader)


def score_tasks(
    encoders: Mapping[str, Encoder],
    train: Source,
    test: Source,
    chosen: Mapping[str, Task],
    *,
    budget: Budget = Budget(),
    windows: Windows | None = None,
    on_row: Callable[[str, float], None] = lambda label, share: None,
    on_report: Callable[[str, Report], None] = lambda name, report: None,
) -> dict[str, Report]:
    """The table of every task, one after the other.

    Args:
        encoders: by the names that rows have; of one image size and the same channels, on one
            device. Pairs are normalised for each.
        train, test: disjoint photographs, or regions.
        chosen: of :func:`tasks`; see :func:`for_encoder`.
        budget: of every task.
        windows: None: as the module says.
        on_row: called with what comes next, and the share that is done.
        on_report: called with each finished table.

    Returns:
        Reports by the names of the tasks and of their tests beyond; those of fewer pairs as
        "se2, 3,000 pairs".
    """
    first = next(iter(encoders.values()))
    for label, encoder in encoders.items():
        if encoder.channels != first.channels:
            raise ValueError(
                f"encoders: expected the same channels, {label} has {encoder.channels}, "
                f"{next(iter(encoders))} {first.channels}"
            )
        if encoder.image_size != first.image_size:
            raise ValueError(
                f"encoders: expected one image size, {label} has {encoder.image_size} px, "
                f"{next(iter(encoders))} {first.image_size}"
            )
    chosen = for_encoder(chosen, first)
    views, windows_of = windows or photo_windows(first, chosen, budget)
    probed = {
        label: Probed(normalised(encoder, views), shown(encoder), encoder.is_baseline)
        for label, encoder in encoders.items()
    }
    patch = first.patch_size or max(first.image_size // 8, 1)
    _check_memory(probed, views, budget, first.device)
    found: dict[str, Report] = {}
    for number, (name, task) in enumerate(chosen.items()):
        tests = {name: task.path, **task.beyond}

        def cut(source: Source, path: paths.Path, n: int, seed: int, task: Task = task) -> Pairs:
            with windows_of(source, path, seed) as loader:
                of, change = loader.photographs_of, task.photometric
                return collect_pairs(loader, path, views, n, of, photometric=change, seed=seed)

        def say(row: str, share: float, name: str = name, number: int = number) -> None:
            on_row(f"{name}: {row}", (number + share) / len(chosen))

        say("cutting pairs", 0.0)
        fitted = cut(train, task.path, budget.train_pairs, 2 * budget.seed + 1)
        tested = [
            cut(test, path, budget.test_pairs, 2 * budget.seed + 2) for path in tests.values()
        ]
        by_pairs = score_pairs(
            probed,
            fitted,
            tested,
            patch_size=patch,
            fit=budget.fit,
            probes=budget.probes,
            pixels=budget.pixels,
            fewer=budget.fewer_pairs,
            on_row=say,
        )
        for n, reports in by_pairs.items():
            for key, report in zip(tests, reports, strict=True):
                label = key if n == budget.train_pairs else f"{key}, {n:,} pairs"
                found[label] = report
                on_report(label, report)
    return found


def photo_windows(encoder: Encoder, chosen: Mapping[str, Task], budget: Budget) -> Windows:
    """The module's windows, for an encoder's images."""
    views = views_for(encoder, {} if budget.zero_fill else chosen)
    if budget.zero_fill:
        views = replace(views, padding_mode="zeros")

    def loader(source: Source, path: paths.Path, seed: int) -> Loader:
        return window_loader(
            source,
            path,
            views,
            seed=seed,
            device=encoder.device,
            window=budget.window,
            values=values_of(encoder),
        )

    return Windows(views, loader)


def for_encoder(chosen: Mapping[str, Task], encoder: Encoder) -> dict[str, Task]:
    """Tasks for an encoder's images: of other channels than RGB "gain" in the place of "color", and
    photometric change without colours."""
    found = {}
    for name, task in chosen.items():
        if isinstance(task.path, paths.Gain):
            task = replace(task, path=replace(task.path, channels=encoder.in_chans))
        if not encoder.colors:
            if isinstance(task.path, paths.Color):
                logger.info("task color is gain: %s has channels that are no colours", encoder.name)
                name, task = "gain", replace(task, path=paths.Gain(encoder.in_chans))
            if task.photometric is not None:
                task = replace(task, photometric=replace(task.photometric, rgb=False))
        found[name] = task
    return found


def shown(encoder: Encoder) -> tuple[str, ...]:
    """Which of an encoder's features get rows: the known ones, else all (blocks)."""
    return tuple(name for name in FEATURES if name in encoder.names) or encoder.names


def views_for(encoder: Encoder, chosen: Mapping[str, Task]) -> Views:
    """Views whose windows hold every transformed image, the same for any choice of tasks."""
    size, source = encoder.image_size, encoder.image_size
    for task in chosen.values():
        for path in (task.path, task.widest, *task.beyond.values()):
            source = max(source, _reach(path, size))
    return Views(
        image_size=size,
        source_size=source,
        mean=encoder.mean,
        std=encoder.std,
        padding_mode="reflection",
    )


def _reach(path: paths.Path, size: int) -> int:
    """Side of the smallest window, with an even margin, that holds every transformed view."""
    units = dict(zip(path.names, path.scales(size), strict=True))
    top = path.top if isinstance(path, Beyond) else units.get("angle", 0.0)
    angle = math.radians(min(top, 45.0))  # a square is widest across its diagonal
    side = (math.cos(angle) + math.sin(angle)) * (size + 2 * units.get("tx", 0.0))
    return size + 2 * math.ceil((side - size) / 2 - 1e-6)


def normalised(encoder: Encoder, views: Views) -> Features:
    """An encoder's features of images normalised as `views` are."""
    if (encoder.mean, encoder.std) == (views.mean, views.std):
        return encoder.features

    def features(images: Tensor) -> dict[str, Tensor]:
        unit = denormalise(images, views.mean, views.std)
        return encoder.features(normalise(unit, encoder.mean, encoder.std))

    return features


def _check_memory(
    probed: Mapping[str, Probed],
    views: Views,
    budget: Budget,
    device: torch.device,
) -> None:
    """Raises ValueError if the pairs and their features do not fit into the free memory."""
    channels = len(views.mean)
    image = noise(views.image_size, device, channels)
    tokens = [2 * channels * min(views.image_size, RAW_SIZE) ** 2]  # of the raw pair
    whole = any(probe in budget.probes for probe in OF_TOKENS)
    copies = 1 + math.ceil(sum(budget.fewer_pairs) / budget.train_pairs)  # fitted side by side
    for features, names, _ in probed.values():
        found = features(image)
        each = [2 * (found[n].numel() if whole else found[n].shape[-1]) for n in names]
        tokens.append(sum(each) + copies * max(each))  # all of them, one standardised for each fit
    # beside them the pairs as 16-bit numbers
    of_each = 2 * 2 * channels * views.image_size**2 + 4 * max(tokens)
    expect_memory("--test-pairs", budget.test_pairs, 2 * of_each, device, reserved=10 * of_each)
    advice = "with fewer pairs R² says more of the probes than of the features"
    if whole:
        advice += "; --probes mlp ridge needs less"
    tested = 2 * budget.test_pairs * of_each
    expect_memory(
        "--train-pairs", budget.train_pairs, of_each, device, reserved=tested, advice=advice
    )

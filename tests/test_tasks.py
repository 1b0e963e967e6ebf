"""The five tasks' pairs on real photographs, and encoders that know or do not."""

import math
import re
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch

pytest.importorskip("nvidia.dali")

import fastequi
import fastequi.evaluate.tasks as module
from fastequi.cli.evaluations import EquivarianceOptions
from fastequi.config import PathConfig
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.pairs import collect_pairs
from fastequi.evaluate.photo_windows import window_loader
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.tasks import (
    GEOMETRIC,
    Beyond,
    Budget,
    normalised,
    own_path,
    score_tasks,
    tasks,
    views_for,
)
from fastequi.philox import Draws
from fastequi.recipes import RECIPES
from fastequi.runtime import devices

CPU = torch.device("cpu")


def encoder(features, names=("patch",), size=16, **options):
    return Encoder(
        name="mine", features=features, names=names, image_size=size, patch_size=8, **options
    )


def patches(images):
    tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
    return {"patch": tokens, "cls": tokens.mean(1, keepdim=True)}


def test_the_ranges_are_the_papers_and_windows_hold_every_view():
    chosen = tasks()
    assert list(chosen) == ["rotation", "translation", "se2", "color", "blur"]
    assert chosen["se2"].path.scales(224) == (45.0, 10.0, 10.0)
    assert chosen["color"].path.scales(224) == (0.4, 0.4, 0.4, 0.1)
    assert (chosen["blur"].path.low, chosen["blur"].path.high) == (0.1, 2.0)
    (beyond,) = chosen["rotation"].beyond
    assert beyond == "rotation 45..60"
    # at 224 px and 45 degrees a square with its shift of 10 px reaches sqrt(2) (224 + 20)
    views = views_for(encoder(patches, size=224), chosen)
    assert views.source_size == 224 + 2 * math.ceil((math.sqrt(2) * 244 - 224) / 2)
    assert views_for(encoder(patches, size=224), tasks(["blur"])) == views
    small = views_for(encoder(patches, size=32), tasks(["blur"], PathConfig(degrees=0, pixels=7)))
    assert small.source_size == 32 + 2  # a shift of 1 px
    with pytest.raises(ValueError, match=r"path\.family: unknown 'shear'"):
        tasks(["shear"])


def test_every_family_of_paths_is_known_wherever_families_are():
    def words(options, name):
        """Of a field that is a Literal, or a tuple of them."""
        found = get_type_hints(options)[name]
        return set(get_args(found) if name == "family" else get_args(get_args(found)[0]))

    families = words(PathConfig, "family")
    assert words(EquivarianceOptions, "tasks") == families
    assert words(EquivarianceOptions, "photometric") == set(GEOMETRIC)
    built = {family: PathConfig(family).build() for family in families}
    points = {family: path.at(path.sample(2, 32), 0.5, 32) for family, path in built.items()}
    moved = {name for name, point in points.items() if point.color is None and point.sigma is None}
    assert moved == set(GEOMETRIC)
    for path in built.values():
        assert type(path).__name__ in fastequi.__all__


def test_no_pixel_of_a_pair_comes_from_beyond_the_window():
    """With the padding's zeros as the mark: a window without zeros leaves none in the views."""
    chosen = tasks(GEOMETRIC)
    views = views_for(encoder(patches, size=32), chosen)
    zeros = replace(views, mean=(0.0,) * 3, std=(1.0,) * 3, padding_mode="zeros")
    each = [path for task in chosen.values() for path in (task.path, *task.beyond.values())]
    for path in each:
        batch = next(window_loader(photographs()[0], path, views, seed=0, device=CPU))
        white = type(batch)(
            batch.v1, torch.full_like(batch.u, 255), batch.path, batch.sample_ids, 0
        )
        pairs = collect_pairs([white], path, zeros, len(batch))
        assert pairs.after.min() > 0.999


def test_angles_beyond_are_beyond_and_of_either_sign():
    drawn = Beyond(45.0, top=60.0).sample(Draws.of(0, 0, range(2000)), 32)
    assert 45 <= drawn.abs().min() < 45.1
    assert 59.9 < drawn.abs().max() <= 60
    assert 0.45 < (drawn > 0).float().mean() < 0.55


@pytest.mark.slow
def test_every_task_has_its_table_and_baselines():
    chosen = tasks(["rotation", "color", "blur"], photometric=["rotation"])
    budget = Budget(400, 100, (200,), fit=Fit(epochs=4, seeds=2), probes=("mlp", "ridge"))
    rows, finished = [], []
    other = encoder(patches, ("patch", "cls"), mean=(0.5,) * 3, std=(0.1,) * 3)
    reports = score_tasks(
        {"blind": encoder(lambda x: {"patch": x.new_ones(len(x), 4, 2)}), "sees": other},
        *photographs(),
        chosen,
        budget=budget,
        on_row=lambda row, share: rows.append((row, share)),
        on_report=lambda name, report: finished.append(name),
    )
    names = ["rotation", "rotation 45..60", "color", "blur", "rotation, photometric"]
    few = [f"{name}, 200 pairs" for name in names]
    assert set(finished) == set(reports) == {*names, *few}
    assert [reports[n].train_pairs for n in ("blur", "blur, 200 pairs")] == [400, 200]
    assert reports["blur"].scores[0].r2 != reports["blur, 200 pairs"].scores[0].r2
    assert "color: sees, cls" in dict(rows)
    shares = [share for _, share in rows]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    for report in reports.values():
        pixels = {"mean predictor", "transformed image alone", "raw pair", "pixel statistics"}
        assert pixels == {score.features for score in report.scores if score.is_baseline}
        assert abs(report.best("blind, patch").mean) < 0.1
    assert reports["color"].names == ("brightness", "contrast", "saturation", "hue")
    assert reports["color"].best("pixel statistics").mean > 0.6
    assert reports["color"].best("sees, cls").r2[0] > 0.3
    assert reports["color"].best("sees, cls").probe in ("mlp", "ridge")
    assert reports["blur"].best("pixel statistics").mean > 0.6
    assert reports["blur"].best("transformed image alone").mean < 0.2
    error = reports["rotation 45..60"].best("mean predictor").error[0]
    assert error == pytest.approx(52.5, abs=2.5)  # degrees


@pytest.mark.parametrize("of", ["tasks", "own_path"])
def test_photometric_pairs_are_those_of_the_clean_task_in_changed_light(of, monkeypatch):
    """For fitting and for testing, each from its photographs and with draws of its own."""
    cut = []

    def kept(probed, fitted, tested, **options):
        cut.append((fitted, *tested))
        return {}

    monkeypatch.setattr(module, "score_pairs", kept)
    config = RECIPES["demo"]()
    if of == "tasks":
        chosen, windows = tasks(["se2"], photometric=["se2"]), None
        mine = encoder(patches)
    else:
        chosen, windows = own_path(config, CPU)
        mine = encoder(patches, size=config.data.image_size)
    assert [task.photometric for task in chosen.values()] == [None, Photometric()]
    budget = Budget(64, 64)
    train, test = photographs()
    sources = train.pick([0, 1, 2]), test.pick([3])
    score_tasks({"a": mine}, *sources, chosen, budget=budget, windows=windows)
    for clean, changed in zip(*cut, strict=True):
        assert torch.equal(clean.params, changed.params)
        still, moved = (
            (pairs.before.float() - pairs.after.float()).mean((2, 3)).abs().mean()
            for pairs in (clean, changed)
        )
        assert moved > 3 * still  # brightness and colour
    fitted, tested = cut[0]
    assert [len(pairs.photographs.unique()) for pairs in (fitted, tested)] == [3, 1]
    assert not torch.equal(fitted.params, tested.params)


@pytest.mark.slow
def test_zero_filled_borders_reveal_the_angle_and_others_do_not():
    """Why borders are not filled: the rotated image alone, without its twin, reveals the angle."""
    alone = {}
    for zero_fill in (False, True):
        fit = Fit(epochs=8, seeds=1)
        pairs = {"train_pairs": 1500, "test_pairs": 300}
        budget = Budget(**pairs, probes=("mlp",), fit=fit, zero_fill=zero_fill)
        blind = {"blind": encoder(lambda x: {"patch": x.new_ones(len(x), 4, 2)}, size=32)}
        found = score_tasks(blind, *photographs(), tasks(["rotation"]), budget=budget)
        alone[zero_fill] = found["rotation"].best("transformed image alone").mean
    assert alone[False] < 0.1
    assert alone[True] > 0.6


def test_images_are_normalised_for_each_encoder():
    views = views_for(encoder(patches), tasks(["blur"]))
    own = encoder(lambda x: {"patch": x}, mean=(0.5,) * 3, std=(0.25,) * 3)
    image = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (views.mean, views.std))
    seen = normalised(own, views)((image - mean) / std)["patch"]
    torch.testing.assert_close(seen, (image - 0.5) / 0.25)


def test_what_cannot_be_done_is_said_at_once():
    both = {"a": encoder(patches), "b": encoder(patches, size=32)}
    with pytest.raises(ValueError, match="one image size, b has 32 px, a 16"):
        score_tasks(both, *photographs(), tasks(["blur"]))
    with pytest.raises(
        ValueError, match=r"fewer_pairs: expected 10 \.\. 23999, less than train_pairs, got 24000"
    ):
        Budget(fewer_pairs=(24_000,))
    with pytest.raises(ValueError, match="fewer_pairs: expected different numbers, got"):
        Budget(fewer_pairs=(3000, 3000))
    with pytest.raises(
        ValueError, match="photometric: expected some of rotation, translation, se2"
    ):
        tasks(["blur"], photometric=["blur"])
    with pytest.raises(ValueError, match="train_pairs: expected at least 10, got 9"):
        Budget(train_pairs=9)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ({"family": "color"}, r"--path\.family: expected some of rotation, translation, se2, got"),
        ({"family": "blur"}, r"--path\.family: expected some of rotation, translation, se2, got"),
        ({"degrees": 0.0}, r"--path\.degrees: expected a half-range > 0, from which angle is"),
        ({"pixels": 0.0}, r"--path\.pixels: expected a half-range > 0, from which tx is"),
    ],
)
def test_a_runs_own_path_must_be_predictable_in_changed_light(path, message):
    config = RECIPES["demo"]()
    data = replace(config.data, source_size=32)
    with pytest.raises(ValueError, match=f"^{message}"):
        own_path(replace(config, data=data, path=replace(config.path, **path)), CPU)


def test_pairs_that_do_not_fit_are_refused_with_how_many_would(monkeypatch):
    def refused(budget):
        with pytest.raises(ValueError, match="expected at most") as error:
            score_tasks({"a": encoder(patches)}, *photographs(), tasks(["blur"]), budget=budget)
        return str(error.value)

    monkeypatch.setattr(devices, "free_memory", lambda device: 2 * 10**9)
    said = refused(Budget(train_pairs=10**9))
    found = re.fullmatch(
        r"--train-pairs: expected at most (\d+) on this machine \(2\.0 GB free\), got 1000000000; "
        r"with fewer pairs R² says more of the probes than of the features; .*mlp ridge needs less",
        said,
    )
    assert found, said
    most = int(found[1])
    assert f"at most {most} " in refused(Budget(train_pairs=most + 1))
    assert "--probes" not in refused(Budget(train_pairs=10**9, probes=("mlp",)))
    assert refused(Budget(test_pairs=10**9)).startswith("--test-pairs: expected at most")

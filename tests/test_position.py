"""`eval position`: ridge regression from moments against scikit-learn's on the tokens."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from fastequi.evaluate.geometry.position import (
    MEASURE,
    PENALTIES,
    ROUNDS,
    Moments,
    Regression,
    places,
    position_sums,
    readers,
    scale_of,
)


def tokens_with_places(copies, n=60, dim=12, noise=0.3, seed=0):
    """[n, 4, 5, dim] maps in which the place is written `copies` times, and noise."""
    generator = torch.Generator().manual_seed(seed)
    target = places((4, 5)).unflatten(0, (4, 5))
    maps = noise * torch.randn(n, 4, 5, dim, generator=generator).double() + 3
    for copy in range(copies):
        each = 0.3 * torch.randn(n, 4, 5, 2, generator=generator).double()
        mixed = torch.randn(2, dim, generator=torch.Generator().manual_seed(7 + copy)).double()
        maps += (target + each) @ mixed
    return maps


def moments(maps):
    target = places(maps.shape[1:3]).repeat(len(maps), 1)
    return Moments.of(maps.flatten(0, 2), target)


def test_places_run_from_border_to_border():
    x, y = 1 / 2, 2 / 3
    expected = [[-x, -y], [-x, 0], [-x, y], [x, -y], [x, 0], [x, y]]
    torch.testing.assert_close(places((2, 3)), torch.tensor(expected, dtype=torch.float64))


def test_moments_add_up():
    maps = tokens_with_places(1)
    whole, parts = moments(maps), moments(maps[:13]) + moments(maps[13:])
    for name in ("count", "x", "y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0])
def test_the_regression_is_scikit_learns_on_standardised_tokens(penalty):
    maps, held = tokens_with_places(1), tokens_with_places(1, seed=1)
    of = moments(maps)
    reader = Regression.on(of, scale_of(of)).solved(penalty)
    x, y = maps.flatten(0, 2).numpy(), places((4, 5)).repeat(len(maps), 1).numpy()
    mean, scale = x.mean(0), x.std(0)
    theirs = Ridge(alpha=penalty * len(x)).fit((x - mean) / scale, y)
    new = held.flatten(0, 2).numpy()
    expected = theirs.predict((new - mean) / scale)
    np.testing.assert_allclose(reader(held.flatten(0, 2)).numpy(), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(reader.direction.numpy(), theirs.coef_.T, rtol=1e-7, atol=1e-10)
    assert reader.r2(moments(held)) == pytest.approx(r2_score(y, expected), abs=1e-10)


def test_a_later_reader_is_the_regression_on_projected_tokens():
    maps, held = tokens_with_places(2), tokens_with_places(2, seed=1)
    found = readers(moments(maps), moments(held))
    assert len(found) > 2  # written twice, read twice
    whole = torch.cat([maps, held]).flatten(0, 2)
    x, y = whole.numpy(), places((4, 5)).repeat(len(maps) + len(held), 1).numpy()
    mean, scale = x.mean(0), x.std(0)
    left, chosen = (x - mean) / scale, []
    cut = maps[..., 0].numel()
    for penalty in PENALTIES:  # by the definition: the best on the held-out part
        part = Ridge(alpha=penalty * cut).fit(left[:cut], y[:cut])
        chosen.append(r2_score(y[cut:], part.predict(left[cut:])))
    penalty = PENALTIES[int(np.argmax(chosen))]
    for reader in found[:3]:
        theirs = Ridge(alpha=penalty * len(x), solver="svd").fit(left, y)
        np.testing.assert_allclose(reader(whole).numpy(), theirs.predict(left), atol=1e-5)
        q = np.linalg.qr(theirs.coef_.T)[0]
        left = left - left @ q @ q.T


def test_a_place_written_once_is_gone_after_its_two_directions():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(70, 4, 5, 12, generator=generator).double()
    maps[..., 3:5] = 0.5 * maps[..., 3:5] + places((4, 5)).unflatten(0, (4, 5))
    found = readers(moments(maps[:50]), moments(maps[50:60]))
    first, once, last = figures(found, maps[60:])
    assert len(found) == 2
    variance = float(places((4, 5)).square().mean())
    assert first[0] == pytest.approx(variance / (variance + 0.25), abs=0.05)
    assert once == last
    assert abs(once) < 0.05
    q = torch.linalg.qr(found[0].direction).Q  # the two channels that say it
    assert float(q[3:5].square().sum()) == pytest.approx(2, abs=0.05)


def figures(found, maps):
    """(R², row, column), R² with two directions out, with all out."""
    values = MEASURE.of_sums(position_sums(found, maps).sum(0)).tolist()
    assert values[5] == 2 * (len(found) - 1)
    return values[:3], values[3], values[4]


def test_the_figures_are_r2_over_all_tokens_of_the_test_images():
    maps, test = tokens_with_places(2), tokens_with_places(2, n=7, seed=5)
    found = readers(moments(maps[:40]), moments(maps[40:]))
    y = places((4, 5)).repeat(7, 1).numpy()
    first, once, last = figures(found, test)
    for reader, r2 in ((found[0], first[0]), (found[1], once), (found[-1], last)):
        assert r2 == pytest.approx(r2_score(y, reader(test.flatten(0, 2)).numpy()), abs=1e-10)
    each = r2_score(y, found[0](test.flatten(0, 2)).numpy(), multioutput="raw_values")
    assert first[1:] == pytest.approx(each.tolist())


def test_tokens_that_say_nothing_have_r2_zero_and_an_exact_code_has_one():
    noise = torch.randn(80, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    first, *_ = figures(readers(moments(noise[:60]), moments(noise[60:70])), noise[70:])
    assert abs(first[0]) < 0.1
    exact = places((4, 5)).unflatten(0, (4, 5)).expand(20, -1, -1, -1)
    found = readers(moments(exact[:10]), moments(exact[10:]))
    first, once, _ = figures(found, exact[:3])
    assert first[0] == pytest.approx(1, abs=1e-5)
    assert once == pytest.approx(0, abs=1e-9)


def test_rounds_end_and_constant_channels_do_no_harm():
    maps = torch.cat([tokens_with_places(30, dim=40, noise=0.01), torch.ones(60, 4, 5, 3)], -1)
    found = readers(moments(maps[:40]), moments(maps[40:]))
    assert len(found) <= ROUNDS + 1
    assert all(reader.weight.isfinite().all() for reader in found)
    assert found[0].weight[-3:].abs().max() < 1e-6


def test_the_command_reads_every_block(tmp_path):
    pytest.importorskip("nvidia.dali")
    from fastequi.cli.main import main
    from tests.support.configs import run_folder, small_demo

    run = run_folder(tmp_path / "run", small_demo())
    main(["eval", "position", str(run), "--windows", "30", "--test-windows", "10"])
    saved = json.loads((run / "eval_position.json").read_text())
    assert saved["kind"] == "position"
    (found,) = saved["tables"].values()
    rows = {(row["encoder"], row["features"]): row["values"] for row in found["scores"]}
    assert {("run", "embedding"), ("run", "block1"), ("run", "z_equi"), (None, "raw patches")} <= (
        rows.keys()
    )
    code = rows[None, "position only"]
    assert min(code[:3]) > 0.97  # two sinusoids along each axis: nearly linear
    assert all(values[0] <= 1 and values[5] % 2 == 0 for values in rows.values())
    assert found["images"] == 10

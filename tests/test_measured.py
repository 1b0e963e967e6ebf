"""Means, deviations and percentiles of channels, against NumPy on all values at once."""

import json

import numpy as np
import pytest

from fastequi.data.sources.measured import (
    PERCENTILES,
    QUANTILES,
    Counts,
    Measured,
    added,
    in_unit,
    pooled,
)


def images(depth, channels, count=5, seed=0):
    draw = np.random.default_rng(seed)
    for i in range(count):
        shape = (7 + i, 11, channels)
        if depth == "float32":
            yield (draw.normal(-3, 40, shape) * 10.0 ** draw.integers(-3, 3)).astype(depth)
        else:
            yield draw.integers(0, np.iinfo(depth).max + 1, shape).astype(depth)


def whole(each, channels):
    return np.concatenate([x.reshape(-1, channels) for x in each]).astype(np.float64)


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_they_are_those_of_all_values(depth, channels):
    every = list(images(depth, channels))
    counts = Counts(channels, depth)
    for image in every:
        counts.add(Counts.of(image))
    found, values = counts.measured(), whole(every, channels)
    assert found.images == 5
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-9)
    for p in PERCENTILES:
        expected = np.percentile(values, p, axis=0, method="inverted_cdf")
        if depth == "float32":
            assert (np.abs(found.percentiles[p] - expected) <= np.abs(expected) / 512).all(), p
            assert (np.abs(found.percentiles[p]) <= np.abs(expected)).all(), p
        else:
            assert found.percentiles[p] == tuple(expected), p


def test_round_numbers_of_floats_are_themselves():
    """As 0 and 1 are, which many values of an image may be."""
    exact = [-9984.0, -1.0, -0.0, 0.5, 1.0, 255.0]
    values = np.array(exact, np.float32).repeat(20).reshape(-1, 1, 1)
    found = Counts.of(values).measured()
    assert sorted(set(found.quantiles[0])) == exact
    assert (found.percentiles[0.0], found.percentiles[100.0]) == ((-9984.0,), (255.0,))
    assert "-0.0" not in json.dumps(found.to_json())
    assert found.outside(0, -1.0, 1.0) == pytest.approx(2 / 6, abs=3e-3)
    assert found.outside(0, -9984.0, 255.0) == 0


def test_a_percentile_is_within_the_range_that_is_written_of_it():
    values = np.full((10, 10, 1), -3.4028235e38, np.float32)
    values[5:] = np.float32(1) / 3
    measured = Counts.of(values).measured()
    low, high = (float(f"{measured.percentiles[p][0]:.9g}") for p in (0.1, 99.9))
    assert low != measured.percentiles[0.1][0]  # nine digits are not all
    assert measured.outside(0, low, high) == 0
    assert in_unit(measured, ((low, high),), (0,))[0][0] == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
def test_parts_add_up_to_the_whole_in_any_order(depth):
    each = [Counts.of(image) for image in images(depth, 3, count=7)]
    kept = [json.dumps(counts.to_json()) for counts in each]
    found = []
    for order in (range(7), (6, 2, 0, 5, 1, 4, 3)):
        total = {}
        for i in order:
            added(total, {9: Counts.of_json(json.loads(kept[i]))})
        found.append(total[9].measured())
    assert found[0] == found[1]
    assert Measured.of_json(json.loads(json.dumps(found[0].to_json()))) == found[0]


def test_in_a_range():
    """Exact where nothing is clipped, else within the quantiles' steps."""
    values = whole(images("uint16", 3, count=40), 3)
    counts = Counts(3, "uint16")
    for image in images("uint16", 3, count=40):
        counts.add(Counts.of(image))
    measured = counts.measured()
    mean, std = in_unit(measured, ((0.0, 65535.0), (-1e5, 1e5)), (2, 0))
    np.testing.assert_allclose(mean[0], values[:, 2].mean() / 65535, rtol=1e-9)
    np.testing.assert_allclose(mean[1], (values[:, 0].mean() + 1e5) / 2e5, rtol=1e-9)
    np.testing.assert_allclose(std[1], values[:, 0].std() / 2e5, rtol=1e-9)
    for low, high in ((20000.0, 40000.0), (-5e4, 3e4), (6e4, 1e5)):
        ((mean,), (std,)) = in_unit(measured, ((low, high),), (1,))
        unit = ((values[:, 1] - low) / (high - low)).clip(0, 1)
        assert mean == pytest.approx(unit.mean(), abs=2e-3)
        assert std == pytest.approx(unit.std(), abs=2e-3)
        outside = ((values[:, 1] < low) | (values[:, 1] > high)).mean()
        assert measured.outside(1, low, high) == pytest.approx(outside, abs=3e-3)


def test_what_was_measured_of_places_is_pooled():
    draw = np.random.default_rng(0)
    images = [
        [(draw.normal(300 + 900 * k, 50 + 40 * k, (40, 30, 2)).clip(0, 4000)).astype(np.uint16)
         for _ in range(3 + 4 * k)]
        for k in range(2)
    ]  # fmt: skip
    parts = []
    for place in images:
        counts = Counts(2, "uint16")
        for image in place:
            counts.add(Counts.of(image))
        parts.append((counts.measured(), sum(image[..., 0].size for image in place)))
    found = pooled(parts)
    every = np.concatenate([image.reshape(-1, 2) for place in images for image in place])
    assert found.images == 10
    np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, every.std(0), rtol=1e-12)
    for p, values in found.percentiles.items():
        for channel, value in zip(every.T, values, strict=True):
            below, above = (channel < value).mean(), (channel <= value).mean()
            assert below - 1e-3 <= p / 100 <= above + 1e-3, p
    assert found.percentiles[0.0] == tuple(every.min(0))
    assert found.percentiles[100.0] == tuple(every.max(0))
    assert np.shape(found.quantiles) == (2, QUANTILES)
    assert pooled(parts[:1]).quantiles == parts[0][0].quantiles


def test_a_small_part_of_all_values_is_no_percentile_of_them():
    """.1 % of a place's values lie below its first quantile."""
    wide = np.arange(65536, dtype=np.uint16).repeat(2).reshape(-1, 1, 1)
    narrow = np.full((10, 1, 1), 30000, np.uint16)
    found = pooled([(Counts.of(v).measured(), v.size) for v in (wide, narrow)])
    for p, (value,) in found.percentiles.items():
        assert abs(value / 65536 - p / 100) < 1.1e-3, p

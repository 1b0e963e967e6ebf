"""Means, deviations and percentiles of channels, against NumPy on all values at once."""

import json

import numpy as np
import pytest

from fastequi.data.sources.measured import PERCENTILES, Counts, Measured, added, in_unit


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
            assert (np.abs(found.percentiles[p] - expected) <= np.abs(expected) / 1024).all(), p
        else:
            assert found.percentiles[p] == tuple(expected), p


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
    measured = Measured(1, (100.0, 7.0, 50.0), (10.0, 1.0, 20.0), {})
    mean, std = in_unit(measured, ((0.0, 200.0), (40.0, 80.0)), (0, 2))
    assert mean == (0.5, 0.25)
    assert std == (0.05, 0.5)

"""Counter-based draws: the authors' known answers, addresses, and plain statistics."""

import numpy as np
import pytest

from fastequi.philox import Draws, permutation, philox4x32

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123, philox4x32 10 rounds
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert philox4x32(np.array(counter, np.uint64), key).tolist() == expected


def test_a_draw_depends_on_its_address_only():
    ids = np.array([7, 3, 2**32 - 1, 0])
    draws = Draws.of(5, 2, ids)
    words = draws.bits("v1/crop", 6)
    assert words.shape == (4, 6)
    for row, sample in enumerate(ids):
        np.testing.assert_array_equal(Draws.of(5, 2, [sample]).bits("v1/crop", 6)[0], words[row])
    np.testing.assert_array_equal(draws.bits("v1/crop", 3), words[:, :3])
    others = [
        draws.bits("v1/flip", 6),
        Draws.of(6, 2, ids).bits("v1/crop", 6),
        Draws.of(5 + 2**32, 2, ids).bits("v1/crop", 6),
        Draws.of(5, 3, ids).bits("v1/crop", 6),
        Draws.of(5, 2, ids + 1 - (ids > 7)).bits("v1/crop", 6)[:2],
    ]
    for other in others:
        assert not np.isin(other, words).any()


def test_uniform_is_uniform_and_streams_are_uncorrelated():
    n = 20_000
    draws = Draws.of(1, 0, np.arange(n))
    unit = draws.uniform("a", 4)
    assert unit.dtype == np.float32
    assert unit.min() >= 0
    assert unit.max() < 1
    for column in unit.T:
        counts = np.histogram(column, 64, (0, 1))[0]
        chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
        assert 25 < chi2 < 115  # 63 degrees of freedom, about 1e-5 on both sides
    neighbours = [unit[:-1], draws.uniform("b", 4)[:-1], unit[1:]]
    correlation = np.corrcoef(np.concatenate(neighbours, 1).T) - np.eye(12)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)
    shifted = draws.uniform("a", 4, -3.0, 5.0)
    np.testing.assert_allclose(shifted, unit * 8 - 3, rtol=1e-6, atol=1e-6)


def test_no_samples():
    assert Draws.of(0, 0, []).uniform("a", 3).shape == (0, 3)
    assert len(Draws.of(0, 0, [])) == 0


def test_permutation():
    orders = [permutation(1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(orders[0], permutation(1000, 0, 0))
    for other in orders[1:]:
        assert (orders[0] == other).mean() < 0.02
    first = np.array([permutation(5, seed, 0)[0] for seed in range(2000)])
    assert np.abs(np.bincount(first, minlength=5) - 400).max() < 90


def test_samples_beyond_32_bits():
    ids = [5, 5 + 2**32, 5 + 2**33, 5 + 2**47]
    words = Draws.of(1, 2, ids).bits("a", 12)
    assert len(np.unique(words)) == words.size
    np.testing.assert_array_equal(words[:1], Draws.of(1, 2, [5]).bits("a", 12))
    for wrong in (2**48, -1):
        with pytest.raises(ValueError, match=rf"sample_ids: expected 0 to 2\^48 - 1, got {wrong}"):
            Draws.of(0, 0, [3, wrong]).bits("a", 1)
    with pytest.raises(
        ValueError, match="n: expected at most 262144 words of a stream, got 262145"
    ):
        Draws.of(0, 0, [3]).bits("a", 2**18 + 1)

"""The order without a table: a bijection, close to a random one, the same everywhere, fast."""

import itertools
import time

import numpy as np
import pytest

from fastequi.config import Config
from fastequi.data.config import DataConfig
from fastequi.data.order import MOST, shuffled
from fastequi.data.sampler import Sampler


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097, 65_536, 99_991])
def test_every_image_comes_once(n):
    for seed, epoch, turn in ((0, 0, 0), (2**63 + 5, 7, 3)):
        found = shuffled(np.arange(n), n, seed, epoch, turn)
        np.testing.assert_array_equal(np.sort(found), np.arange(n))


def test_known_answers():
    """Runs continue where another machine or version stopped."""
    assert shuffled(np.arange(10), 10, 0, 0).tolist() == KNOWN[10]
    assert shuffled([0, 1, 2, 10**12 - 1], 10**12, 42, 3).tolist() == KNOWN[10**12]
    assert shuffled([0, MOST - 1], MOST, 1 << 63, 2**32 - 1).tolist() == KNOWN[MOST]


KNOWN = {
    10: [3, 7, 4, 2, 9, 5, 1, 6, 0, 8],
    10**12: [709282843874, 226081595342, 478788104601, 38329289162],
    MOST: [3470679298198116549, 4264067301867185577],
}


def test_any_part_of_the_order_by_itself():
    n = 10**12
    positions = np.random.default_rng(0).integers(0, n, 5000)
    whole = shuffled(positions, n, 7, 2)
    assert len(np.unique(whole)) == len(np.unique(positions))
    for i in (0, 17, 4999):
        assert shuffled(positions[i], n, 7, 2)[0] == whole[i]
    turns = np.arange(5000) % 3
    mixed = shuffled(positions, n, 7, 2, turns)
    for turn in range(3):
        kept = turns == turn
        np.testing.assert_array_equal(mixed[kept], shuffled(positions[kept], n, 7, 2, turn))


def chi_square(counts, expected):
    """In standard deviations from its mean."""
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_orders_of_a_few_images_are_alike_often(n):
    times = 60 * len(list(itertools.permutations(range(n))))
    turns = np.repeat(np.arange(times), n)
    found = shuffled(np.tile(np.arange(n), times), n, 0, 0, turns).reshape(times, n)
    _, counts = np.unique(found @ n ** np.arange(n), return_counts=True)
    assert len(counts) == len(list(itertools.permutations(range(n))))
    assert abs(chi_square(counts, times / len(counts))) < 5


@pytest.mark.slow
@pytest.mark.parametrize("n", [7, 5000])
def test_two_places_see_all_pairs_of_images_alike_often(n):
    turns, times, cells = 20_000, np.arange(20_000), min(n, 30)
    size = np.bincount(np.arange(n) * cells // n)  # images in a cell
    share = np.outer(size, size) - np.diag(size)
    for places in ((0, 1), (0, n - 1), (n // 2, n // 2 + 1)):
        one, two = (shuffled(np.full(turns, p), n, 3, 0, times) * cells // n for p in places)
        counts = np.bincount(one * cells + two, minlength=cells**2).reshape(cells, cells)
        assert (counts[share == 0] == 0).all()
        possible = share > 0
        assert abs(chi_square(counts[possible], share[possible] / share.sum() * turns)) < 5
    first = np.concatenate([shuffled([0], n, 3, epoch) for epoch in range(2000)])
    fifths = np.bincount(np.arange(n) * 5 // n) / n
    assert abs(chi_square(np.bincount(first * 5 // n, minlength=5), fifths * 2000)) < 5


@pytest.mark.slow
def test_neighbours_and_epochs_tell_nothing_of_each_other():
    n = 1_000_003
    found = shuffled(np.arange(n), n, 5, 0) / n
    again = shuffled(np.arange(n), n, 5, 1) / n
    limit = 5 / np.sqrt(n)  # five standard deviations of a correlation of independent values
    for lag in (1, 2, 1000, 1001, 1002):  # 1001: the side of the network's halves
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < limit, lag
        steps = (found[lag:] - found[:-lag]) % 1
        counts, _ = np.histogram(steps, 64, (0, 1))
        assert abs(chi_square(counts, len(steps) / 64)) < 5, lag
    assert abs(np.corrcoef(found, again)[0, 1]) < limit
    assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < limit
    pairs, *_ = np.histogram2d(found, again, 32, ((0, 1), (0, 1)))
    assert abs(chi_square(pairs, n / 32**2)) < 5
    assert (np.diff(found) > 0).mean() == pytest.approx(0.5, abs=5 / np.sqrt(n))


def test_wrong_arguments():
    for n in (0, -1, MOST + 1):
        with pytest.raises(ValueError, match=r"n: expected 1 to 2\^62 images, got"):
            shuffled([0], n, 0, 0)
    for positions in ([-1], [0, 10]):
        with pytest.raises(ValueError, match="positions: expected 0 to 9, got"):
            shuffled(positions, 10, 0, 0)
    with pytest.raises(ValueError, match="order: expected computed or table, got sorted"):
        DataConfig(order="sorted")


def test_a_sampler_of_a_set_that_no_machine_holds():
    """A position of an epoch of 10^12 images costs what one of the first costs, and no memory."""
    n, cfg = 10**12, DataConfig(batch_size=256, repeat=2, samples_per_decode=2)
    sampler = Sampler(n, cfg, seed=1, rank=1, world_size=4)
    assert len(sampler) == 2 * 2 * n // 256
    middle = {"epoch": 5, "index": 256 * (len(sampler) // 2 + 12345), "num_files": n}
    sampler.load_state_dict(middle)
    first = next(sampler)
    rest = [next(sampler) for _ in range(300)]
    assert first.sample_ids.max() > 2**32
    again = Sampler(n, cfg, seed=1, rank=1, world_size=4)
    again.load_state_dict({**middle, "index": middle["index"] + 200 * 256})
    np.testing.assert_array_equal(next(again).sample_ids, rest[199].sample_ids)
    assert least_time(n) < 4 * least_time(5000)


def least_time(n):
    """Seconds that one position takes at best."""
    took = []
    for i in range(30):
        start = time.perf_counter()
        shuffled([n - 1 - i], n, 1, 0)
        took.append(time.perf_counter() - start)
    return min(took)


@pytest.mark.parametrize("order", ["computed", "table"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_and_repeats(order, world):
    cfg = DataConfig(batch_size=16, samples_per_decode=2, repeat=3, order=order)
    samplers = [Sampler(40, cfg, 9, rank, world) for rank in range(world)]
    epoch = len(samplers[0])
    for number in range(2):
        files = []
        for _ in range(epoch):
            steps = [next(sampler) for sampler in samplers]
            assert {step.epoch for step in steps} == {number}
            files.append(np.concatenate([step.files for step in steps]))
        rounds = np.concatenate(files).reshape(3, 40)
        np.testing.assert_array_equal(np.sort(rounds, 1), np.tile(np.arange(40), (3, 1)))
        assert (rounds[0] != rounds[1]).any()


def test_runs_begun_before_keep_their_order():
    text = Config().to_json()
    before = text.replace(' "order": "computed",\n', "")
    assert before != text
    assert Config.from_json(text).data.order == "computed"
    assert Config.from_json(before.replace('  "order": "computed",\n', "")).data.order == "table"

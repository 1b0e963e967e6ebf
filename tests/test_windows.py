"""The order of windows: each image once a round, few shards at a time, the same on any ranks."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from fastequi.config import Config
from fastequi.data.config import DataConfig
from fastequi.data.sampler import Sampler
from fastequi.data.sources.image_sets import open_source
from fastequi.data.windows import Windows, members_in, members_of
from fastequi.resuming import changes
from tests.support.shards import shards

UNEVEN = np.array([3, 1, 40, 7, 7, 12, 1, 1, 90, 5, 2])
CFG = DataConfig(batch_size=12, samples_per_decode=2, repeat=3, shuffle="window", window=3)


def take(sampler, n):
    return list(itertools.islice(sampler, n))


def shards_of(members):
    return np.repeat(np.arange(len(members)), members)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 11, 100])
def test_every_image_comes_once_a_round_window_by_window(window):
    n = UNEVEN.sum()
    order = Windows(UNEVEN, window, seed=2**63 + 5)
    shard = shards_of(UNEVEN)
    seen = set()
    for epoch, turn in itertools.product((0, 7), (0, 2)):
        found = order.images(np.arange(n), epoch, turn)
        np.testing.assert_array_equal(np.sort(found), np.arange(n))
        seen.add(found.tobytes())
        at = 0
        for k in range(order.count):
            shards = order.shards(k, epoch, turn)
            assert len(shards) == min(window, len(UNEVEN) - k * window)
            size = UNEVEN[shards].sum()
            assert set(shard[found[at : at + size]]) == set(shards)
            assert order.window_at(at, epoch, turn) == k
            assert order.window_at(at + size - 1, epoch, turn) == k
            at += size
    assert len(seen) == 4


def test_known_answers():
    """Runs continue where another machine or version stopped."""
    order = Windows([3, 1, 4, 2], 2, seed=7)
    assert order.images(np.arange(10), 1, 0).tolist() == KNOWN[0]
    assert order.images(np.arange(10), 1, 1).tolist() == KNOWN[1]


KNOWN = [[9, 1, 2, 0, 8, 7, 6, 3, 4, 5], [8, 1, 0, 2, 9, 7, 5, 4, 3, 6]]


def test_members_are_mixed_within_a_window():
    """All W shards of a window are met from its beginning, each as its share of members says."""
    members = np.full(64, 1000)
    order = Windows(members, 8, seed=0)
    shard = shards_of(members)[order.images(np.arange(8000), 0, 0)]
    assert len(set(shard)) == 8
    for part in np.split(shard, 8):
        counts = np.unique(part, return_counts=True)[1]
        assert len(counts) == 8
        assert np.abs(counts - 125).max() < 5 * np.sqrt(125)


def test_any_position_by_itself_of_any_round():
    members = np.random.default_rng(0).integers(1, 3000, 5000)
    order = Windows(members, 16, seed=1)
    places = np.random.default_rng(1).integers(0, members.sum(), 500)
    turns = np.arange(500) % 3
    whole = order.images(places, 4, turns)
    for i in (0, 17, 499):
        fresh = Windows(members, 16, seed=1)
        assert fresh.images(places[i], 4, turns[i])[0] == whole[i]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_sampler_s_ranks_rounds_and_resumed_runs(world):
    n = int(UNEVEN.sum())

    def sampler(rank=0, world=1):
        return Sampler(n, CFG, 9, rank, world, UNEVEN)

    whole = take(sampler(), 100)
    ranks = [sampler(rank, world) for rank in range(world)]
    for expected in whole:
        parts = [next(rank) for rank in ranks]
        together = np.concatenate([part.sample_ids for part in parts])
        np.testing.assert_array_equal(together, expected.sample_ids)
    length = len(sampler())
    ids = np.concatenate([step.sample_ids for step in whole[:length]])
    assert len(set(ids)) == len(ids) == length * 12
    assert {step.epoch for step in whole[:length]} == {0}
    for done in (1, length - 1, length, 99):  # on another number of ranks
        state = json.loads(json.dumps(whole_state(sampler(), done)))
        again = [sampler(rank, world) for rank in range(world)]
        for one in again:
            one.load_state_dict(state)
        parts = [next(one).sample_ids for one in again]
        if done < len(whole):
            np.testing.assert_array_equal(np.concatenate(parts), whole[done].sample_ids)


def whole_state(sampler, done):
    take(sampler, done)
    return sampler.state_dict()


def openings(shards, windows):
    """Of [steps] or more: how often each (epoch-unique) shard is opened by one who keeps those of
    the window in use."""
    moves = np.flatnonzero(np.diff(windows)) + 1
    assert (np.diff(windows) >= 0).all()
    parts = np.split(shards, moves)
    return np.unique(np.concatenate([np.unique(part) for part in parts]), return_counts=True)[1]


@pytest.mark.parametrize(
    ("ranks", "steps", "shards"),
    [(64, 600, 30), pytest.param(1024, 10_000, 3000, marks=pytest.mark.slow)],
)
def test_a_simulation_of_many_ranks(ranks, steps, shards):
    """Each sample once an epoch; each shard opened once a round by a rank, and by all of them."""
    members = np.random.default_rng(3).integers(1, 1000, shards)
    n, shard = int(members.sum()), shards_of(members)
    cfg = DataConfig(batch_size=ranks, shuffle="window", window=16)
    job = Sampler(n, cfg, 5, members=members)
    files = np.empty((steps, ranks), np.int64)
    epochs, first = np.empty(steps, np.int64), np.empty(steps, np.int64)
    for step, one in enumerate(itertools.islice(job, steps)):
        files[step], epochs[step], first[step] = one.files, one.epoch, one.used - ranks
    assert epochs[-1] >= 2
    for epoch in range(epochs[-1] + 1):
        of = epochs == epoch
        counts = np.bincount(files[of].ravel(), minlength=n)
        assert counts.max() == 1
        if epoch < epochs[-1]:  # a whole one, apart from the rest that fills no step
            assert counts.sum() == n // ranks * ranks
        positions = first[of][:, None] + np.arange(ranks)
        ends = job.windows._round(epoch, 0).windows
        windows = np.searchsorted(ends, positions, "right")
        of_shard = shard[files[of]]
        sizes = np.diff(ends, prepend=0)
        for k, size in enumerate(sizes):  # ceil(members of a shard / members of its window)
            own = members[job.windows.shards(k, epoch, 0)]
            assert own.sum() == size
            assert (-(-own // size) == 1).all()
        assert openings(of_shard.ravel(), windows.ravel()).max() == 1
        for rank in range(0, ranks, max(1, ranks // 64)):
            assert openings(of_shard[:, rank], windows[:, rank]).max() == 1
    for rank in (0, ranks // 2, ranks - 1):  # the ranks' own samplers
        own = Sampler(n, cfg, 5, rank, ranks, members)
        found = np.array([step.files[0] for step in itertools.islice(own, steps)])
        np.testing.assert_array_equal(found, files[:, rank])


def test_shards_are_told_by_names():
    names = ["a/x.tar/1.jpg", "a/x.tar/sub/2.jpg", "a/y.tar/1.jpg", "b.tar/1.tar.jpg"]
    np.testing.assert_array_equal(members_of(names), [2, 1, 1])
    with pytest.raises(ValueError, match=r"needs images in tar shards, cat/1\.jpg is in none"):
        members_of(["a.tar/1.jpg", "cat/1.jpg"])


def test_shards_of_an_index_are_told_by_their_numbers(tmp_path):
    for name, data in shards(sizes=(6, 3, 1, 7)).items():
        (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path / "{000..003}.tar")
    np.testing.assert_array_equal(members_in(source), [6, 3, 1, 7])
    some = source.pick([0, 1, 6, 8, 10])
    np.testing.assert_array_equal(members_in(some), members_of(some.names))
    plain = replace(source, paths=tuple(source.paths), names=tuple(source.names))
    np.testing.assert_array_equal(members_in(plain), [6, 3, 1, 7])


def test_wrong_arguments():
    for members in ([], [3, 0]):
        with pytest.raises(ValueError, match="of each at least one image"):
            Windows(members, 2, 0)
    with pytest.raises(ValueError, match=r"data.window: expected at least 1 shard, got 0"):
        Windows([1], 0, 0)
    with pytest.raises(ValueError, match="positions: expected 0 to 3, got 4 to 4"):
        Windows([1, 3], 2, 0).images([4], 0, 0)
    with pytest.raises(ValueError, match=r"fewer than 2\^29 windows"):
        Windows([1, 3], 2, 0).images([0], 0, 1 << 29)
    with pytest.raises(ValueError, match="window needs images in tar shards"):
        Sampler(12, CFG, 0)
    for wrong, said in (
        ({"shuffle": "local"}, "shuffle: expected global or window, got local"),
        ({"shuffle": "window", "order": "table"}, "order: expected computed beside shuffle=window"),
        ({"window": 0}, "window: expected at least 1 shard, got 0"),
        ({"cache_gb": 0.0}, "cache_gb: expected a size > 0"),
        ({"cache_gb": float("inf")}, "cache_gb: expected a size > 0"),
    ):
        with pytest.raises(ValueError, match=said):
            DataConfig(**wrong)


def test_a_resumed_run_keeps_its_shuffle_and_may_change_its_cache():
    begun = Config()

    def changed(**values):
        return Config(data=DataConfig(**values))

    with pytest.raises(ValueError, match=r"data.shuffle: expected global, which --resume cannot"):
        changes(begun, changed(shuffle="window"))
    with pytest.raises(ValueError, match=r"data.window: expected 4, which --resume cannot change"):
        changes(changed(shuffle="window", window=4), changed(shuffle="window", window=5))
    assert changes(begun, changed(window=5)) == {}
    found = changes(begun, changed(cache_dir="/scratch", cache_gb=2.0))
    assert set(found) == {"data.cache_dir", "data.cache_gb"}
    before = json.loads(begun.to_json())
    for name in ("shuffle", "window", "cache_dir", "cache_gb"):
        del before["data"][name]
    assert Config.from_json(json.dumps(before)).data.shuffle == "global"

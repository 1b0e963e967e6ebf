"""The order of samples: complete, addressed uniquely, resumable, the same for any ranks."""

import itertools
import json

import numpy as np
import pytest

from fastequi.data.config import DataConfig
from fastequi.data.sampler import Sampler

CFG = DataConfig(batch_size=8, samples_per_decode=2, repeat=3)


def take(sampler, n):
    return list(itertools.islice(sampler, n))


def test_an_epoch_visits_every_sample_once():
    sampler = Sampler(12, CFG, seed=0)
    assert len(sampler) == 9  # 12 files, 3 rounds, 2 samples; batches of 8
    steps = take(sampler, 9)
    assert {step.epoch for step in steps} == {0}
    ids = np.concatenate([step.sample_ids for step in steps])
    np.testing.assert_array_equal(np.sort(ids), np.arange(72))
    files = np.concatenate([step.files for step in steps])
    np.testing.assert_array_equal(ids[::2] // 6, files)
    np.testing.assert_array_equal(ids[::2] + 1, ids[1::2])
    for part in files.reshape(3, 12):  # a round visits every file once
        np.testing.assert_array_equal(np.sort(part), np.arange(12))
    later = take(sampler, 9)
    assert {step.epoch for step in later} == {1}
    assert (np.concatenate([step.files for step in later]) != files).any()


def test_one_decode_per_epoch_is_the_plain_case():
    sampler = Sampler(10, DataConfig(batch_size=4), seed=3)
    assert len(sampler) == 2
    steps = take(sampler, 3)
    np.testing.assert_array_equal(steps[0].files, steps[0].sample_ids)
    assert len(set(np.concatenate([s.files for s in steps[:2]]))) == 8
    assert [step.epoch for step in steps] == [0, 0, 1]


def test_state_resumes_exactly_even_across_epochs():
    whole = take(Sampler(9, CFG, seed=1), 20)
    for done in (0, 1, 5, 6, 13):
        first = Sampler(9, CFG, seed=1)
        take(first, done)
        state = json.loads(json.dumps(first.state_dict()))
        second = Sampler(9, CFG, seed=1)
        second.load_state_dict(state)
        for ours, expected in zip(take(second, 20 - done), whole[done:], strict=True):
            assert ours.epoch == expected.epoch
            np.testing.assert_array_equal(ours.sample_ids, expected.sample_ids)


def test_ranks_share_the_same_steps():
    whole = take(Sampler(12, CFG, seed=2), 12)
    ranks = [take(Sampler(12, CFG, seed=2, rank=r, world_size=4), 12) for r in range(4)]
    for step, expected in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        np.testing.assert_array_equal(
            np.concatenate([part.sample_ids for part in parts]), expected.sample_ids
        )
        assert {(part.epoch, part.used) for part in parts} == {(expected.epoch, expected.used)}


def test_seeds_differ():
    a, b = (np.concatenate([s.files for s in take(Sampler(50, CFG, seed=s), 5)]) for s in (0, 1))
    assert (a != b).any()


def test_errors():
    with pytest.raises(ValueError, match="expected repeat >= 2, or a smaller batch_size"):
        Sampler(3, DataConfig(batch_size=8, samples_per_decode=2), seed=0)
    with pytest.raises(ValueError, match="multiple of world_size"):
        Sampler(12, CFG, seed=0, rank=0, world_size=3)
    with pytest.raises(ValueError, match="rank: expected 0 <= rank < world_size=2, got 2"):
        Sampler(12, CFG, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="had 12 readable images, now there are 11"):
        Sampler(11, CFG, seed=0).load_state_dict(Sampler(12, CFG, seed=0).state_dict())
    with pytest.raises(ValueError, match="samples_per_decode=2"):
        Sampler(12, CFG, seed=0).load_state_dict({"epoch": 0, "index": 3, "num_files": 12})

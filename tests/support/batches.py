"""Batches of a small loader on the embedded photographs."""

import torch

from fastequi.data.config import Augment, DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.paths import SE2

CROP = Augment(side=(48 / 256, 77 / 256), aspect=(1.0, 1.0), blur=0.3, solarize=0.3)
CFG = DataConfig(
    image_size=32,
    source_size=48,
    a1=CROP,
    a2=CROP,
    shared_crop=True,
    batch_size=8,
    samples_per_decode=4,
    num_threads=1,
)
PHOTOS = embedded_photos()


def batches(n, source=PHOTOS, cfg=CFG, **options):
    with make_loader(source, cfg, SE2(), **{"seed": 0, "steps": n, **options}) as loader:
        return list(loader)


def assert_same(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert a.epoch == b.epoch
        for name in ("v1", "u", "path", "sample_ids"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert (a.local_crops is None) == (b.local_crops is None)
        assert a.local_crops is None or torch.equal(a.local_crops, b.local_crops)

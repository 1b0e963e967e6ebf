"""Small tar shards of small images, with their classes beside them, and views of them."""

import io
import tarfile

import numpy as np
from PIL import Image

from fastequi.data.config import Augment, DataConfig
from tests.support.corpus import saved

VIEWS = DataConfig(
    image_size=16,
    source_size=24,
    a2=Augment(solarize=0.3),
    local_crops=2,
    local_crop_size=8,
    batch_size=8,
    samples_per_decode=2,
    repeat=2,
    num_threads=2,
)


def tar(members):
    """The bytes of a shard of {name: bytes}, or of pairs where a name comes twice."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def picture(i, size=(20, 30)):
    values = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    return saved(Image.fromarray(values), "JPEG" if i % 2 else "PNG")


def shards(sizes=(6, 3, 7, 4, 4)):
    """{"000.tar": bytes} of as many images as the sizes say; image i has class i % 3."""
    found, at = {}, 0
    for k, count in enumerate(sizes):
        members = {}
        for i in range(at, at + count):
            members[f"{i:03}.{'jpg' if i % 2 else 'png'}"] = picture(i, (20 + i, 30))
            members[f"{i:03}.cls"] = str(i % 3).encode()
        found[f"{k:03}.tar"], at = tar(members), at + count
    return found

"""A training step hands the GPU its work and waits for none of it. The loader is not part of it."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fastequi import train
from fastequi.cli.dryrun import synthetic
from fastequi.data.sources.image_sets import embedded_photos
from tests.support.configs import config_of

NAMES = [
    *("tir_vicreg_vits16", "tir_simclr_vits16", "tir_dino_vits16", "tir_dinov2_vitl16"),
    *("gtsa_vits16", "rotnet_vits16"),
]
READS = "item", "__bool__", "__float__", "__int__", "__index__", "tolist", "numpy"


class Made:
    """Three batches that lie on the device; the second one's step is `watched`."""

    epoch, quarantined, left_out = 0, (), frozenset()

    def __init__(self, batches, watch):
        self.batches, self.watch = batches, watch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __len__(self):
        return 100

    def __iter__(self):
        first, second, third = self.batches
        yield first
        with self.watch():
            yield second
        yield third

    def state_dict(self):
        return {}

    def leave_out(self, places):
        assert not places


@contextmanager
def on_a_gpu():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def on_a_cpu():
    """What would wait on a GPU asks a tensor for its value; kernels do so in branches for CPUs."""

    def watched(plain):
        def read(tensor, *rest):
            asking = Path(sys._getframe(1).f_code.co_filename)
            assert asking.parent.name == "kernels", f"{asking} asked for a value"
            return plain(tensor, *rest)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
        yield


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "auto") for name in NAMES), (NAMES[0], "fp16")]
)
def test_a_step_waits_for_nothing(name, precision, device, monkeypatch, tmp_path):
    rare = {"log_every": 100, "checkpoint_every": 0}
    config = config_of(name, ema_momentum=0.9, precision=precision, **rare)
    batches = [synthetic(config, config.data.batch_size, device) for _ in range(3)]
    steps = []

    @contextmanager
    def watch():
        with on_a_gpu() if device.type == "cuda" else on_a_cpu():
            yield
            steps.append("whole")

    monkeypatch.setattr(train, "make_loader", lambda *_, **__: Made(batches, watch))
    train.pretrain(config, embedded_photos(), tmp_path, max_steps=3)
    assert steps == ["whole"]

"""All networks where there are no values: on the meta device and as fake tensors, in any dtype."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastequi.models.alexnet import AlexNet, AlexNetClassifier
from fastequi.models.decoder import PathDecoder, PixelShuffleDecoder
from fastequi.models.heads import DINOHead, Expander, SplitHead
from fastequi.models.maps import MapPredictor, MapProjector, RotationHead
from fastequi.models.nin import NetworkInNetwork
from fastequi.models.vit import VisionTransformer

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
# of each: how it is made, the shape of its input, that of its (last) output
NETWORKS = {
    "vit": (lambda: VisionTransformer(**VIT, drop_path=0.5), (2, 3, 32, 32), (2, 17, 16)),
    "vit, resized": (
        lambda: VisionTransformer(**VIT, reg_tokens=2, init_values=0.1, no_embed_class=True),
        (2, 3, 48, 16),
        (2, 15, 16),
    ),
    "vit, checkpointed": (
        lambda: VisionTransformer(**VIT, checkpoint_activations=True),
        (2, 3, 32, 32),
        (2, 17, 16),
    ),
    "vit, rotary": (
        lambda: VisionTransformer(**VIT, mlp="swiglu", pos="rope", rope_rescale=2.0, reg_tokens=2),
        (2, 3, 48, 16),
        (2, 15, 16),
    ),
    "nin": (NetworkInNetwork, (2, 3, 32, 32), (2, 192, 8, 8)),
    "alexnet": (AlexNet, (2, 3, 224, 224), (2, 256, 6, 6)),
    "classifier": (lambda: AlexNetClassifier(4), (2, 256, 6, 6), (2, 4)),
    "decoder": (lambda: PathDecoder(16, 4, width=8), (2, 9, 16), (2, 2, 9, 48)),
    "linear decoder": (lambda: PathDecoder(16, 4, width=8, num_convs=0), (2, 9, 16), (2, 2, 9, 48)),
    "pixel shuffle": (lambda: PixelShuffleDecoder(16, 4, width=8), (2, 9, 16), (2, 2, 3, 12, 12)),
    "split": (lambda: SplitHead(16, 8, 2), (2, 9, 16), (2, 9, 2)),
    "expander": (lambda: Expander(16, (8, 8)), (4, 16), (4, 8)),
    "prototypes": (lambda: DINOHead(16, 32, 8, 8, 4), (4, 16), (4, 32)),
    "projector": (lambda: MapProjector(16, 8), (2, 4, 3, 16), (2, 4, 3, 8)),
    "predictor": (lambda: MapPredictor(16), (2, 4, 3, 16), (2, 4, 3, 16)),
    "rotation": (lambda: RotationHead(16, (8, 4)), (4, 16), (4, 4)),
}


@contextmanager
def by_default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def answer(name):
    make, given, _ = NETWORKS[name]
    network = make().train()
    out = network(torch.randn(given))
    out = out[-1] if isinstance(out, (list, tuple)) else out
    out.float().sum().backward()
    return out, next(network.parameters()).grad


@pytest.mark.slow(every=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_without_values(name, dtype):
    shape = NETWORKS[name][2]
    with by_default(dtype):
        with torch.device("meta"):
            out, grad = answer(name)
        assert (out.device.type, grad.device.type) == ("meta", "meta")
        assert tuple(out.shape) == shape
        with FakeTensorMode():
            fake, grad = answer(name)
        assert isinstance(fake, FakeTensor)
        assert isinstance(grad, FakeTensor)
        assert (tuple(fake.shape), fake.dtype) == (shape, out.dtype)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"alexnet", "classifier"}))
def test_networks_run_under_another_default_dtype(name):
    with by_default(torch.bfloat16):
        out, grad = answer(name)
    assert tuple(out.shape) == NETWORKS[name][2]
    assert out.isfinite().all()
    assert grad.dtype == torch.bfloat16

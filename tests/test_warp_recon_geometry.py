"""The fast Triton kernel at any size and under any matrix."""

import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import warp_recon_loss
from fastequi.kernels.pixel_loss import patchify
from tests.support.packed import interleaved, predictions
from tests.support.warp_recon import eager

pytestmark = pytest.mark.usefixtures("only_packed")


@settings(max_examples=40 if torch.cuda.is_available() else 8, deadline=None)
@given(
    st.integers(2, 24), st.integers(2, 24), st.integers(1, 3), st.sampled_from([3, 4]),
    st.sampled_from([0, 4, 8]), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(["zeros", "border", "reflection"]), st.booleans(),
    st.lists(st.one_of(st.floats(-2, 2), st.sampled_from([1e30, -1e30, 3e38, 0.0])),
             min_size=6, max_size=6),
)  # fmt: skip
def test_any_geometry(height, width, k, texel, patch, gh, gw, padding, align, entries):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (gh * (patch or 3), gw * (patch or 4))
    image = interleaved(1, (height, width), texel)
    theta = torch.tensor(entries).view(1, 1, 2, 3).expand(1, k, 2, 3)
    pred = predictions(1, k, size)
    if theta.abs().max() <= 2:
        options = {"padding_mode": padding, "align_corners": align}
        layout = {"layout": "patch", "patch_size": patch, "size": size} if patch else {}
        tokens = (patchify(pred, patch) if patch else pred).to(device)
        args = image.to(device), theta.to(device)
        loss = warp_recon_loss(tokens, *args, **layout, **options)
        expected = eager(tokens, *args, patch=patch, size=size, **options).sum() / pred.numel()
        assert (loss - expected).abs() <= 1e-3 * expected.abs()
    else:
        loss = warp_recon_loss(pred.to(device), image.to(device), theta.to(device))
        bound = (pred.abs().max() + 1) ** 2
        assert 0 <= loss <= bound

"""NT-Xent against the authors' form, written out, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import nt_xent_loss
from fastequi.kernels import native_similarities, similarities
from fastequi.kernels.nt_xent import nt_xent_loss_ref
from tests.support.allocations import watched
from tests.support.tolerances import GRAD


def official(z1, z2, temp):
    """google-research/simclr, objective.py: add_contrastive_loss, on one device."""
    h1, h2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    masks = torch.eye(len(z1), device=z1.device) * 1e9
    aa, bb = h1 @ h1.T / temp - masks, h2 @ h2.T / temp - masks
    ab, ba = h1 @ h2.T / temp, h2 @ h1.T / temp
    labels = torch.arange(len(z1), device=z1.device)
    loss_a = F.cross_entropy(torch.cat([ab, aa], 1), labels)
    loss_b = F.cross_entropy(torch.cat([ba, bb], 1), labels)
    return (loss_a + loss_b) / 2


def embeddings(n, dim, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    first = torch.randn(n, dim, generator=g)
    return [first.to(dtype), (first + torch.randn(n, dim, generator=g)).to(dtype)]


@pytest.mark.parametrize(("n", "dim"), [(1, 4), (5, 16), (40, 33), (70, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temp", [0.1, 0.5])
def test_equals_the_official_loss(backend, device, n, dim, dtype, temp):
    ours = [z.to(device).requires_grad_() for z in embeddings(n, dim, dtype)]
    exact = [z.detach().double().requires_grad_() for z in ours]
    loss, expected = nt_xent_loss(*ours, temperature=temp), official(*exact, temp)
    (2 * loss).backward()
    (2 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=2e-6)
    for z, reference in zip(ours, exact, strict=True):
        error = (z.grad - reference.grad).norm() / reference.grad.norm().clamp(min=1e-3)
        assert error <= 2e-5, error
    torch.testing.assert_close(nt_xent_loss_ref(*exact, temp), expected)


def test_half_precision_embeddings(backend, device):
    ours = [z.to(device).requires_grad_() for z in embeddings(48, 64, torch.bfloat16)]
    exact = [z.detach().double().requires_grad_() for z in ours]
    loss, expected = nt_xent_loss(*ours, temperature=0.2), official(*exact, 0.2)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=5e-3, atol=1e-3)
    for z, reference in zip(ours, exact, strict=True):
        error = (z.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error <= 5 * GRAD[torch.bfloat16], error


def test_zero_vectors_identical_rows_and_one_image_stay_finite(backend, device):
    for z in (torch.zeros(4, 8), torch.ones(4, 8), torch.ones(1, 8)):
        leaf = z.to(device).requires_grad_()
        loss = nt_xent_loss(leaf, leaf * 1.0)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


def test_similarities_are_never_stored(backend, device, monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    if backend == "triton" and device.type == "cpu":
        pytest.skip("the interpreter keeps tensors of its own")
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest[0] = max(largest[0], out.numel())
            return out

    monkeypatch.setattr(similarities, "CHUNK", 1024)
    monkeypatch.setattr(similarities, "GPU_CHUNK", 1024)
    monkeypatch.setattr(native_similarities, "PANEL", 1024)
    z1, z2 = (z.to(device).requires_grad_() for z in embeddings(64, 16))
    with watched(Sizes()):
        nt_xent_loss(z1, z2).backward()
    assert largest[0] <= 128 * 16  # of 128 x 128 similarities


def test_compiles_to_one_graph(backend, device):
    torch._dynamo.reset()
    z1, z2 = (z.to(device).requires_grad_() for z in embeddings(6, 16))
    compiled = torch.compile(nt_xent_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(z1, z2)
    grads = torch.autograd.grad(loss, [z1, z2])
    expected = nt_xent_loss(z1, z2)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, [z1, z2]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bad_input_names_the_argument():
    z = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"z1, z2: expected two \[N, D\].*\(4, 8\) and \(4, 7\)"):
        nt_xent_loss(z, z[:, :7])
    with pytest.raises(ValueError, match="temperature: expected a finite number >= 1e-06, got 0"):
        nt_xent_loss(z, z, temperature=0)
    with pytest.raises(TypeError, match="z2: expected float32"):
        nt_xent_loss(z, z.int())

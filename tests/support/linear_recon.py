"""A last linear layer with a path loss, fused and one after the other."""

import torch

from fastequi.kernels.overlap import overlap_add_ref
from tests.support.allocations import sizes_of
from tests.support.tolerances import GRAD, LOSS

PATCH = 4


def leaves_of(b=3, k=2, c=3, tokens=6, dim=5, shared=False, dtype=torch.float32, seed=0, over=0):
    """[hidden, weight, bias], and the generator to go on with."""
    g = torch.Generator().manual_seed(seed)
    values, leading = (PATCH + 2 * over) ** 2 * c, () if shared else (k,)
    hidden = torch.randn(b, k, tokens, dim, generator=g).to(dtype)
    weight = (torch.randn(*leading, values, dim, generator=g) * 0.3).to(dtype)
    bias = torch.randn(*leading, values, generator=g).to(dtype)
    return [hidden, weight, bias], g


def predictions(leaves, grid=(2, 3), over=0):
    """Patch tokens; of windows that overlap by `over` pixels, if any."""
    hidden, weight, bias = leaves
    shape = (hidden.shape[1], *weight.shape[-2:])
    pred = torch.einsum("bkld,kpd->bklp", hidden, weight.expand(shape))
    pred = pred if bias is None else pred + bias.expand(shape[:2])[:, None]
    return overlap_add_ref(pred, grid, PATCH, over) if over else pred


def check(fused, unfused, leaves, device, over=0):
    """Value and gradients, times three so that a factor reaches the backward.

    `unfused` is of the predictions, in float64.
    """
    dtype = leaves[0].dtype
    leaves = [t if t is None else t.detach().clone().to(device) for t in leaves]
    ours = [t if t is None else t.requires_grad_() for t in leaves]
    exact = [t if t is None else t.detach().double().requires_grad_() for t in leaves]
    loss = fused(ours)
    (3 * loss).backward()
    expected = unfused(predictions(exact, over=over))
    (3 * expected).backward()
    half = dtype.itemsize == 2  # the predictions are rounded, as F.linear rounds them
    torch.testing.assert_close(
        loss.double(), expected, rtol=1e-2 if half else 10 * LOSS[dtype], atol=0
    )
    for a, b in zip(ours, exact, strict=True):
        if a is not None:
            assert a.grad.shape == b.grad.shape
            error = (a.grad.double() - b.grad).norm()
            assert error <= (3 if half else 1) * GRAD[dtype] * b.grad.norm()


def check_tokens_of_all_steps(fused, leaves, device):
    """Tokens expanded over the steps: the value and gradient of copies, and no copies."""
    hidden, weight, bias = (t.to(device) for t in leaves)
    tokens, steps = hidden[:, 0].contiguous(), hidden.shape[1]

    def run(spread, autocast=False):
        given = [t.clone().requires_grad_() for t in (tokens, weight, bias)]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = fused([spread(given[0]), *given[1:]])
        return [loss.detach(), *torch.autograd.grad(loss, given)]

    def expanded(x):
        return x[:, None].expand(-1, steps, -1, -1)

    def copied(x):
        return x[:, None].repeat(1, steps, 1, 1)

    for autocast in (False, True):
        tolerance = {"rtol": 1e-2, "atol": 1e-3} if autocast else {}
        for got, wanted in zip(run(expanded, autocast), run(copied, autocast), strict=True):
            torch.testing.assert_close(got, wanted, **tolerance)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: fused([expanded(x), weight, bias]), fullgraph=True, backend="aot_eager"
    )
    leaf = tokens.clone().requires_grad_()
    value = compiled(leaf)
    value.backward()
    for got, wanted in zip((value, leaf.grad), run(expanded), strict=False):
        torch.testing.assert_close(got, wanted)

    def largest(grad, autocast=False):
        leaf = tokens.clone().requires_grad_(grad)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            seen = sizes_of(lambda: fused([expanded(leaf), weight, bias]))
        copies = [n for name, n in seen if name.startswith(("aten.clone", "aten._to_copy"))]
        new = [n for name, n in seen if name.startswith(("aten.empty", "aten.new_empty"))]
        return max(copies, default=0), sum(n >= hidden.numel() for n in new)

    assert weight.numel() < tokens.numel()
    assert largest(grad=False)[0] < tokens.numel()
    assert largest(grad=True)[0] < tokens.numel()
    assert largest(grad=True)[1] == 1  # its gradient
    assert largest(grad=False, autocast=True) == (tokens.numel(), 0)

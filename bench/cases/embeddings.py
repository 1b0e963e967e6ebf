"""Losses over a batch of embeddings: NT-Xent, KoLeo, VICReg."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature, lightly, products
from fastequi.functional import koleo_loss, nt_xent_loss, vicreg_loss

TEMP = 0.2


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(N: int, D: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(N, D, generator=generator)
        second = first + torch.randn(N, D, generator=generator)
        views = (view.to(device, DTYPES[dtype]).requires_grad_() for view in (first, second))
        return dict(zip(("z1", "z2"), views, strict=True))

    return make


def nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    """cross_entropy(z zᵀ) with every similarity stored, in the embeddings' precision."""
    z = F.normalize(torch.cat([z1, z2]), dim=-1)
    s = (z @ z.T / TEMP).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e4)
    return F.cross_entropy(s.float(), torch.arange(len(z), device=z.device).roll(len(z1)))


def koleo(z1: Tensor, z2: Tensor) -> Tensor:
    """DINOv2's form, of the first view."""
    z = F.normalize(z1.float(), dim=-1)
    with torch.no_grad():
        dots = z @ z.T
        dots.fill_diagonal_(-1)
        neighbour = dots.argmax(1)
    return -torch.log(F.pairwise_distance(z, z[neighbour], eps=1e-8) + 1e-8).mean()


def vicreg(z1: Tensor, z2: Tensor) -> Tensor:
    """VICReg as its authors wrote it, with two covariance matrices."""
    z1, z2 = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (z1, z2))
    loss = 25 * F.mse_loss(z1, z2)
    for z in (z1 - z1.mean(0), z2 - z2.mean(0)):
        loss = loss + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        cov = z.T @ z / (len(z) - 1)
        loss = loss + (cov - cov.diag().diag()).square().sum() / z.shape[1]
    return loss


def _lightly_koleo(losses: Any, inputs: Inputs) -> Callable[..., Tensor]:
    loss = losses.KoLeoLoss()
    return lambda z1, z2: loss(z1)


_LIGHTLY: dict[Callable[..., Tensor], Callable[[Any, Inputs], Callable[..., Tensor]]] = {
    nt_xent: lambda losses, inputs: losses.NTXentLoss(temperature=TEMP),
    vicreg: lambda losses, inputs: losses.VICRegLoss(),
    koleo: _lightly_koleo,
}


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    return 2 * params["N"] * params["D"] * itemsize(params) * (2 if mode == "fwdbwd" else 1)


def _products(plain: Callable[..., Tensor]) -> Callable[[Inputs, str], Callable[[], None]]:
    """Similarities of all rows, and the gradient's product with them where it has one."""

    def floor(inputs: Inputs, mode: str) -> Callable[[], None]:
        views = [inputs[name].detach() for name in ("z1", "z2")]
        rows = {nt_xent: [torch.cat(views)], koleo: views[:1], vicreg: views}[plain]
        factors = [(z, z.mT) for z in rows]
        if mode == "fwdbwd" and plain is not koleo:
            factors += [(z.new_ones(len(z), len(z)), z) for z in rows]
        return products(*factors)

    return floor


def _case(
    name: str,
    device: str,
    plain: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    products: tuple[int, int],
    sweep: tuple[Mapping[str, Any], ...],
) -> OpBench:
    """`products`: N²D products of one view with itself, forward and with the backward."""
    names = ("z1",) if plain is koleo else ("z1", "z2")
    views = Signature(
        arguments=lambda inputs: (inputs["z1"], inputs["z2"]),
        leaves=lambda inputs: {name: inputs[name] for name in names},
    )

    def answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        wide = {key: z.detach().double().requires_grad_() for key, z in inputs.items()}
        return {key: value.detach() for key, value in views.eager(ours)(wide, mode)().items()}

    def flops(params: Mapping[str, Any], mode: str) -> float:
        return 2 * params["N"] ** 2 * params["D"] * products[mode == "fwdbwd"]

    return OpBench(
        name=name,
        device=device,
        title=(plain.__doc__ or "").split(",")[0].rstrip(".")
        + "; the floor is the bare matrix products",
        inputs=_inputs(device),
        providers={
            "eager": Provider(views.eager(plain), tolerance=3e-2),
            "compile": Provider(views.compiled(plain), tolerance=3e-2),
            "lightly": Provider(lightly(_LIGHTLY[plain], views), tolerance=3e-2),
            "ours": Provider(
                views.ours(ours, "triton" if device == "cuda" else "native"), tolerance=3e-2
            ),
        },
        answer=answer,
        bytes_moved=_bytes,
        formula="both views read + (fwdbwd) their gradients written; it is bound by arithmetic",
        flops=flops,
        floor=_products(plain),
        sweep=sweep,
    )


def _nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    return nt_xent_loss(z1, z2, temperature=TEMP)


def _koleo(z1: Tensor, z2: Tensor) -> Tensor:
    return koleo_loss(z1)


def _vicreg(z1: Tensor, z2: Tensor) -> Tensor:
    return vicreg_loss(z1, z2)


def _sizes(dtype: str, width: int, *sizes: int) -> tuple[dict[str, Any], ...]:
    return tuple({"N": n, "D": width, "dtype": dtype} for n in sizes)


CASES = (
    _case(
        "nt_xent_cpu", "cpu", nt_xent, _nt_xent, (4, 12), _sizes("float32", 128, 1024, 2048, 64, 16)
    ),
    _case("koleo_cpu", "cpu", koleo, _koleo, (1, 1), _sizes("float32", 256, 2048, 64, 16)),
    _case(
        "nt_xent", "cuda", nt_xent, _nt_xent, (4, 12), _sizes("bfloat16", 128, 8192, 16384, 32768)
    ),
    _case("vicreg_cpu", "cpu", vicreg, _vicreg, (2, 4), _sizes("float32", 2048, 256, 2048, 16)),
    _case("vicreg", "cuda", vicreg, _vicreg, (2, 4), _sizes("float32", 8192, 2048, 8192)),
    _case("koleo", "cuda", koleo, _koleo, (1, 1), _sizes("float32", 256, 4096)),
)

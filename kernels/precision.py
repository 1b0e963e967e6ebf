"""Arithmetic that autocast does not reach, and gradients that fit into float16.

Coordinates, colours and logarithms of sums need float32 whatever a training loop runs its network
in: under autocast a matrix product of coordinates would be rounded to 8 bits, half a pixel at 224.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fastequi.kernels.backend import transformed, use_native

_FLOAT16_DIVISOR = 4  # |pred| and |target| up to 65504 each: 2 · 131008 / 4 = 65504
_TOP = 14  # gradients up to 2^15, half of what float16 holds

P = ParamSpec("P")
R = TypeVar("R")


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast disabled within the block; the meta device has none."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast multiplies in on a device; None where it is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def linear_dtype(tensor: Tensor) -> torch.dtype:
    """What `F.linear` takes a floating input as: autocast's type, unless it is float64."""
    cast = autocast_dtype(tensor.device)
    return tensor.dtype if cast is None or tensor.dtype == torch.float64 else cast


def as_linear_casts(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast makes of `F.linear`'s inputs; hidden [B, K, ...] stays expanded along K."""
    dtype = linear_dtype(hidden)
    if hidden.dtype != dtype and hidden.stride(1) == 0:
        hidden = hidden[:, :1].to(dtype).expand_as(hidden)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function as it computes without autocast.

    Its backward too, wherever that is called, if the forward ran under autocast. A backward inside
    autocast of a forward outside it is cast like that of any PyTorch code; so are gradients of
    torch.func taken inside autocast. Tensors within tuples are taken as constants.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if isinstance(value, Tensor)]
        kind = tensors[0].device.type if tensors else "cpu"
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            if not graph or torch.compiler.is_compiling() or transformed():
                return function(*args, **kwargs)
            return _apart(function, kind, args, kwargs)

    return call


def _apart(function: Callable[..., Any], kind: str, args: Any, kwargs: Any) -> Any:
    """Calls it as one node of the graph, through the tensors among its arguments."""
    names = list(kwargs)
    values = [*args, *kwargs.values()]
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    single = False

    def on(*tensors: Tensor) -> tuple[Any, ...]:
        nonlocal single
        given = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        rest = dict(zip(names, given[len(args) :], strict=True))
        out = function(*given[: len(args)], **rest)
        single = isinstance(out, Tensor)
        return (out,) if single else tuple(out)

    outputs = _Apart.apply(on, kind, *(values[place] for place in places))
    return outputs[0] if single else outputs


class _Apart(torch.autograd.Function):
    """A part of a graph with a graph of its own, whose backward runs without autocast as well."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], kind: str, *tensors: Tensor) -> Any:
        inner = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
        with torch.enable_grad():
            outputs = function(*inner)
        ctx.function, ctx.kind, ctx.inner = function, kind, (inner, outputs)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(t for t in outputs if not t.requires_grad))
        return tuple(t.detach() for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        again = torch.is_grad_enabled()  # create_graph=True: through the inputs themselves
        with torch.autocast(ctx.kind, enabled=False):
            inputs, outputs = ctx.inner
            if again:
                inputs = ctx.saved_tensors
                outputs = ctx.function(*inputs)
            needed = ctx.needs_input_grad[2:]
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
            kept = again or torch._C._autograd._get_current_graph_task_keep_graph()
            found = iter(
                torch.autograd.grad(
                    [o for o, _ in pairs],
                    list(itertools.compress(inputs, needed)),
                    [g for _, g in pairs],
                    create_graph=again,
                    retain_graph=kept,
                    allow_unused=True,
                )
            )
        return (None, None, *(next(found) if need else None for need in needed))


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Those of float16 in float32 where a kernel in C follows, which reads no float16, and whose
    gradient is rounded only after a loss scale has arrived; the others as they are."""
    return tuple(tensor.float() if is_widened(tensor) else tensor for tensor in tensors)


def is_widened(tensor: Any) -> bool:
    """Whether :func:`widened` changes it."""
    return getattr(tensor, "dtype", None) is torch.float16 and use_native(tensor)


def float16_divisor(dtype: torch.dtype, divisor: int) -> int:
    """What a pixel loss is divided by in its forward, which writes the gradient, of `divisor`.

    All of it, but for float16: there a mean's gradient would vanish before a loss scale arrives,
    while a sum's, 2 (pred - target), could be twice what float16 holds.
    """
    return _FLOAT16_DIVISOR if dtype == torch.float16 else divisor


def float16_scale(weight: Tensor, slope: float) -> Tensor:
    """A power of two, on the device, that makes gradients fill float16's range.

    A loss of float16 rows multiplies its weights by it and its value by the inverse. A gradient
    with 1 / (number of rows) inside would be rounded to nothing before a loss scale arrives.

    Args:
        weight: [R] of every row.
        slope: the largest derivative of a row of weight one.
    """
    if not weight.numel():
        return weight.new_ones(())
    largest = (weight.abs().max() * slope).clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.exp2(torch.floor(_TOP - torch.log2(largest)).clamp(max=100))

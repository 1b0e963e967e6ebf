"""Custom operators without the dispatcher, for eager code.

`torch.compile` and tensor subclasses need operators that are registered. Called eagerly, one with
many arguments spends longer in Python before it begins than its kernel takes on a small batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def needs_operator(*inputs: Any) -> bool:
    """Whether someone has to see an operator: a compiler, or a tensor that is a subclass."""
    return torch.compiler.is_compiling() or any(
        isinstance(value, Tensor) and type(value) not in _PLAIN for value in inputs
    )


def direct(
    operator: Callable[..., Any],
    compute: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """A function that is `operator` to compilers and subclasses and else its parts, bare.

    Args:
        operator: the custom op made of the other three.
        compute: its implementation; its first result alone has a gradient.
        setup_context, backward: as registered.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = tuple(compute(*inputs))
            ctx.owned = True  # nobody else holds what was written: it may be scaled in place
            setup_context(ctx, inputs, output)
            ctx.mark_non_differentiable(*output[1:])
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if needs_operator(*inputs):
            return operator(*inputs)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return Direct.apply(*inputs)
        return compute(*inputs)

    return call

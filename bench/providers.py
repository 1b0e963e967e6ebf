"""How the functions of a case become its providers: eager, compiled, ours on one backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.opbench import Call, Inputs, Make, Unavailable
from fastequi.kernels import backend

Function = Callable[..., Tensor]


def on_backend(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ours on one backend.

    Raises:
        Unavailable: that backend cannot run here.
    """
    try:
        with backend.force(name):
            pass
    except RuntimeError as reason:
        raise Unavailable(str(reason)) from None

    def forced(*args: Any, **options: Any) -> Any:
        """Without the context's own checks, which no caller pays."""
        before, backend.forced = backend.forced, name
        try:
            return function(*args, **options)
        finally:
            backend.forced = before

    return forced


def differentiable(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors among a case's inputs that want a gradient, by name."""
    return {name: value for name, value in inputs.items() if value.requires_grad}


@dataclass(frozen=True)
class Signature:
    """How the functions of a case are called, and what their results are called.

    Attributes:
        arguments: inputs to a function's arguments.
        leaves: inputs to the tensors whose gradients are measured, by the gradients' names; None
            where nothing has a gradient.
        result: name of what a function returns.
        upstream: inputs to the gradient of the result; None for a scalar's, which is one.
    """

    arguments: Callable[[Inputs], Sequence[Any]]
    leaves: Callable[[Inputs], Mapping[str, Tensor]] | None = None
    result: str = "loss"
    upstream: Callable[[Inputs], Tensor] | None = None

    def eager(self, function: Function) -> Make:
        """The function as it is."""

        def make(inputs: Inputs, mode: str) -> Call:
            arguments = self.arguments(inputs)
            if mode == "fwdbwd" and self.leaves is None:
                raise Unavailable(f"{self.result}: has no gradient")
            leaves = {} if self.leaves is None else self.leaves(inputs)
            upstream = None if self.upstream is None else self.upstream(inputs)

            def forward() -> dict[str, Tensor]:
                with torch.no_grad():
                    return {self.result: function(*arguments)}

            def both() -> dict[str, Tensor]:
                value = function(*arguments)
                grads = torch.autograd.grad(value, list(leaves.values()), upstream)
                return {self.result: value, **dict(zip(leaves, grads, strict=True))}

            return both if mode == "fwdbwd" else forward

        return make

    def compiled(
        self, function: Function, around: Callable[[Function], Function] | None = None
    ) -> Make:
        """By torch.compile, tuned on a GPU; `around` makes the whole of the part compiled."""

        def make(inputs: Inputs, mode: str) -> Call:
            torch._dynamo.reset()
            tuning = "max-autotune-no-cudagraphs" if _on_gpu(inputs.values()) else None
            fast = torch.compile(function, dynamic=False, mode=tuning)
            return self.eager(fast if around is None else around(fast))(inputs, mode)

        return make

    def exact(self, function: Function) -> Callable[[Inputs, str], dict[str, Tensor]]:
        """A case's answer: the function in float64. Inputs are tensors, or lists of them."""

        def wide(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return [wide(each) for each in value]
            return value.detach().double().requires_grad_(value.requires_grad)

        def answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
            call = self.eager(function)({name: wide(x) for name, x in inputs.items()}, mode)
            return {name: value.detach() for name, value in call().items()}

        return answer

    def ours(self, function: Function, name: str) -> Make:
        """A function of ours on the backend of that name."""
        return lambda inputs, mode: self.eager(on_backend(name, function))(inputs, mode)


def lightly(make: Callable[[Any, Inputs], Function], signature: Signature) -> Make:
    """A loss of lightly's: (its module of losses, inputs) to a function."""

    def made(inputs: Inputs, mode: str) -> Call:
        try:
            from lightly import loss
        except Exception as error:
            raise Unavailable(str(error)) from None
        return signature.eager(make(loss, inputs))(inputs, mode)

    return made


def _on_gpu(values: Iterable[Any]) -> bool:
    tensors = (value[0] if isinstance(value, list) else value for value in values)
    return any(isinstance(value, Tensor) and value.is_cuda for value in tensors)


def products(*factors: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A call that makes matrix products [..., M, K] · [..., K, N], and nothing else, into memory
    that stays: the floor of what is bound by them."""
    detached = [(a.detach(), b.detach()) for a, b in factors]
    outs = [torch.matmul(a, b) for a, b in detached]

    def call() -> None:
        for (a, b), out in zip(detached, outs, strict=True):
            torch.matmul(a, b, out=out)

    return call

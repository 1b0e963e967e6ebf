"""The frame of the fused losses: the forward also computes the gradients, the backward scales them.

An op is registered for compilers and tensor subclasses, and called without the dispatcher in eager
code, where an operator with many arguments spends longer in Python before it begins than its kernel
takes on a small batch.

Gradients made in the forward are first derivatives: differentiating them again raises an error that
names the op. Under `torch.func` and forward-mode differentiation the losses run as
their plain PyTorch references (:func:`fastequi.kernels.backend.transformed`), which have every
derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastequi.kernels.backend import tl, triton, use_triton
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import relaunched

_PLAIN = (Tensor, Parameter)
_RESCALE_BLOCK = 1024
_RESCALE_PROGRAMS = 1024  # a few for each processor of the largest GPUs


def needs_operator(*inputs: Any) -> bool:
    """Whether the registered operator must run, since what the kernels write could not be seen:
    under a compiler, a tracer or a dispatch mode, for tensor subclasses and meta tensors."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return torch._C._is_tracing() or any(
        isinstance(value, Tensor) and (type(value) not in _PLAIN or value.is_meta)
        for value in inputs
    )


class Operator:
    """A function without gradients, as the custom op `fastequi::<name>` for compilers.

    Args:
        name: of the op.
        compute: its implementation; autocast does not reach into it.
        fake: its outputs' shapes and types, of the same inputs.
    """

    def __init__(self, name: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name, self.compute = name, without_autocast(compute)
        schema = torch.library.infer_schema(compute, mutates_args=())
        self.op = torch.library.custom_op(
            f"fastequi::{name}", self.compute, mutates_args=(), schema=schema
        )
        self.op.register_fake(fake)

    def __call__(self, *inputs: Any) -> Any:
        return (self.op if needs_operator(*inputs) else self.compute)(*inputs)


class FusedLoss(Operator):
    """A loss whose forward returns its gradients beside its value.

    Args:
        name, fake: as there.
        compute: (inputs) → (value, ..., gradients); the value alone can be differentiated. A
            gradient that is not needed is an empty tensor.
        gradients: place of an input → place of its gradient among the outputs, or (place, index)
            of one stacked with others.
        losses: names of the public functions, for errors; the name by default.
        piecewise_linear: the gradient does not depend on the inputs that have one, so that a
            second derivative, which is 0, need not be refused.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[..., tuple[Tensor, ...]],
        fake: Callable[..., tuple[Tensor, ...]],
        gradients: Mapping[int, int | tuple[int, int]],
        losses: str | None = None,
        piecewise_linear: bool = False,
    ) -> None:
        super().__init__(name, compute, fake)
        self.losses = losses or name
        self.places = {
            i: at if isinstance(at, tuple) else (at, None) for i, at in gradients.items()
        }
        self.outputs = sorted({at for at, _ in self.places.values()})
        self.piecewise_linear = piecewise_linear
        self.op.register_autograd(self._backward, setup_context=self._setup_context)
        frame = self

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = tuple(frame.compute(*inputs))
                ctx.owned = True  # no other reference to the gradients: they may be scaled in place
                anchor = output[0].new_empty(0)
                frame._setup_context(ctx, inputs, output, anchor)
                ctx.mark_non_differentiable(*output[1:])
                return *output, anchor

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return frame._backward(ctx, *grads)

        class Again(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Any) -> Any:
                *inputs, run = given
                output = run(*inputs)
                ctx.owned = True
                anchor = output[0].new_empty(0)
                frame._setup_context(ctx, tuple(inputs), output, anchor)
                return output[0], anchor

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return *frame._backward(ctx, *grads), None

        self._direct = Direct
        self._again = Again

    def again(self, run: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., Tensor]:
        """A prepared implementation with its gradient: the first inputs to the value alone.

        `run` takes them and returns what `compute` does, with None for a gradient that is not
        needed.
        """
        # PyTorch's own without a look for torch.func's transforms: a signature has none
        apply = super(torch.autograd.Function, self._again).apply
        return lambda *inputs: apply(*inputs, run)[0]

    def __call__(self, *inputs: Any) -> Any:
        if needs_operator(*inputs):
            return self.op(*inputs)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._direct.apply(*inputs)[:-1]
        return self.compute(*inputs)

    def _setup_context(
        self,
        ctx: Any,
        inputs: tuple[Any, ...],
        output: tuple[Tensor, ...],
        anchor: Tensor | None = None,
    ) -> None:
        # leads a second differentiation back to the inputs, which are not kept; not the value,
        # which its owner may change in place (loss /= 2), but in operators, that return no more
        ctx.save_for_backward(
            output[0] if anchor is None else anchor, *[output[at] for at in self.outputs]
        )
        ctx.set_materialize_grads(False)  # else zeros as large as an input stand in for None
        ctx.count = len(inputs)
        ctx.dtypes = {i: inputs[i].dtype for i in self.places if inputs[i] is not None}

    def _backward(self, ctx: Any, g_value: Tensor | None, *unused: Any) -> tuple[Any, ...]:
        """Gradients of the value, which the forward has written, times the incoming one."""
        found: list[Any] = [None] * ctx.count
        if g_value is None:
            return tuple(found)
        value, *written = ctx.saved_tensors
        by_output = dict(zip(self.outputs, written, strict=True))
        whole: dict[int, Tensor] = {}
        for i, (at, index) in self.places.items():
            if not ctx.needs_input_grad[i]:
                continue
            if at not in whole:
                whole[at] = scaled(ctx, by_output[at], g_value)
            grad = whole[at] if index is None else whole[at][index]
            found[i] = grad if grad.dtype == ctx.dtypes[i] else grad.to(ctx.dtypes[i])
            if torch.is_grad_enabled() and not self.piecewise_linear:  # create_graph=True
                found[i] = found[i] + refuse(self.losses, value).to(found[i].dtype)
        return tuple(found)


def refuse(name: str, value: Tensor) -> Tensor:
    """A zero that depends on a tensor; differentiated, it raises an error with a loss's name."""
    return _Refuse.apply(name, value)


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor) -> Tensor:
        ctx.name = name
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{ctx.name}: its gradient is computed in the forward and cannot be differentiated "
            "again (create_graph=True); under torch.func.grad the loss runs in plain PyTorch, "
            "which has second derivatives"
        )


def scaled(ctx: Any, grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient that the forward has written, times the incoming one, [] or [B, K].

    Usually the factor is 1 and nothing is to be done: on a CPU its value is read, on a GPU a kernel
    reads it, without a host sync. In place, unless the graph is kept (retain_graph) or the gradient
    is an operator's output.
    """
    graph = torch.is_grad_enabled()  # create_graph=True: the product is a part of the graph
    if graph or batched(factor):
        return (grad * _spread(factor, grad)).to(grad.dtype)
    ours = getattr(ctx, "owned", False)
    ours = ours and not torch._C._autograd._get_current_graph_task_keep_graph()
    if ours and not factor.is_cuda and _all_one(factor):
        return grad
    if ours and factor.ndim == 0 and use_triton(grad) and grad.dtype != torch.float64:
        with torch.cuda.device_of(grad):
            _rescaling(grad.numel(), *map(_kind, (grad, factor)))(grad, factor, grad.numel())
        return grad
    # without `out` a float32 factor would make a float32 product of it
    return torch.mul(grad, _spread(factor, grad), out=grad if ours else torch.empty_like(grad))


def _all_one(factor: Tensor) -> bool:
    return bool(factor.item() == 1 if factor.ndim == 0 else (factor == 1).all())


def batched(factor: Tensor) -> bool:
    """Whether the incoming gradient stands for a batch of them: is_grads_batched=True, vmap.

    Such a batch has no value to read, and cannot be written into one gradient.
    """
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(factor) or functorch.is_batchedtensor(factor)


def _spread(factor: Tensor, grad: Tensor) -> Tensor:
    """With as many axes as the gradient: a number alone would be rounded to its type before."""
    return factor.view(*factor.shape, *[1] * (grad.ndim - factor.ndim))


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.data_ptr() % 16 == 0


@lru_cache(maxsize=256)
def _rescaling(numel: int, *kinds: tuple[Any, ...]) -> Callable[..., None]:
    """Launches the kernel below, for tensors of these kinds."""
    blocks = max(triton.cdiv(numel, _RESCALE_BLOCK), 1)
    grid = (min(blocks, _RESCALE_PROGRAMS),)
    return relaunched(rescale_kernel, grid, {"BLOCK": _RESCALE_BLOCK})


@triton.jit
def rescale_kernel(grad_ptr, factor_ptr, n, BLOCK: tl.constexpr):
    # grad *= factor, or nothing at all where factor is 1
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, n, step):
            offs = start + tl.arange(0, BLOCK)
            grad = tl.load(grad_ptr + offs, mask=offs < n).to(tl.float32)
            tl.store(grad_ptr + offs, (grad * factor).to(grad_ptr.dtype.element_ty), mask=offs < n)

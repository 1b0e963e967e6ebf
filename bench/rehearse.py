"""The GPU cases without a GPU: every kernel that a case launches, compiled and looked at.

`python -m bench.rehearse` takes the options of `python -m bench`. The cases run at their real
shapes on tensors that have no memory; what they launch goes through Triton's own specialisation
and compiler for compute capability 9.0 (an H100 or H200), and no further. So the variants are those
that a GPU would run, whatever the launch tables say, and an operation that reads a value back to
the host is an error.

A variant fails that spills registers, needs more shared memory or registers than a multiprocessor
has, is launched over a grid that CUDA does not take, or is given a tensor of 2^31 or more elements
while it counts them in 32 bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.tensor  # before torch.Generator is another function
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from bench.cases import tir_overhead
from bench.cubins import usage
from bench.opbench import OpBench, Unavailable
from bench.options import Options, chosen, parse, sets_of
from bench.registry import all_cases
from fastequi.cli.dryrun import synthetic
from fastequi.data.views.batch import Batch
from fastequi.kernels import (
    autograd,
    backend,
    blur_recon,
    dino,
    gaussian_blur,
    warp,
    warp_adjoint,
    warp_packed,
    warp_recon,
    warp_recon_packed,
)

_AS_IS = contextlib.nullcontext()
MOST_SHARED = 227 << 10  # bytes of a program on compute capability 9.0
MOST_REGISTERS = 1 << 16  # of a multiprocessor
MOST_PROGRAMS = 2**31 - 1, 65_535, 65_535  # of a grid's axes
MOST_ELEMENTS = 2**31 - 1  # that 32-bit offsets reach


@dataclass
class Variant:
    """One compiled kernel and the launches that need it."""

    kernel: str
    constants: str
    registers: int
    stack: int
    spills: int
    shared: int
    threads: int
    cases: list[str] = field(default_factory=list)
    launches: int = 0
    grid: tuple[int, ...] = (0, 0, 0)  # the largest of each axis
    elements: int = 0  # of the largest tensor: from its first element to its last, and strides

    def faults(self) -> list[str]:
        """What would fail or be slow on a GPU, in words."""
        found = []
        if self.stack or self.spills:
            found.append(f"spills: {self.stack} bytes of stack, {self.spills} instructions")
        if self.shared > MOST_SHARED:
            found.append(f"{self.shared} bytes of shared memory, {MOST_SHARED} are there")
        if self.registers * self.threads > MOST_REGISTERS:
            found.append(f"{self.registers} registers of {self.threads} threads do not fit")
        for axis, count, most in zip("xyz", self.grid, MOST_PROGRAMS, strict=True):
            if count > most:
                found.append(f"{count} programs along {axis}, at most {most}")
        if self.elements > MOST_ELEMENTS:
            found.append(f"a tensor of {self.elements} elements, offsets of 32 bits")
        return found


class Recorder:
    """Stands in for a launch: compiles the variant, and keeps what it is and how it is launched."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.runtime.jit import JITFunction

        self.variants: dict[str, Variant] = {}
        self.case = ""
        self._run = JITFunction.run
        self.driver = mock.Mock(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", arch, 32),
        )

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = self._run(kernel, *args, grid=grid, warmup=True, **options)
        variant = self.variants.get(compiled.hash)
        if variant is None:
            variant = self.variants[compiled.hash] = self._looked_at(kernel, compiled, options)
        if self.case not in variant.cases:
            variant.cases.append(self.case)
        variant.launches += 1
        sizes = [*grid, *[1] * (3 - len(grid))]
        variant.grid = tuple(map(max, variant.grid, sizes))
        tensors = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
        variant.elements = max([variant.elements, *map(_extent, tensors)])
        return compiled

    def _looked_at(self, kernel: Any, compiled: Any, options: dict[str, Any]) -> Variant:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            used = usage(cubin)
        names = {param.name for param in kernel.params if param.is_constexpr}
        constants = ", ".join(f"{k}={v}" for k, v in options.items() if k in names)
        shared, threads = compiled.metadata.shared, 32 * compiled.metadata.num_warps
        return Variant(kernel.fn.__name__, constants, *used, shared, threads)


def _extent(tensor: Tensor) -> int:
    """Elements from a tensor's first to its last."""
    spans = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in spans) if tensor.numel() else 0


class _OnThisDevice(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made on the CPU."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        here = {key: _here(value) for key, value in (kwargs or {}).items()}
        return function(*map(_here, args), **here)


def _here(value: Any) -> Any:
    """The CPU for a GPU's name or device, else the value."""
    named = isinstance(value, str | torch.device) and str(value).split(":")[0] == "cuda"
    return torch.device("cpu") if named else value


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """deepcopy of a tensor without memory: PyTorch's own would copy what is not there."""
    if id(tensor) not in memo:
        clone = tensor.detach().clone()
        wanted = tensor.requires_grad
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = (
            nn.Parameter(clone, wanted) if is_parameter else clone.requires_grad_(wanted)
        )
    return memo[id(tensor)]


def _synthetic(*arguments: Any) -> Batch:
    """A batch with values: what is drawn on the host is read there."""
    with _disable_current_modes():
        return synthetic(*map(_here, arguments))


# which ask whether tensors have no memory, and then leave it to an operator or PyTorch
_ASKING = (autograd, blur_recon, dino, gaussian_blur, warp, warp_adjoint, warp_recon)


@contextlib.contextmanager
def rehearsed(recorder: Recorder, arch: int) -> Iterator[None]:
    """Within it tensors have no memory, count as a GPU's, and launches go to the recorder."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    generator, autocast = torch.Generator, torch.autocast
    capability = divmod(arch, 10)
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (JITFunction, "run", lambda kernel, *a, **k: recorder.launch(kernel, *a, **k)),
            (Tensor, "is_cuda", property(lambda tensor: True)),
            (FakeTensor, "data_ptr", lambda tensor: tensor.storage_offset() * tensor.itemsize),
            (FakeTensor, "__deepcopy__", _copied),
            (tir_overhead, "synthetic", _synthetic),
            (nn.Module, "to", lambda module, device: module),
            (torch, "Generator", lambda device="cpu": generator(_here(device))),
            (torch, "autocast", lambda kind, *a, **k: autocast(str(_here(kind)), *a, **k)),
            (torch.cuda, "get_device_capability", lambda device=None: capability),
            (backend, "INTERPRETED", True),  # Triton is taken without a GPU, too
            # fake tensors are for us what a GPU's are: launched directly, not by an operator
            *((module, "needs_operator", lambda *inputs: False) for module in _ASKING),
            (warp_packed, "capability", lambda device: capability[0]),
            (warp_recon_packed, "capability", lambda device: capability[0]),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        driver.set_active(recorder.driver)  # and stays: there is none to go back to
        stack.enter_context(backend.force("triton"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_OnThisDevice())
        yield


def _ours(name: str) -> bool:
    """Whether a provider launches our kernels, and compiles nothing of its own."""
    if "compiled" in name or "PyTorch path" in name:
        return False
    return name == "base" or "our" in name


def run(cases: Sequence[OpBench], options: Options, arch: int) -> tuple[list[Variant], list[str]]:
    """(variants, what failed); providers of ours, those that torch.compile makes left out."""
    recorder, failed = Recorder(arch), []
    with rehearsed(recorder, arch):
        for case in cases:
            for mode in options.modes:
                for params in sets_of(case, options):
                    where = f"{case.name} {mode} " + " ".join(f"{k}={v}" for k, v in params.items())
                    for name, provider in case.providers.items():
                        if not _ours(name) or name in options.without:
                            continue
                        recorder.case = f"{where}: {name}"
                        try:
                            with _disable_current_modes() if case.on_host else _AS_IS:
                                provider.make(case.inputs(**params), mode)()
                        except Unavailable as reason:
                            print(f"{recorder.case}: left out, {reason}")
                        except Exception as error:
                            failed.append(f"{recorder.case}: {type(error).__name__}: {error}")
    for variant in recorder.variants.values():
        failed += [f"{variant.kernel}({variant.constants}): {w}" for w in variant.faults()]
    return list(recorder.variants.values()), failed


def main(argv: list[str] | None = None) -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit(
            "bench.rehearse: Triton's interpreter compiles nothing; unset TRITON_INTERPRET"
        )
    options = parse(sys.argv[1:] if argv is None else argv, "bench.rehearse", __doc__ or "")
    known = {case.name: case for case in all_cases() if case.device == "cuda"}
    cases = chosen(known, options.case or list(known), options)
    variants, failed = run(cases, options, 90)
    table = Table("kernel", "variants", "launches", "registers", "shared", "grid", "elements")
    for kernel in sorted({v.kernel for v in variants}):
        each = [v for v in variants if v.kernel == kernel]
        table.add_row(
            kernel,
            str(len(each)),
            str(sum(v.launches for v in each)),
            str(max(v.registers for v in each)),
            f"{max(v.shared for v in each):,}",
            " x ".join(f"{max(v.grid[i] for v in each):,}" for i in range(3)),
            f"{max(v.elements for v in each):,}",
        )
    Console(width=150).print(table)
    for line in failed:
        print("FAILED", line)
    print(f"{len(variants)} variants, {len(failed)} failures")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {"variants": [asdict(v) for v in variants], "failed": failed}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

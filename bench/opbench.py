"""What a case is, and how it is measured.

A case declares its inputs, its providers (ours and every peer, each a function of the inputs), the
bytes that any implementation has to move, and the answer to check against. A provider whose answer
is wrong in this process is not timed. Providers alternate, sample by sample, with caches flushed
before each, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bench.memory import peak_extra_bytes

Inputs = Mapping[str, Any]
Call = Callable[[], dict[str, torch.Tensor]]
"""One measured call; what it returns is checked by name."""

Make = Callable[[Inputs, str], Call]

FAILED = "FAILED"
PRODUCT = 8192
YARDSTICKS = ("floor", "triad", "bf16 product")
MODES = ("fwd", "fwdbwd")
FLUSH_BYTES = 256 << 20
HELD_CYCLES = 4_000_000
"""How long a GPU waits before a call whose GPU time is taken: about 2 ms, in which the call's
launches are queued. What the events then measure is the GPU's work, not the host's."""


class Unavailable(Exception):
    """A provider that cannot run here: what is missing."""


@dataclass(frozen=True)
class Provider:
    """One implementation.

    Attributes:
        make: (inputs, mode) to the call that is timed; raises :class:`Unavailable`.
        tolerance: largest relative error of each named result, by its norm; half precision results
            may be off by their own rounding too.
        partial: it does only a part of the work (a warp without the loss): a yardstick, no peer. It
            checks itself and raises :class:`Unavailable` if it is wrong.
    """

    make: Make
    tolerance: float = 1e-3
    partial: bool = False


@dataclass(frozen=True)
class OpBench:
    """A case.

    Attributes:
        name: as on the command line.
        device: "cpu" or "cuda".
        title: what is measured, in a line.
        inputs: parameters (B=..., K=..., dtype=...) to tensors.
        providers: by name; the first one is what speed-ups are relative to.
        answer: (inputs, mode) to the right results, by name.
        bytes_moved: (parameters, mode) to bytes that must cross the memory bus.
        formula: the same in words.
        flops: (parameters, mode) to the arithmetic it takes, for the roofline.
        floor: (inputs, mode) to a call that moves those bytes and does nothing else, or None.
        sweep: parameter sets, the first of which is the headline.
        verdict: (parameters, name to median ms) to a sentence under the table, or None.
        on_host: ours reads values of its inputs on the host, on a GPU too, so that a rehearsal
            needs them in memory.
    """

    name: str
    device: str
    title: str
    inputs: Callable[..., Inputs]
    providers: Mapping[str, Provider]
    answer: Callable[[Inputs, str], dict[str, torch.Tensor]]
    bytes_moved: Callable[[Mapping[str, Any], str], int]
    formula: str
    flops: Callable[[Mapping[str, Any], str], float]
    floor: Callable[[Inputs, str], Callable[[], Any]] | None = None
    sweep: tuple[Mapping[str, Any], ...] = field(default=({},))
    verdict: Callable[[Mapping[str, Any], Mapping[str, float]], str] | None = None
    on_host: bool = False


@dataclass(frozen=True)
class Row:
    """What one provider did with one parameter set; times in milliseconds.

    On a GPU p20 to p80 are until its work is done, `host_p50` until the call returns, and
    `gpu_p50` is the work alone.
    """

    case: str
    mode: str
    params: Mapping[str, Any]
    provider: str
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    gpu_p50: float | None = None
    host_p50: float | None = None
    gbps: float | None = None
    of_floor: float | None = None
    of_triad: float | None = None
    gflops: float | None = None
    speedup: float | None = None
    extra_bytes: int | None = None
    launches: int | None = None
    partial: bool = False
    refused: str | None = None


class WrongResult(Exception):
    """A provider whose answer is off, and by how much; it is not timed."""


def checked(provider: Provider, inputs: Inputs, mode: str, answer: Mapping[str, Any]) -> Call:
    """A provider's call, once its answer was right.

    Raises:
        Unavailable: it cannot run here.
        WrongResult: it can, and is wrong.
    """
    call = provider.make(inputs, mode)
    found = call()
    wrong = None if provider.partial else _wrong(found, answer, provider.tolerance)
    if wrong:
        raise WrongResult(f"WRONG RESULT, not timed: {wrong}")
    return call


def triad(device: str) -> tuple[Callable[[], Any], int]:
    """a = b + 3 c over arrays far larger than any cache, and the bytes it moves: R."""
    values = (1 << 26) if device == "cuda" else (1 << 24)
    a, b, c = (torch.ones(values, device=device) for _ in range(3))
    return lambda: torch.add(b, c, alpha=3, out=a), 3 * 4 * values


def square_product() -> Callable[[], Any]:
    """A bfloat16 matrix product of side PRODUCT: the arithmetic's peak."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def measure(
    case: OpBench,
    params: Mapping[str, Any],
    mode: str,
    samples: int,
    without: Collection[str] = (),
) -> list[Row]:
    """Checks and times every provider of a case for one parameter set, but those left out."""
    inputs = case.inputs(**params)
    answer = case.answer(inputs, mode)
    calls: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for name, provider in case.providers.items():
        if name in without:
            refused[name] = "left out (--without)"
            continue
        try:
            calls[name] = checked(provider, inputs, mode, answer)
        except (Unavailable, WrongResult) as reason:
            refused[name] = str(reason)
        except Exception as error:  # the others are still timed; the command fails in the end
            refused[name] = f"{FAILED}: {type(error).__name__}: {error}"[:1000]
    if case.floor is not None:
        calls["floor"] = case.floor(inputs, mode)
    calls["triad"], streamed = triad(case.device)
    if case.device == "cuda":
        calls["bf16 product"] = square_product()
    times = interleaved(calls, case.device, samples)
    rows = [Row(case.name, mode, params, name, refused=why) for name, why in refused.items()]
    base = next((times[name] for name in case.providers if name in times), None)
    moved, flops = case.bytes_moved(params, mode), case.flops(params, mode)
    fastest = streamed / statistics.median(times["triad"].gpu or times["triad"].wall)
    for name, (wall, gpu, host) in times.items():
        busy = statistics.median(gpu or wall)
        speed = (streamed if name == "triad" else moved) / busy
        work = None if name in ("floor", "triad") else flops / busy / 1e6
        if name == "bf16 product":
            speed, work = 6 * PRODUCT**2 / busy, 2 * PRODUCT**3 / busy / 1e6
        p20, p50, p80 = _quantiles(wall)
        rows.append(
            Row(
                case.name,
                mode,
                params,
                name,
                p20,
                p50,
                p80,
                gpu_p50=statistics.median(gpu) if gpu else None,
                host_p50=statistics.median(host) if host else None,
                gbps=speed / 1e6,
                of_floor=None if name == "triad" else _ratio(times.get("floor"), times[name]),
                of_triad=speed / fastest,
                gflops=work,
                speedup=_ratio(base, times[name]),
                extra_bytes=peak_extra_bytes(calls[name], case.device),
                launches=_launches(calls[name]) if case.device == "cuda" else None,
                partial=name in YARDSTICKS or case.providers[name].partial,
            )
        )
    return rows


class Times(NamedTuple):
    """Milliseconds of each sample: until done, of the GPU alone, until the call returned.

    The last two are empty on a CPU.
    """

    wall: list[float]
    gpu: list[float]
    host: list[float]


def interleaved(
    calls: Mapping[str, Callable[[], Any]], device: str, samples: int
) -> dict[str, Times]:
    """Milliseconds of `samples` runs of every call, in turns; two rounds before do not count."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    times = {name: Times([], [], []) for name in calls}
    for turn in range(samples + 2):
        for name, call in calls.items():
            sample = _on_gpu(call, flush) if device == "cuda" else _on_cpu(call, flush)
            if turn >= 2:
                for kept, values in zip(times[name], sample, strict=True):
                    kept.extend(values)
    return times


def _on_cpu(call: Callable[[], Any], flush: torch.Tensor) -> Times:
    flush.zero_()
    start = time.perf_counter()
    call()
    return Times([1e3 * (time.perf_counter() - start)], [], [])


def _on_gpu(call: Callable[[], Any], flush: torch.Tensor) -> Times:
    """Twice: with its launches queued beforehand, then from an idle GPU, as the host sees it."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(HELD_CYCLES)
    before.record()
    call()
    after.record()
    flush.zero_()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    returned = time.perf_counter()
    torch.cuda.synchronize()
    done = time.perf_counter()
    gpu = before.elapsed_time(after)
    return Times([1e3 * (done - start)], [gpu], [1e3 * (returned - start)])


def _wrong(
    found: Mapping[str, torch.Tensor], answer: Mapping[str, torch.Tensor], tolerance: float
) -> str | None:
    """The first named result that is off, or None; a provider may give a part of the answer."""
    if not found:
        return "no result"
    for name, value in found.items():
        expected = answer[name]
        error = (value.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30)
        allowed = tolerance + (torch.finfo(value.dtype).eps if value.itemsize == 2 else 0)
        if not error <= allowed:
            return f"{name} off by {error:.1e}, {allowed:.0e} allowed"
    return None


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    cuts = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    low, middle, high = cuts.tolist()
    return low, middle, high


def _ratio(base: Times | None, own: Times) -> float | None:
    """How many times faster than the base, by GPU time where there is one."""
    if base is None:
        return None
    return statistics.median(base.gpu or base.wall) / statistics.median(own.gpu or own.wall)


def _launches(call: Callable[[], Any]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())

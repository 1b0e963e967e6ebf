"""Devices by name, as options give them, and their free memory: checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

_NAME = re.compile(r"cpu|cuda(:\d+)?")


def expect_name(option: str, name: str) -> None:
    """Raises ValueError unless it is auto, cpu, cuda or cuda:N, available or not."""
    if name != "auto" and not _NAME.fullmatch(name):
        raise ValueError(f"{option}: expected auto, cpu, cuda or cuda:N, got {name!r}")


def use_device(name: str, option: str = "--device") -> torch.device:
    """The device of a name; a numbered GPU becomes the current one.

    Args:
        name: "auto" takes a GPU where there is one; or "cpu", "cuda", "cuda:1".
        option: named in the error.

    Raises:
        ValueError: not such a name, or this machine has no such device; lists those it has.
    """
    expect_name(option, name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        if not count:
            raise ValueError(
                f"{option}: {name!r} asked for, but torch sees no CUDA device: use cpu"
            )
        gpus = (f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise ValueError(f"{option}: there is no {name}; this machine has cpu, {', '.join(gpus)}")
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton launches on the current one
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that are free now: of a GPU, or of the machine's main memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device.index)[0]
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def expect_memory(
    option: str,
    count: int,
    bytes_each: int,
    device: torch.device,
    *,
    reserved: int = 0,
    advice: str = "",
) -> None:
    """Refuses at once what would run out of memory after an hour.

    Args:
        option: that sets the count.
        count: of what is kept in memory at the same time.
        bytes_each: memory of one.
        device: whose memory it is.
        reserved: bytes that are needed besides.
        advice: what follows from a smaller count, for the error.

    Raises:
        ValueError: names the option, and how many fit.
    """
    free = free_memory(device)
    if reserved + count * bytes_each > free:
        most = max((free - reserved) // bytes_each, 0)
        said = f"; {advice}" if advice else ""
        raise ValueError(
            f"{option}: expected at most {most} on this machine ({free / 1e9:.1f} GB free), got "
            f"{count}{said}"
        )


def expect_size(
    option: str, size: float, bytes_of: Callable[[float], float], device: torch.device
) -> None:
    """Refuses at once a size at which memory would run out.

    Args:
        option: that sets the size.
        size: an integer, or a factor.
        bytes_of: memory that a size needs at least; it grows with the size.
        device: whose memory it is.

    Raises:
        ValueError: names the option, and the size that fits.
    """
    free = free_memory(device)
    if bytes_of(size) <= free:
        return
    low, high = 0.0, float(size)
    for _ in range(2000):  # from the largest float to the smallest: it ends
        middle = (low + high) / 2
        low, high = (middle, high) if bytes_of(middle) <= free else (low, middle)
    most = f"{int(low)}" if isinstance(size, int) else f"{low:.3g}"
    got = f"{size}" if isinstance(size, int) else f"{size:g}"
    raise ValueError(
        f"{option}: expected at most {most} on this machine ({free / 1e9:.1f} GB free), got {got}"
    )

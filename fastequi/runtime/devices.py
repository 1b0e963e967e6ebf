"""Devices by name, as options give them, checked before any work."""

from __future__ import annotations

import re

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

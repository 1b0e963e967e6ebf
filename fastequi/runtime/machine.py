"""The machine that a figure was measured on: processor, device, versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from fastequi import __version__
from fastequi.versions import version_of


def machine() -> dict[str, str]:
    """Processor, device and versions, to be stored with every measured figure."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next(named, f":{cpu}").split(":", 1)[1].strip()
    cuda = torch.cuda.is_available()
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("torch", "nvidia-dali", "triton")},
        "fastequi": __version__,
    }

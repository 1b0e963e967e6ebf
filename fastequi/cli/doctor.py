"""`fastequi doctor`: installed packages, and the backend that each part would use."""

from __future__ import annotations

import platform
import shutil

import torch
from rich.console import Console
from rich.table import Table

from fastequi.versions import version_of

_PACKAGES = {
    "torch": "everything",
    "triton": "fused kernels on a GPU",
    "numpy": "random draws",
    "safetensors": "checkpoints",
    "nvidia-dali": "decoding and augmentation (fastequi[dali])",
    "xformers": "memory-efficient attention on a GPU (fastequi[xformers])",
    "tensorboard": "event files (fastequi[log])",
    "fsspec": "tar shards by URL (fastequi[remote])",
    "aiohttp": "those in http(s):// (fastequi[remote])",
    "s3fs": "those in s3:// (fastequi[remote])",
    "tifffile": "TIFF that DALI does not read (fastequi[tiff])",
    "pydicom": "DICOM (fastequi[dicom])",
}
_PRECISIONS = {
    torch.bfloat16: "bf16 autocast",
    torch.float16: "fp16 autocast, the loss scaled",
    None: "float32",
}


def report() -> str:
    """Two tables: packages, and the backend of each part with its reason."""
    packages = Table("package", "version", "used for", title="installed")
    packages.add_row("python", platform.python_version(), platform.platform())
    for name, use in _PACKAGES.items():
        packages.add_row(name, version_of(name), use)
    parts = Table("part", "backend", "why", title="what each part would use here")
    for row in backends():
        parts.add_row(*row)
    console = Console(width=max(shutil.get_terminal_size((120, 24)).columns, 100), markup=False)
    with console.capture() as capture:
        console.print(packages)
        console.print(parts)
    return capture.get()


def backends() -> list[tuple[str, str, str]]:
    """(part, backend, reason) for every part that has a choice."""
    from fastequi.config import fast_dtype
    from fastequi.data.decode import decoder_backend
    from fastequi.functional import backend
    from fastequi.models.attention import available_backends

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    attention = available_backends()
    chosen = " or ".join(name for name, (usable, _) in attention.items() if usable)
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in attention.items())
    return [
        ("device", device.type, where),
        ("fused kernels", *backend(device)),
        ("attention", chosen, why),
        ("images", *decoder_backend(device)),
        ("precision", _PRECISIONS[fast_dtype(device)], "train.precision auto"),
    ]

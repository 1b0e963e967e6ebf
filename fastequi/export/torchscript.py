"""TorchScript: a traced graph, for images of one size and batches of any."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from fastequi.export.subject import FOLDER, PROGRAM, Subject, Written

FILES = ("model.pt",)


def obstacle(subject: Subject) -> str | None:
    """None: it has every network."""
    return None


def write(subject: Subject, folder: Path) -> Written:
    """Writes `FILES`; see :class:`Written`."""
    file = folder / FILES[0]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of sizes, which are meant
        for kind in (DeprecationWarning, FutureWarning):  # of TorchScript itself
            warnings.simplefilter("ignore", kind)
        # checked below, on other batches than the traced one
        graph = torch.jit.trace(subject.encoder.network, subject.images(2), check_trace=False)
        torch.jit.save(graph, file)
        read = torch.jit.load(file, "cpu")
    height, width = subject.encoder.image_size
    batches = (1, 3)
    return Written(
        what="TorchScript",
        code=(
            f'import torch\n\nencoder = torch.jit.load("{FOLDER}/model.pt")\n'
            f"tokens = encoder(images)\n"
        ),
        difference=subject.difference(read, [subject.images(n) for n in batches], PROGRAM),
        checked="loaded again, on batches of 1 and 3",
        notes=(
            f"Batches are of any size, images of {height}x{width} px.",
            "PyTorch calls TorchScript deprecated: in newer code prefer ONNX or `torch.export` of "
            "what `fastequi.load` gives.",
        ),
    )

"""ONNX: one graph for batches and images of any size, compared with onnxruntime's tokens.

`torch.export` follows the network with symbolic sizes: rows and columns of patches and the batch
are free, so positions are interpolated in the graph.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from fastequi.export.subject import FOLDER, PROGRAM, Subject, Written
from fastequi.versions import version_of

FILES = ("model.onnx", "model.onnx.data")

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 1_800_000_000  # bytes in one file: protobuf ends at 2 GiB


def obstacle(subject: Subject) -> str | None:
    """None: it has every network."""
    return None


def expect_packages() -> None:
    """Raises ImportError if one is missing, or broken."""
    lost = []
    for name in _PACKAGES:
        try:
            import_module(name)
        except Exception as error:  # a broken installation raises more than ImportError
            lost.append(f"{name} cannot be imported ({type(error).__name__}: {error})")
    if lost:
        raise ImportError(
            f"--to onnx: expected {', '.join(_PACKAGES)} (pip install 'fastequi[onnx]'): "
            f"{'; '.join(lost)}"
        )


def write(subject: Subject, folder: Path) -> Written:
    """Writes `FILES`, the second for the weights of a large network; see :class:`Written`."""
    expect_packages()
    file, encoder = folder / FILES[0], subject.encoder
    patch = encoder.patch_size
    height, width = encoder.image_size
    largest = sum(tensor.nbytes for tensor in subject.state.values()) > _LARGEST
    with _quiet():
        program = torch.onnx.export(
            encoder.network,
            # sizes that differ: equal ones, and batches of 1, could be taken for constants
            (subject.images(2, (height, width + patch)),),
            input_names=["images"],
            output_names=["tokens"],
            dynamic_shapes={
                "x": {0: Dim("batch"), 2: patch * Dim("rows"), 3: patch * Dim("columns")}
            },
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["fastequi"] = json.dumps(_about(subject))
        program.save(file, external_data=largest)
    sizes = {"own": (height, width), "other": (height + patch, width + 2 * patch)}
    inputs = [subject.images(1), subject.images(3), subject.images(2, sizes["other"])]
    shown = " and ".join(f"{rows}x{columns} px" for rows, columns in sizes.values())
    return Written(
        what="ONNX",
        code=(
            f"import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{FOLDER}/model.onnx")\n'
            f'(tokens,) = session.run(None, {{"images": images}})\n'
        ),
        difference=subject.difference(_Session(file), inputs, PROGRAM),
        checked=f"by onnxruntime {version_of('onnxruntime')}, on batches of 1 to 3, {shown}",
        notes=(
            f"Batches and images are of any size; height and width are multiples of {patch} px, "
            f"and positions are interpolated in the graph.",
            'Its metadata "fastequi" holds channels, mean, std, image and patch size.',
        ),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own steps and code."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


class _Session:
    """onnxruntime's tokens, on the CPU."""

    def __init__(self, file: Path) -> None:
        runtime: Any = import_module("onnxruntime")
        self.session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        (tokens,) = self.session.run(None, {"images": images.numpy()})
        return torch.from_numpy(tokens)


def _about(subject: Subject) -> dict[str, Any]:
    encoder = subject.encoder
    return {
        "channels": encoder.channels,
        "value_range": encoder.value_range,
        "mean": encoder.mean,
        "std": encoder.std,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
    }

"""`fastequi embed`: the features of a folder's images in files, with the list of images beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastequi.data.reader import read
from fastequi.data.sources import Source, image_folder
from fastequi.evaluate.encoders import Encoder, load_encoder
from fastequi.evaluate.recognition import normalise
from fastequi.manifest import save_tensors
from fastequi.models.timm_names import UNSTATED, Stated
from fastequi.results import writable, writable_folder

_FILES = (".safetensors", ".npy")
_OTHERS = (".pt", ".pth", ".npz", ".h5", ".hdf5", ".csv", ".json", ".parquet", ".pkl", ".bin")


@torch.no_grad()
def embeddings(
    encoder: Encoder,
    source: Source,
    names: Sequence[str] = (),
    all_tokens: bool = False,
    share: float = 1.0,
    batch: int = 64,
) -> tuple[dict[str, Tensor], list[str]]:
    """Features of every image in the source's order, in memory, and the images' names.

    Args:
        names: which features; all by default.
        all_tokens: keep every token of the grid instead of their mean.
        share: of an image's shorter side that its centred square takes.
        batch: images at a time.

    Returns:
        ({name: [N, D], with `all_tokens` [N, L, D] but for "cls"}, names of the N files).
    """
    names = _chosen(names, encoder)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    files: list[str] = []
    size = encoder.image_size
    for images, places in read(source, size, device=encoder.device, share=share, batch=batch):
        tokens = encoder.features(normalise(images, encoder))
        for name in names:
            value = tokens[name].float()
            whole = all_tokens and name != "cls"
            found[name].append((value if whole else value.mean(1)).cpu())
        files += [source.names[place] for place in places]
    return {name: torch.cat(parts) for name, parts in found.items()}, files


def _chosen(names: Sequence[str], encoder: Encoder) -> tuple[str, ...]:
    """The features asked for; all if none are named."""
    if len(set(names)) < len(names):
        raise ValueError(f"--features: expected each once, got {', '.join(names)}")
    unknown = sorted(set(names) - set(encoder.names))
    if unknown:
        raise ValueError(
            f"--features: expected some of {', '.join(encoder.names)}, got {', '.join(unknown)}"
        )
    return tuple(names) or encoder.names


def embed(
    spec: str,
    data: Path,
    out: Path,
    names: Sequence[str] = (),
    all_tokens: bool = False,
    share: float = 1.0,
    batch: int = 64,
    device: str = "auto",
    stated: Stated = UNSTATED,
) -> Path:
    """Writes the features of a folder; see :func:`embeddings`.

    Args:
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        data: folder of images.
        out: FILE.safetensors holds all features; FILE.npy one; any other name is a folder of one
            .npy file for each.
        stated: what a file does not tell; see `fastequi.evaluate.encoders.load_encoder`.

    Returns:
        The JSON file beside it, FILE.npy.json or FOLDER/files.json: {"checkpoint", "image_size",
        "features": {name: shape}, "files"}, the files in the order of the rows.
    """
    file = out.suffix in _FILES
    if out.suffix.lower() in (*_FILES, *_OTHERS) and not file:
        raise ValueError(
            f"--out: expected FILE{', FILE'.join(_FILES)} or a folder's name, got {out}"
        )
    encoder = load_encoder(spec, device, stated)
    chosen = _chosen(names, encoder)
    if out.suffix == ".npy" and len(chosen) > 1:
        raise ValueError(
            f"--out: a .npy file holds one kind of features, choose with --features of "
            f"{', '.join(chosen)}; or name a .safetensors file or a folder, got {out}"
        )
    source = image_folder(data)
    if file:
        writable(out)
    else:
        writable_folder(out)
    with Console().status(f"{len(source):,} images"):
        found, files = embeddings(encoder, source, chosen, all_tokens, share, batch)
    if out.suffix == ".safetensors":
        save_tensors(out, found)
    elif out.suffix == ".npy":
        np.save(out, found[chosen[0]].numpy())
    else:
        for name, values in found.items():
            np.save(out / f"{name}.npy", values.numpy())
    document: dict[str, Any] = {
        "checkpoint": spec,
        "encoder": encoder.name,
        "image_size": encoder.image_size,
        "features": {name: list(values.shape) for name, values in found.items()},
        "files": files,
    }
    beside = out.with_name(f"{out.name}.json") if file else out / "files.json"
    beside.write_text(json.dumps(document, indent=1) + "\n")
    shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in found.items())
    print(f"{shapes} in {out}, their files in {beside}")
    return beside

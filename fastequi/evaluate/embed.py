"""`fastequi embed`: the features of images in files, with the list of the images beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastequi.atomic import replace_text, save_tensors
from fastequi.data.reader import read
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data
from fastequi.evaluate.checked import noise
from fastequi.evaluate.classification import normalise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_encoder
from fastequi.evaluate.photo_windows import images_for, values_of
from fastequi.evaluate.results import documented, writable, writable_folder
from fastequi.runtime.devices import expect_memory
from fastequi.runtime.progress import Status
from fastequi.weights.architecture import UNSTATED, Stated

_FILES = (".safetensors", ".npy")
_OTHERS = (".pt", ".pth", ".npz", ".h5", ".hdf5", ".csv", ".json", ".parquet", ".pkl", ".bin")


@torch.no_grad()
def embeddings(
    encoder: Encoder,
    source: Source,
    *,
    names: Sequence[str] = (),
    all_tokens: bool = False,
    share: float = 1.0,
    batch: int = 64,
    size: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Features of every image in the source's order, in memory, and the images' names.

    Args:
        encoder: that computes them.
        source: the images.
        names: which features; all by default.
        all_tokens: keep every token of the grid instead of their mean.
        share: of the largest centred window, of the size's shape, that fits.
        batch: images at a time.
        size: height and width of the windows in pixels; None: the encoder's squares.

    Returns:
        ({name: [N, D], with `all_tokens` [N, L, D] but for "cls"}, names of the N files).
    """
    names = _chosen(names, encoder)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    files: list[str] = []
    frame = size or (encoder.image_size, encoder.image_size)
    _check_memory(encoder, len(source), frame, names, all_tokens)
    how: dict[str, Any] = {"share": share, "batch": batch, "values": values_of(encoder)}
    for images, places in read(source, frame, device=encoder.device, **how):
        tokens = encoder.features(normalise(images, encoder))
        for name in names:
            value = tokens[name].float()
            whole = all_tokens and name != "cls"
            found[name].append((value if whole else value.mean(1)).cpu())
        files += [source.names[place] for place in places]
    return {name: torch.cat(parts) for name, parts in found.items()}, files


def _check_memory(
    encoder: Encoder, n: int, size: tuple[int, int], names: Sequence[str], all_tokens: bool
) -> None:
    """Raises ValueError if the features of n images do not fit into memory, with one kind twice."""
    tokens = encoder.features(noise(size, encoder.device, encoder.in_chans))
    each = [
        4 * (tokens[k].numel() if all_tokens and k != "cls" else tokens[k].shape[-1]) for k in names
    ]
    advice = "--include takes some of the images"
    if all_tokens:
        advice += ", --tokens mean needs less of each"
    cpu = torch.device("cpu")
    expect_memory("--data", n, sum(each) + max(each), cpu, advice=advice)


def _chosen(names: Sequence[str], encoder: Encoder) -> tuple[str, ...]:
    """The named features; all if none are named."""
    if len(set(names)) < len(names):
        raise ValueError(f"--features: expected each once, got {', '.join(names)}")
    unknown = sorted(set(names) - set(encoder.names))
    if unknown:
        raise ValueError(
            f"--features: expected some of {', '.join(encoder.names)}, got {', '.join(unknown)}"
        )
    return tuple(names) or encoder.names


def _frame(encoder: Encoder, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the encoder's images.

    Raises:
        ValueError: it cannot take images of that size.
    """
    if size is None:
        return encoder.image_size, encoder.image_size
    sides, patch = f"{size[0]}x{size[1]}", encoder.patch_size
    if patch is not None and (size[0] % patch or size[1] % patch):
        raise ValueError(f"--size: expected multiples of the patch size {patch}, got {sides}")
    try:
        encoder.features(noise(size, encoder.device, encoder.in_chans))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"--size: {encoder.name} takes no {sides} images ({error})") from error
    return size


def embed(
    spec: str,
    data: Data,
    out: Path,
    *,
    names: Sequence[str] = (),
    all_tokens: bool = False,
    share: float = 1.0,
    batch: int = 64,
    device: str = "auto",
    size: tuple[int, int] | None = None,
    stated: Stated = UNSTATED,
) -> Path:
    """Writes the features of images.

    Args:
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        data: see `fastequi.data.sources.image_sets.open_source`.
        out: FILE.safetensors holds all features; FILE.npy one; any other name is a folder of one
            .npy file for each.
        names, all_tokens, share, batch, size: see :func:`embeddings`.
        device: "auto", "cpu", "cuda" or "cuda:1".
        stated: what a file does not say; see `fastequi.evaluate.encoders.load_encoder`.

    Returns:
        The JSON file beside it, FILE.npy.json or FOLDER/files.json: {"checkpoint", "encoder",
        "image_size", "data", "features": {name: shape}, "files"}, files in the order of the rows.
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
    frame = _frame(encoder, size)
    source = open_source(data, wanted=images_for(encoder))
    if file:
        writable(out)
    else:
        writable_folder(out)
    with Status(Console(), f"{len(source):,} images"):
        found, files = embeddings(
            encoder,
            source,
            names=chosen,
            all_tokens=all_tokens,
            share=share,
            batch=batch,
            size=frame,
        )
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
        "image_size": frame[0] if frame[0] == frame[1] else list(frame),
        **documented(data),
        "features": {name: list(values.shape) for name, values in found.items()},
        "files": files,
    }
    beside = out.with_name(f"{out.name}.json") if file else out / "files.json"
    replace_text(beside, json.dumps(document, indent=1) + "\n")
    shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in found.items())
    print(f"{shapes} in {out}, their files in {beside}")
    return beside

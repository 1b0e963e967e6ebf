"""Maps of tokens on the disk, by content: an evaluation that was stopped goes on where it was.

A file for each image, named by its pixels and by what made the map: weights, features, size. So
another evaluation of the same images finds them, and no file is ever wrong, only unused; the oldest
are removed once all take more than a limit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastequi.atomic import save_tensors
from fastequi.evaluate.encoders import Encoder
from fastequi.evaluate.geometry.grids import Grids, Maps
from fastequi.evaluate.results import writable_folder

logger = logging.getLogger(__name__)


def digest_of(encoder: Encoder) -> str | None:
    """Of what an encoder computes; None for a function's, whose code may change."""
    module = encoder.method or encoder.network
    if not isinstance(module, nn.Module):
        return None
    said = hashlib.sha256(repr((encoder.names, encoder.mean, encoder.std)).encode())
    for name, value in sorted(module.state_dict().items()):
        said.update(name.encode())
        said.update(_bytes(value))
    said.update(str(encoder.config and encoder.config.model).encode())
    return said.hexdigest()[:32]


@dataclass
class KeptMaps:
    """A folder of maps.

    Attributes:
        folder: made if it is not there, unless nothing is kept.
        gigabytes: that all files may take; 0 keeps nothing.

    Raises:
        ValueError: the limit is below 0 or no number, or the folder cannot be written.
    """

    folder: Path
    gigabytes: float

    def __post_init__(self) -> None:
        """Refuses a limit that cannot be, and a folder that cannot be written if it is needed."""
        if not self.gigabytes >= 0:
            raise ValueError(f"--cache-gb: expected 0 or more, got {self.gigabytes:g}")
        if self.gigabytes:
            writable_folder(self.folder, "--cache")

    def around(self, grids: Grids, encoder: Encoder) -> Grids:
        """The same maps, from the disk where they are there."""
        digest = digest_of(encoder) if self.gigabytes else None
        if digest is None:
            return grids

        def of(images: Tensor) -> Maps:
            files = [self._file(digest, image) for image in images.cpu()]
            found = {i: maps for i, file in enumerate(files) if (maps := _read(file)) is not None}
            missing = [i for i in range(len(files)) if i not in found]
            if missing:
                made = grids.of(images[missing])
                for place, i in enumerate(missing):
                    found[i] = {name: made[name][place] for name in grids.names}
                    self._keep(files[i], found[i])
            return {
                name: torch.stack([found[i][name].to(grids.device) for i in range(len(files))])
                for name in grids.names
            }

        return replace(grids, of=of, digest=digest)

    def trim(self) -> None:
        """Removes the oldest files beyond the limit; of a limit of 0 none, as none was kept.

        Other processes may remove some meanwhile.
        """
        if not self.gigabytes:
            return
        files = []
        for file in self.folder.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
        left = sum(size for _, size, _ in files) - self.gigabytes * 1e9
        removed = 0
        for _, size, file in sorted(files):
            if left <= 0:
                break
            left -= size
            file.unlink(missing_ok=True)
            removed += 1
        if removed:
            logger.info("%d of %d kept maps removed from %s", removed, len(files), self.folder)

    def _file(self, digest: str, image: Tensor) -> Path:
        pixels = hashlib.sha256(f"{list(image.shape)} {image.dtype}".encode())
        pixels.update(_bytes(image))
        return self.folder / digest / f"{pixels.hexdigest()[:32]}.safetensors"

    def _keep(self, file: Path, maps: Maps) -> None:
        """Not synced, which took longer than the map: what a crash leaves damaged is made anew."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{platform.node()}.{os.getpid()}.tmp")
        save_tensors(temporary, {name: x.cpu().contiguous() for name, x in maps.items()})
        temporary.replace(file)


def _read(file: Path) -> Maps | None:
    """A kept map; None where there is none or a damaged one."""
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

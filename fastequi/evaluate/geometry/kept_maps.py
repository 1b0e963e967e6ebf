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
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastequi.atomic import save_tensors
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.grids import Grids, Maps
from fastequi.evaluate.results import writable_folder

logger = logging.getLogger(__name__)

_STALE = 3600.0  # seconds after which a file that is half written is a dead process's


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
        gigabytes: that all files may take; 0 keeps nothing. Checked at the end, and on the way
            whenever a tenth of it was written.
        read, made: maps that were there, and that were not.
        full: whether the disk was; then no more are kept, which is said once.

    Raises:
        ValueError: the limit is below 0 or no number, or the folder cannot be written.
    """

    folder: Path
    gigabytes: float
    read: int = 0
    made: int = 0
    full: bool = False
    _written: int = field(default=0, repr=False)

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
            self.read, self.made = self.read + len(found), self.made + len(missing)
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

    def sentence(self) -> str:
        """How many maps were there already; "" where none could be."""
        total = self.read + self.made
        if not total:
            return ""
        return f"{self.read:,} of {total:,} maps of tokens were there already; {self.folder}"

    def trim(self) -> None:
        """Removes the oldest files beyond the limit, and what processes that ended left half
        written; of a limit of 0 none, as none was kept.

        Other processes may remove some meanwhile.
        """
        if not self.gigabytes:
            return
        self._written = 0
        files = []
        for entry in self._entries():
            with suppress(FileNotFoundError):
                status = entry.stat()
                if entry.name.endswith(".safetensors"):
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE:
                    os.unlink(entry.path)
        left = sum(size for _, size, _ in files) - self.gigabytes * 1e9
        removed = 0
        for _, size, file in sorted(files):
            if left <= 0:
                break
            left -= size
            with suppress(FileNotFoundError):
                os.unlink(file)
            removed += 1
        if removed:
            logger.info("%d of %d kept maps removed from %s", removed, len(files), self.folder)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """All files; of hundreds of thousands a Path each would take ten times as long."""
        for encoder in os.scandir(self.folder):
            if encoder.is_dir():
                with suppress(FileNotFoundError), os.scandir(encoder.path) as inside:
                    yield from inside

    def _file(self, digest: str, image: Tensor) -> Path:
        pixels = hashlib.sha256(f"{list(image.shape)} {image.dtype}".encode())
        pixels.update(_bytes(image))
        return self.folder / digest / f"{pixels.hexdigest()[:32]}.safetensors"

    def _keep(self, file: Path, maps: Maps) -> None:
        """Not synced, which took longer than the map: what a crash leaves damaged is made anew."""
        if self.full:
            return
        temporary = file.with_name(f".{file.name}.{platform.node()}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(temporary, {name: x.cpu().contiguous() for name, x in maps.items()})
            self._written += temporary.stat().st_size
            temporary.replace(file)
        except (OSError, SafetensorError) as error:  # its writer has an error of its own
            self.full = True
            logger.warning(
                "maps of tokens are not kept any more, %s cannot be written (%s); --cache names "
                "another folder, --cache-gb 0 keeps none",
                *(self.folder, getattr(error, "strerror", None) or error),
            )
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if self._written > self.gigabytes * 1e8:
            self.trim()


def _read(file: Path) -> Maps | None:
    """A kept map; None where there is none or a damaged one."""
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

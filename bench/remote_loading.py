"""What does it cost that shards lie behind URLs?

    python -m bench.remote_loading --json FILE

Four tar shards of 128 JPEG files of 256 px, read from files and from an HTTP server of byte ranges
on the loopback, in a process of its own: as ranges, as ranges of which each waits 20 ms at the
server, as one far away does, and from a cache on disk that has all shards. The loader makes
v1 and u of 224 px in batches of 64, and is measured as a run would wait for it. Places take turns,
with what was made ahead used up before; the medians are of one interleaved run. Server and loader
share the machine's cores.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.loading import rates, run
from fastequi.data.config import DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.images import Source
from fastequi.data.sources.shard_cache import ShardCache
from fastequi.kernels import native
from fastequi.paths import SE2

SHARDS, MEMBERS, SIDE, BATCH = 4, 128, 256, 64
DRAINED, TIMED = 6, 12  # batches not timed and timed of a round
LATENCY = 0.02  # seconds
PATTERN = f"{{000..{SHARDS - 1:03}}}.tar"
PLACES = ("files", "http", "http, 20 ms", "http, cached")


def image(i: int) -> bytes:
    """Smooth, with some noise, as photographs are."""
    draw = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE] / 40
    waves = [np.sin(x + k + i) * np.cos(y - k) for k in range(3)]
    unit = 0.5 + 0.4 * np.stack(waves, -1) + draw.normal(0, 0.02, (SIDE, SIDE, 3))
    file = io.BytesIO()
    Image.fromarray((unit.clip(0, 1) * 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(folder: Path) -> None:
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as out:
            for k in range(MEMBERS):
                content = image(shard * MEMBERS + k)
                member = tarfile.TarInfo(f"{k:04}.jpg")
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))


class Ranges(BaseHTTPRequestHandler):
    """GET and HEAD of whole files and of a byte range; below /slow/ after LATENCY."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.path.startswith("/slow/"):
            time.sleep(LATENCY)
        file = self.folder / self.path.rpartition("/")[2]
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (0, size - 1)
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size}"')
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if with_body:
            with file.open("rb") as opened:
                self.wfile.write(os.pread(opened.fileno(), last + 1 - first, first))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _serve(folder: Path, port: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Ranges,), {"folder": folder}))
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The server's URL."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{mine.recv()}"
    finally:
        process.terminate()
        process.join()


def sources(folder: Path, url: str) -> dict[str, Source]:
    shards, cache = folder / "shards", ShardCache(folder / "cache", 10**9)
    found = (
        open_source(shards / "*.tar"),
        open_source(f"{url}/{PATTERN}"),
        open_source(f"{url}/slow/{PATTERN}"),
        open_source(f"{url}/{PATTERN}", cache=cache),
    )
    return dict(zip(PLACES, found, strict=True))


def measured(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each place."""
    native.load()  # compiled to the user's cache, as ever; listings go to one that is removed
    os.environ["FASTEQUI_CACHE"] = f"{folder}/user"
    (folder / "shards").mkdir()
    write_shards(folder / "shards")
    cfg = DataConfig(batch_size=BATCH, samples_per_decode=1, repeat=1000)
    with ExitStack() as stack:
        url = stack.enter_context(serving(folder / "shards"))
        streams = {
            name: stack.enter_context(make_loader(source, cfg, SE2(), seed=0))
            for name, source in sources(folder, url).items()
        }
        for _ in islice(streams["http, cached"], TIMED):  # until the cache has all shards
            pass
        found = rates(streams, rounds, BATCH, DRAINED, TIMED)
    return [{"place": name, **row} for name, row in found.items()]


def table(document: Mapping[str, Any]) -> str:
    """Markdown: images a second, of each of which two views are made, and their share of files'."""
    files = document["rows"][0]["images/s"]
    lines = ["| shards | images/s | of files |", "| --- | --- | --- |"]
    for row in document["rows"]:
        rate = row["images/s"]
        lines.append(f"| {row['place']} | {rate:,.0f} | {rate / files:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run("python -m bench.remote_loading", measured, table)

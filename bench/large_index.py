"""What does opening an index of any number of images take, and its first step?

    python -m bench.large_index 1280000 14000000 --folder FOLDER --json FILE

The images are made up. Of each number three processes, one after the other, open the index, ask for
1,000 names and for the names of the first step's 1,024 samples; then several at once read all sizes
and 100,000 names. The file is in the page cache, if it fits into the memory; else what is read
comes from the disk. It is removed in the end: 65 bytes an image.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import made_by
from fastequi.data.config import DataConfig
from fastequi.data.sampler import Sampler
from fastequi.data.sources import index
from fastequi.data.sources.columns import Columns
from fastequi.data.sources.images import Indexed, Source
from fastequi.data.sources.index import Index
from fastequi.data.sources.made_texts import Joined
from fastequi.data.sources.texts import Names, taken

PARTS = 1 << 17


def name(i: int) -> str:
    return f"train/folder_{i // 1000:06d}/{i:09d}.jpg"


def parts(count: int) -> Iterator[Columns]:
    """Images in the order of their names, all of one length (33 bytes)."""
    width = len(name(0))
    text = np.tile(np.frombuffer(name(0).encode(), np.uint8), (PARTS, 1))
    folder, file = (name(0).index(zeros) for zeros in ("000000", "000000000"))
    for start in range(0, count, PARTS):
        i = np.arange(start, min(start + PARTS, count))
        for place, digits, number in ((folder, 6, i // 1000), (file, 9, i)):
            for k in range(digits):
                text[: len(i), place + digits - 1 - k] = ord("0") + number // 10**k % 10
        names = Names(width * np.arange(1, len(i) + 1), text[: len(i)].reshape(-1).copy())
        sizes = np.stack([300 + i % 200, 400 + i % 300], 1).astype(np.int32)
        yield Columns(names, 100_000 + i, sizes, i.astype(np.uint64) + np.uint64(1))


def make(file: Path, count: int) -> None:
    about = Index([], {"train/bad.jpg": "empty file"}, decoded=True, formats=("JPEG",))
    index.write_parts(file, about, parts(count), (count, count * len(name(0))))


def opened(file: Path) -> Source:
    """As `image_folder` makes it of an index, without the walk over a folder that is not there."""
    known = index.read(file)
    names, sizes = known.columns.names, known.columns.sizes
    whole = Indexed(file, known.fingerprint, names, sizes)
    return Source(Joined("photos", names), names, sizes, formats=known.formats, indexed=whole)


def memory() -> dict[str, float]:
    """Of this process in MB: private (USS), with its share of the shared (PSS), resident; dirty is
    the part of the private that is no clean page of a file, which the kernel may drop."""
    found: dict[str, float] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, kilobytes, *_ = line.split()
        found[key] = int(kilobytes) / 1e3
    own = found["Private_Clean:"] + found["Private_Dirty:"]
    kinds = {
        "uss": own,
        "pss": found["Pss:"],
        "rss": found["Rss:"],
        "dirty": found["Private_Dirty:"],
    }
    return {key: round(value, 1) for key, value in kinds.items()}


def use(file: Path) -> dict[str, object]:
    """Seconds, and memory beyond what the imports took."""
    before = memory()
    start = time.perf_counter()
    source = opened(file)
    took = {"images": len(source), "open s": time.perf_counter() - start}
    after = memory()
    places = np.random.default_rng(os.getpid()).integers(0, len(source), 1000)
    start = time.perf_counter()
    names = taken(source.names, places)
    assert list(names) == [name(i) for i in places.tolist()]
    took["1000 names s"] = time.perf_counter() - start
    named = memory()
    start = time.perf_counter()
    step = next(Sampler(len(source), DataConfig(batch_size=1024, samples_per_decode=1), 0))
    shown = [source.paths[i] for i in step.files.tolist()]
    sizes = source.sizes[step.files]
    assert len(source.fingerprint()) == 16
    took["first step s"] = time.perf_counter() - start
    assert (len(shown), len(sizes)) == (1024, 1024)
    stepped = memory()
    found: dict[str, object] = {key: round(value, 4) for key, value in took.items()}
    for what, then in (("opened", after), ("1000 names", named), ("first step", stepped)):
        found[what] = {key: round(then[key] - before[key], 1) for key in before}
    return found


def share(file: Path, processes: int) -> dict[str, float]:
    """The memory of several processes at once that each open it and use it, in MB."""
    script = (
        "import sys; from pathlib import Path; from bench import large_index as l;"
        "before = l.memory(); source = l.opened(Path(sys.argv[1]));"
        "import numpy as np; places = np.random.default_rng(0).integers(0, len(source), 100_000);"
        "names = [len(n) for n in source.names.take(places)]; total = source.sizes.sum();"
        "print('ready', flush=True); input(); now = l.memory();"
        "import json; print(json.dumps({k: now[k] - before[k] for k in now}), flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
    for word in (None, "\n", "\n"):  # each waits for all the others
        lines = []
        for one in running:
            if word:
                one.stdin.write(word)
                one.stdin.flush()
        for one in running:
            lines.append(one.stdout.readline())
        if word:
            break
    found = [json.loads(line) for line in lines]
    for one in running:
        one.stdin.write("\n")
        one.stdin.close()
        one.wait()
    sums = {f"sum of {key}": round(sum(one[key] for one in found), 1) for key in found[0]}
    return {"processes": processes, **sums}


def measured(folder: Path, count: int, processes: int) -> dict[str, Any]:
    """The figures of one number of images."""
    file = folder / f"{count}.fei"
    try:
        began = time.perf_counter()
        make(file, count)
        found: dict[str, Any] = {
            "images": count,
            "bytes": os.path.getsize(file),
            "written in s": round(time.perf_counter() - began, 1),
        }
        command = [sys.executable, "-c", _USE, str(file)]
        outputs = [subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout
                   for _ in range(_TIMES)]  # fmt: skip
        found["uses"] = [json.loads(text) for text in outputs]
        found["shared"] = share(file, processes)
        return found
    finally:
        file.unlink(missing_ok=True)


_TIMES = 3
_USE = (
    "import json, sys; from pathlib import Path; from bench import large_index;"
    "print(json.dumps(large_index.use(Path(sys.argv[1]))))"
)


def table(document: Mapping[str, Any]) -> str:
    """Markdown: medians of the processes that came one after the other."""
    columns = "images", "file", "opened in", "to the first step's names", "memory of its own"
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | --- |"]
    for row in document["rows"]:
        opened, step, own = (
            statistics.median(values)
            for values in (
                [use["open s"] for use in row["uses"]],
                [use["first step s"] for use in row["uses"]],
                [use["first step"]["dirty"] for use in row["uses"]],
            )
        )
        gigabytes = row["bytes"] / 1e9
        cells = f"{gigabytes:.3g} GB | {1e3 * opened:.1f} ms | {step:.2f} s | {own:.1f} MB"
        lines.append(f"| {row['images'] / 1e6:g} million | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large_index")
    parser.add_argument("counts", nargs="+", type=int, metavar="IMAGES")
    parser.add_argument("--folder", type=Path, required=True, help="for the indices, a while")
    parser.add_argument("--processes", type=int, default=8, help="that share an index")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = made_by("python -m bench.large_index")
    rows = [measured(options.folder, count, options.processes) for count in options.counts]
    document = {**about, "rows": rows}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()

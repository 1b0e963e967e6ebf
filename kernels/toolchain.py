"""Compiles the CPU kernels (*.c) into one shared library; needs the standard library alone.

Every kernel is compiled once per instruction set, so that a library built here also runs elsewhere;
`native.py` picks at run time. OpenMP is not linked: its names resolve to the runtime that PyTorch
has already loaded, whose threads the kernels then share.

At first use the library goes to a cache folder, its name made of sources, compiler and flags, built
under a lock. A wheel built where there is a compiler carries it along (`wheel.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
KERNELS = (
    "warp.c",
    "warp_adjoint.c",
    "warp_recon.c",
    "rot90_batch.c",
    "dino.c",
    "sinkhorn.c",
    "similarities.c",
    "unit_rows.c",
    "gram.c",
    "nt_xent.c",
    "koleo.c",
    "correspondence.c",
    "blur.c",
    "crop_align.c",
    "vicreg.c",
    "fused_views.c",
    "short_attention.c",
    "gelu.c",
)  # once per instruction set
COMMON = ("native.c",)
HEADERS = (
    "vectors.h",
    "values.h",
    "exponentials.h",
    "packed.h",
    "spread.h",
    "pixel_loss.h",
    "separable.h",
    "resample.h",
    "small_products.h",
    "unit_rows.h",
)
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")
LIBRARY = "libfastequi.so"  # no module is called so: native.so would be imported for native.py


def extra_flags() -> list[str]:
    """$FASTEQUI_CFLAGS, for compiling and linking; ci/sanitize.sh sets its sanitizers there."""
    return shlex.split(os.environ.get("FASTEQUI_CFLAGS", ""))


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Suffix of the exported names, and the compiler's flags, of every set to compile for."""
    if platform.machine() in ("x86_64", "AMD64"):
        return {f"v{level}": (f"-march=x86-64-v{level}",) for level in (2, 3, 4)}
    return {"base": ()}


def compiler() -> list[str] | None:
    """The C compiler: $CC if set, with any arguments it has, else gcc or cc if there is one."""
    named = shlex.split(os.environ.get("CC", ""))
    for name, *arguments in [named] if named else [["gcc"], ["cc"]]:
        if found := shutil.which(name):
            return [found, *arguments]
    return None


def compiling(cc: Sequence[str], isa: str | None = None) -> list[str]:
    """The compiler with its flags for one of :func:`instruction_sets`, or for any processor."""
    own = () if isa is None else (*instruction_sets()[isa], f"-DISA={isa}")
    return [*cc, *FLAGS, *extra_flags(), *own]


def fingerprint() -> str:
    """Of everything the library is made from but the compiler."""
    parts = hashlib.sha256(repr((FLAGS, extra_flags(), instruction_sets())).encode())
    for name in (*KERNELS, *COMMON, *HEADERS):
        parts.update((HERE / name).read_bytes())
    return parts.hexdigest()[:16]


def build(cc: Sequence[str], library: Path) -> None:
    """Compiles to `library`, which appears complete or not at all.

    Raises:
        RuntimeError: the compiler failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        jobs = []
        for isa in instruction_sets():
            for name in KERNELS:
                out = f"{scratch}/{name}.{isa}.o"
                jobs.append([*compiling(cc, isa), "-c", str(HERE / name), "-o", out])
        for name in COMMON:
            jobs.append([*compiling(cc), "-c", str(HERE / name), "-o", f"{scratch}/{name}.o"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        made = f"{scratch}/{LIBRARY}"
        _run([*cc, "-shared", *extra_flags(), "-o", made, *(job[-1] for job in jobs), "-lm"])
        os.replace(made, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-5:]
        raise RuntimeError(f"{command[0]} failed on {Path(command[-3]).name}: " + " | ".join(said))


def cached() -> Path:
    """The library, built now if no process has built it before.

    Raises:
        RuntimeError: there is no compiler, or it failed.
        OSError: the cache folder cannot be written.
    """
    cc = compiler()
    if cc is None:
        raise RuntimeError("no C compiler (gcc, cc or $CC)")
    version = subprocess.run([*cc, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256(f"{shlex.join(cc)} {version}".encode()).hexdigest()[:8]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"native-{fingerprint()}-{key}.so"
    if not library.is_file():
        logger.warning(
            "compiling the CPU kernels in C, once on this machine: half a minute to two, to %s",
            library,
        )
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait, then find it built
            if not library.is_file():
                build(cc, library)
    return library


def cache_folder() -> Path:
    """$FASTEQUI_CACHE, else fastequi/ in the user's cache folder."""
    named = os.environ.get("FASTEQUI_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastequi"

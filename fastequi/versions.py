"""Versions of installed packages and of this one's code, for records and caches."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

MISSING = "not installed"


def version_of(name: str) -> str:
    """The version of a distribution or module, or MISSING.

    An imported module's `__version__` comes first: torch's includes the build (2.14.1+cu130), its
    wheel's metadata may not (2.14.1), and a checkout on the path has no metadata. The name of
    DALI's distribution contains its CUDA version, which is added.
    """
    imported = getattr(sys.modules.get(name), "__version__", None)
    if imported is not None:
        return str(imported)
    for distribution in importlib.metadata.distributions():
        found = (distribution.metadata["Name"] or "").lower()
        if found == name or found.startswith(f"{name}-cuda"):
            return f"{distribution.version} ({found})" if found != name else distribution.version
    holders = importlib.metadata.packages_distributions().get(name)
    return importlib.metadata.version(holders[0]) if holders else MISSING


def commit() -> str:
    """Of the checkout that this package is in, with a + where it was changed; "" without one."""
    root = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]  # a commit may be under way
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")

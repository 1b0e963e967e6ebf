"""Versions of what is installed, as the packages say themselves: for records and caches."""

from __future__ import annotations

import importlib.metadata
import sys


def version_of(name: str) -> str:
    """The version of a distribution or module, or "not installed".

    What is imported is asked first: torch says which build it is (2.14.1+cu130) where its wheel's
    metadata need not (2.14.1), and a checkout on the path has no metadata. DALI's distribution
    carries the CUDA version that it was built for in its name, which is told as well.
    """
    told = getattr(sys.modules.get(name), "__version__", None)
    if told is not None:
        return str(told)
    for distribution in importlib.metadata.distributions():
        found = (distribution.metadata["Name"] or "").lower()
        if found == name or found.startswith(f"{name}-cuda"):
            return f"{distribution.version} ({found})" if found != name else distribution.version
    holders = importlib.metadata.packages_distributions().get(name)
    return importlib.metadata.version(holders[0]) if holders else "not installed"

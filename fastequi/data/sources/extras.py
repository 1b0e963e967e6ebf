"""Images that were left out for a package that was not installed, and is by now."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module

# as `fastequi.data.sources.tiff` and `dicom` say it
_NEEDS = re.compile(r"(?:this TIFF|DICOM) needs (tifffile|pydicom):")


def readable_now(left_out: Mapping[str, str]) -> str:
    """Which packages can be imported now that images were left out for, as text; "" for none.

    Args:
        left_out: {name: reason}, as an index says.
    """
    found = Counter(match[1] for reason in left_out.values() if (match := _NEEDS.match(reason)))
    each = [f"{count} for {name}" for name, count in sorted(found.items()) if _imports(name)]
    return f"{' and '.join(each)}, which can be imported now, were left out" if each else ""


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except Exception:  # a broken install raises more than ImportError
        return False
    return True

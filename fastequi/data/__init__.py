"""Images in, view pairs out: sources, the sampler, DALI, the loader; `read_image` for one file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastequi.data.single import read_image

__all__ = ["read_image"]


def __getattr__(name: str) -> Any:
    """Loads `read_image` on first use: what it needs, DALI with it, takes a second."""
    if name != "read_image":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastequi.data.single import read_image

    return read_image

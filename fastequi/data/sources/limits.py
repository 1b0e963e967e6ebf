"""How large images may be: what claims more is refused before any memory is taken for it."""

from __future__ import annotations

from PIL import Image

_MOST_VALUES = 1 << 30
MAX_BYTES = 1 << 30  # encoded; no image below Pillow's limit of 179 million pixels needs more


def expect_pixels(height: int, width: int, channels: int = 1) -> None:
    """Refuses an image that claims more pixels than Pillow takes, or more than 2^30 values.

    Raises:
        Image.DecompressionBombError: it does.
        ValueError: it has no pixels, or more values.
    """
    pixels, most = height * width, Image.MAX_IMAGE_PIXELS
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} × {width} pixels")
    if most is not None and pixels > 2 * most:
        raise Image.DecompressionBombError(f"{pixels} pixels, more than {2 * most}")
    if pixels * channels > _MOST_VALUES:
        raise ValueError(f"{height} × {width} × {channels} values, more than {_MOST_VALUES}")

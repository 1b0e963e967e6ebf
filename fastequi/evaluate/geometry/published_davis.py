"""Published figures of DAVIS 2017's validation set, printed beside results on that set alone."""

from __future__ import annotations

from collections.abc import Sequence

VALIDATION = {
    *("bike-packing", "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout"),
    *("car-shadow", "cows", "dance-twirl", "dog", "dogs-jump", "drift-chicane"),
    *("drift-straight", "goat", "gold-fish", "horsejump-high", "india", "judo", "kite-surf"),
    *("lab-coat", "libby", "loading", "mbike-trick", "motocross-jump", "paragliding-launch"),
    *("parkour", "pigs", "scooter-black", "shooting", "soapbox"),
}

# J&F, J mean, F mean, percent: Caron et al., ICCV 2021, table 5 (480p, queue of 7 frames)
PUBLISHED = {
    "DINO ViT-S/16": (61.8, 60.2, 63.4),
    "DINO ViT-B/16": (62.3, 60.7, 63.9),
    "DINO ViT-S/8": (69.9, 66.6, 73.1),
    "DINO ViT-B/8": (71.4, 67.9, 74.9),
}


def remarks_on(clips: Sequence[str]) -> list[str]:
    """What to print of clips, by name; nothing unless they are the whole validation set."""
    if set(clips) != VALIDATION:
        return []
    rows = (
        f"{name} {both / 100:.3f} {region / 100:.3f} {contour / 100:.3f}"
        for name, (both, region, contour) in PUBLISHED.items()
    )
    return [f"published J&F, J mean, F mean (Caron et al., 2021): {', '.join(rows)}"]

"""Published figures, printed beside results on the real sets alone; settings are the publications'.

TIR's are of Wang et al., AAAI 2026, tables 6 and 7: ViT-L/16, means over three runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TIR = "Wang et al., AAAI 2026, ViT-L/16"
_ROWS = "iBOT", "TIR on iBOT", "DINOv2", "TIR on DINOv2"

DAVIS_VALIDATION = {
    *("bike-packing", "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout"),
    *("car-shadow", "cows", "dance-twirl", "dog", "dogs-jump", "drift-chicane"),
    *("drift-straight", "goat", "gold-fish", "horsejump-high", "india", "judo", "kite-surf"),
    *("lab-coat", "libby", "loading", "mbike-trick", "motocross-jump", "paragliding-launch"),
    *("parkour", "pigs", "scooter-black", "shooting", "soapbox"),
}
# J&F, J mean, F mean, percent: Caron et al., ICCV 2021, table 5 (480p, queue of 7 frames)
_DINO_ON_DAVIS = {
    "DINO ViT-S/16": (61.8, 60.2, 63.4),
    "DINO ViT-B/16": (62.3, 60.7, 63.9),
    "DINO ViT-S/8": (69.9, 66.6, 73.1),
    "DINO ViT-B/8": (71.4, 67.9, 74.9),
}
_TIR_ON_DAVIS = dict(
    zip(
        _ROWS,
        ((63.4, 62.3, 64.6), (65.4, 63.9, 67.0), (29.8, 27.7, 31.9), (65.2, 64.0, 66.3)),
        strict=True,
    )
)
_SEGMENT = {
    "Pascal VOC": (
        "published, by retrieval with 102,400 patches, 512 px and two augmented passes "
        "(open-hummingbird-eval): mIoU DINO ViT-S/16 .372, DINOv2 ViT-S/14 .702",
    ),
    "ADE20K": (
        "published, by a linear head on four blocks and several scales (DINOv2's model "
        "card): mIoU ViT-S/14 .472, ViT-B/14 .513, ViT-L/14 .531",
        f"published, fine-tuned with UPerNet ({_TIR}): mIoU iBOT .522, TIR on iBOT .524, DINOv2 "
        f".535, TIR on DINOv2 .541",
    ),
}
_DEPTH = {  # RMSE in metres and AbsRel, by the crop that belongs to the set
    "eigen": ("NYU", ((0.3606, 0.1001), (0.3514, 0.0985), (0.3454, 0.0965), (0.3413, 0.0940))),
    "garg": ("KITTI", ((2.7469, 0.0672), (2.7551, 0.0671), (2.7037, 0.0664), (2.6578, 0.0640))),
}
_DINOV2_ON_NYU = (
    "published RMSE on NYU, by a linear head on four blocks (DINOv2's model card): ViT-S/14 .417, "
    "ViT-B/14 .362"
)
_S_COCO = dict(zip(_ROWS, (1.76, 1.53, 1.68, 1.42), strict=True))
_COCO_NAME = re.compile(r"(^|/)(COCO_(train|val|test)20\d\d_)?\d{12}\.jpg$")


def of_davis(clips: Sequence[str]) -> list[str]:
    """What to print of clips, by name; nothing unless they are the whole validation set."""
    if set(clips) != DAVIS_VALIDATION:
        return []
    return [
        f"published J&F, J mean, F mean ({source}): "
        + ", ".join(
            f"{name} {' '.join(f'{percent / 100:.3f}' for percent in found)}"
            for name, found in figures.items()
        )
        for source, figures in (("Caron et al., 2021", _DINO_ON_DAVIS), (_TIR, _TIR_ON_DAVIS))
    ]


def of_segments(layout: str) -> list[str]:
    """What to print of a set by its layout."""
    return list(_SEGMENT.get(layout, ()))


def of_depths(crop: str) -> list[str]:
    """What to print of depths by the part of the images that counts: Eigen's is NYU's, Garg's is
    KITTI's."""
    if crop not in _DEPTH:
        return []
    name, figures = _DEPTH[crop]
    rows = zip(_ROWS, figures, strict=True)
    shown = ", ".join(f"{row} {rmse:.3f} {relative:.3f}" for row, (rmse, relative) in rows)
    found = [f"published RMSE and AbsRel on {name}, fine-tuned ({_TIR}): {shown}"]
    return [_DINOV2_ON_NYU, *found] if crop == "eigen" else found


def of_homographies(names: Sequence[str]) -> list[str]:
    """What to print of pairs of views of photographs, by their names: S-COCO's are of COCO's."""
    if not all(map(_COCO_NAME.search, names)):
        return []
    shown = ", ".join(f"{row} {error:.2f}" for row, error in _S_COCO.items())
    return [f"published MCE of the head on S-COCO ({_TIR}): {shown}"]

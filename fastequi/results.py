"""Where an evaluation's figures go: JSON with the machine and what was judged.

eval_equivariance.json   "tasks": {task: {"names", "train_pairs", "test_pairs", "scores": [Score
                         and its "mean"]}}, see `fastequi.evaluate.equivariance.Score`; "budget"
eval_equivariance_zero_fill.json   the same of zero-filled pairs
eval_knn.json, eval_linear.json   "scores": [`fastequi.evaluate.recognition.Recognition`]
eval_reconstruct.json    "psnr", "ssim": `fastequi.evaluate.reconstruction.Quality`;
                         "spectra": {features: `fastequi.evaluate.spectrum.Spectrum`}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastequi.doctor import machine
from fastequi.evaluate.encoders import Encoder


def place(kind: str, spec: str, out: Path | None) -> Path:
    """`out`, else eval_KIND.json in the folder that was judged, else in the current one."""
    folder = Path(spec).expanduser()
    return out or (folder if folder.is_dir() else Path()) / f"eval_{kind}.json"


def save(file: Path, spec: str, encoder: Encoder, document: dict[str, Any]) -> None:
    """Writes {"machine", "checkpoint", "encoder", "image_size", **document}."""
    head = {
        "machine": machine(),
        "checkpoint": spec,
        "encoder": encoder.name,
        "image_size": encoder.image_size,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**head, **document}, indent=1) + "\n")

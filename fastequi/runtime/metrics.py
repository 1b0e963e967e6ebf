"""A run's metrics: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastequi.atomic import replace_text

logger = logging.getLogger(__name__)


class Log:
    """Writes metrics.jsonl, and TensorBoard events if it is installed.

    Args:
        run_dir: the run's folder; None writes nothing (all processes but the first).
        step: step that the run continues from; rows of later steps are removed.
        tensorboard: whether to write events.
    """

    def __init__(self, run_dir: Path | None, step: int, tensorboard: bool) -> None:
        self.file = self.board = None
        if run_dir is None:
            return
        path = run_dir / "metrics.jsonl"
        rows = [row for row in _rows(path) if row["step"] <= step]
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = path.open("a")
        self.board = _summary_writer(run_dir / "tensorboard") if tensorboard else None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.file, self.board):
            if one is not None:
                one.close()

    def write(self, row: Mapping[str, float]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a file."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s: skipped an incomplete line", path)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:
        logger.info("no TensorBoard events: %s (pip install fastequi[log])", error)
        return None
    return SummaryWriter(str(folder))

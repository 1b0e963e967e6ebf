"""Speed-ups and the roofline as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.opbench import Row


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """speedup.png and roofline.png of the rows that were timed.

    Raises:
        SystemExit: matplotlib is missing (pip install fastequi[viz]).
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except Exception as error:
        raise SystemExit(f"--plot: needs matplotlib (pip install fastequi[viz]): {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    timed = [row for row in rows if row.refused is None]
    panels: dict[str, list[Row]] = {}
    for row in timed:
        panels.setdefault(_label(row), []).append(row)
    written = []
    for file, value, words in (
        ("speedup.png", "speedup", "times the base"),
        ("roofline.png", "of_floor", "of the bare memory traffic's speed"),
    ):
        shown = {
            label: [row for row in part if getattr(row, value) is not None and not row.partial]
            for label, part in panels.items()
        }
        shown = {label: part for label, part in shown.items() if part}
        if not shown:
            continue
        figure, axes = pyplot.subplots(
            len(shown), 1, figsize=(9, 1.1 + 1.6 * len(shown)), squeeze=False
        )
        for axis, (label, part) in zip(axes[:, 0], shown.items(), strict=True):
            names = [row.provider for row in part][::-1]
            values = [getattr(row, value) for row in part][::-1]
            ours = ["tab:orange" if name.startswith("ours") else "tab:gray" for name in names]
            bars = axis.barh(names, values, color=ours)
            axis.bar_label(bars, [f"{v:.2f}" for v in values], padding=3)
            axis.set_title(label, fontsize=9, loc="left")
            axis.margins(x=0.15)
        axes[-1, 0].set_xlabel(words)
        figure.tight_layout()
        figure.savefig(folder / file, dpi=70)
        pyplot.close(figure)
        written.append(folder / file)
    return written


def _label(row: Row) -> str:
    return f"{row.case} {row.mode}  " + " ".join(f"{k}={v}" for k, v in row.params.items())

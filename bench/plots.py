"""Speed-ups and the roofline as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    return [_speedups(pyplot, panels, folder), _roofline(pyplot, timed, folder)]


def _speedups(pyplot: Any, panels: Mapping[str, Sequence[Row]], folder: Path) -> Path:
    """A panel per case, mode and parameter set: times the base, and how much of R."""
    shown = {label: [row for row in part if not row.partial] for label, part in panels.items()}
    figure, axes = pyplot.subplots(
        len(shown), 1, figsize=(9, 1.1 + 1.6 * len(shown)), squeeze=False
    )
    for axis, (label, part) in zip(axes[:, 0], shown.items(), strict=True):
        names = [row.provider for row in part][::-1]
        values = [row.speedup or 0.0 for row in part][::-1]
        ours = ["tab:orange" if name.startswith("ours") else "tab:gray" for name in names]
        bars = axis.barh(names, values, color=ours)
        words = [f"{row.speedup:.2f}  ({100 * (row.of_triad or 0):.0f} % of R)" for row in part]
        axis.bar_label(bars, words[::-1], padding=3)
        axis.set_title(label, fontsize=9, loc="left")
        axis.margins(x=0.25)
    axes[-1, 0].set_xlabel("times the base")
    return _saved(pyplot, figure, folder / "speedup.png")


def _roofline(pyplot: Any, rows: Sequence[Row], folder: Path) -> Path:
    """Arithmetic over time against arithmetic over bytes, under what memory allows."""
    figure, axis = pyplot.subplots(figsize=(9, 6))
    points = [row for row in rows if row.gflops and row.gbps and not row.partial]
    streams = [row.gbps for row in rows if row.provider == "triad" and row.gbps]
    intensities = [(row.gflops or 0) / (row.gbps or 1) for row in points]
    if streams and points:
        ends = [min(intensities) / 2, max(intensities) * 2]
        reach = max(streams)
        axis.plot(ends, [reach * x for x in ends], "k--", label=f"R, triad: {reach:.0f} GB/s")
    markers = dict(zip(dict.fromkeys(row.case for row in points), "osv^D*PX", strict=False))
    for row, x in zip(points, intensities, strict=True):
        color = "tab:orange" if row.provider.startswith("ours") else "tab:gray"
        axis.plot(x, row.gflops, markers.get(row.case, "o"), color=color, alpha=0.7)
    for case, marker in markers.items():
        axis.plot([], [], marker, color="tab:orange", label=f"{case}, ours; peers gray")
    axis.set(xscale="log", yscale="log", xlabel="flops per byte", ylabel="GFLOP/s")
    axis.legend(fontsize=8)
    return _saved(pyplot, figure, folder / "roofline.png")


def _saved(pyplot: Any, figure: Any, file: Path) -> Path:
    figure.tight_layout()
    figure.savefig(file, dpi=70)
    pyplot.close(figure)
    return file


def _label(row: Row) -> str:
    return f"{row.case} {row.mode}  " + " ".join(f"{k}={v}" for k, v in row.params.items())

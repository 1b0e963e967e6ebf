"""What a scan found, as printed lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fastequi.data.scan_options import options
from fastequi.data.sources.encoded import (
    INVERTED_DICOM,
    INVERTED_TIFF,
    NO_DATA,
    NOT_FILLED,
    NPZ_ARRAY,
    OF_TYPE,
    counted,
    is_marked,
    unmarked,
)
from fastequi.data.sources.index import Index
from fastequi.data.sources.kinds import (
    DEEPER,
    DICOM_FRAME,
    FILLED_TIFF,
    MORE_BITS,
    MOST,
    NO_RGB,
    TIFF_PAGE,
    Kind,
    doubt_about_axes,
    tally,
)
from fastequi.data.sources.measured import Measured
from fastequi.data.sources.parts import file_of, part_named
from fastequi.data.sources.tiff_stacks import PAGES, PARTIAL

_NAMED = 10
_FEW = 3  # names of a kind that few images are of
_CHANNELS = 32  # that are printed
_TIFF = ("TIFF", PAGES, PARTIAL, FILLED_TIFF)
_MADE_OF = {  # what is read as .npy
    TIFF_PAGE: "TIFF, page by page",
    DICOM_FRAME: "DICOM, frame by frame",
    FILLED_TIFF: "TIFF",
    NPZ_ARRAY: "NPZ",
}
_SHOWN = {"least": 0.0, "0.1 %": 0.1, "median": 50.0, "99.9 %": 99.9, "largest": 100.0}
_CHUNK = 1 << 20  # sizes that are compared at once


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        index: to be written beside the images, or as it was written.
        formats: {name as of a header's format: images}.
    """

    index: Index
    formats: Mapping[str, int]

    @cached_property
    def duplicates(self) -> NDArray[np.int64]:
        """[k, 2] places of images and of the first one with the same bytes before each."""
        digests = self.index.columns.sha256
        if digests is None or not len(digests):
            return np.zeros((0, 2), np.int64)
        order = np.argsort(digests, kind="stable")
        ranked = digests[order]
        begins = np.r_[True, ranked[1:] != ranked[:-1]]
        later = np.flatnonzero(~begins & (ranked != 0))
        firsts = np.flatnonzero(begins)
        first = order[firsts[np.searchsorted(firsts, later, "right") - 1]]
        pairs = np.stack([order[later], first], 1)
        return pairs[np.argsort(pairs[:, 0])]

    def _read_from(self) -> list[tuple[str, int]]:
        """The formats of the files with the images of each, the most frequent first: pages, frames
        and arrays that were chosen are read as .npy."""
        found = Counter[str]()
        for form, count in self.formats.items():
            by_mark = (name for mark, name in _MADE_OF.items() if is_marked(form, mark))
            found[next(by_mark, unmarked(form))] += count
        return found.most_common()

    def _arrays(self) -> list[str]:
        """Which arrays of files are the images, where a scan was told."""
        words = part_named(self.index.part).words
        return [f"  read as {words}"] if words else []

    def summary(self) -> str:
        """The result as a few printed lines."""
        columns, left_out = self.index.columns, self.index.left_out
        lines = [f"{len(columns)} images, {_size(self._bytes())}"]
        lines[0] += f"; {len(left_out)} left out"
        if len(columns):
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._read_from())
            lines += [f"formats     {kinds}"]
            lines += self._arrays()
            lines += _pages_left(self.formats, self.index.pages)
            lines += _inverted(self.formats, self.index.pages == "images")
            lines += _no_data(self.formats, part_named(self.index.part).nodata)
            lines += _as_floats(self.formats)
            if deeper := tally(columns.kinds).get(DEEPER, 0):
                lines.append(f"  {deeper} are of {MORE_BITS}: runs make 8-bit RGB of them")
            smallest, largest = _extremes(columns.sizes)
            for what, i in (("smallest", smallest), ("largest", largest)):
                height, width = columns.sizes[i].tolist()
                lines.append(f"{what:12s}{width} × {height}  {columns.names[i]}")
        for code, measured in sorted(self.index.measured.items()):
            kind = Kind.of(code)
            assert kind is not None, "only those of known kinds are measured"
            given = options(kind, measured, self.index.measured, columns.kinds)
            head = f"values      {kind}: {measured.images} images{self._few(code)}"
            said = doubt_about_axes(kind, int(columns.sizes.min(initial=MOST)), self.formats)
            lines += [head, *_values(kind, measured, said, given)]
            lines += [] if part_named(self.index.part).nodata else _apart(kind, measured)
        same, names = self.duplicates, columns.names
        pairs = [f"{names[a]} = {names[b]}" for a, b in same[:_NAMED].tolist()]
        bad = [f"{name} ({why})" for name, why in islice(left_out.items(), _NAMED)]
        lines.append(f"duplicates  {_some(pairs, len(same))}")
        lines.append(f"passed over {counted(self.index.passed_over) or 0}")
        lines.append(f"left out    {_some(bad, len(left_out))}")
        # a name that is no UTF-8 can be printed nowhere as it is
        return "\n".join(lines).encode(errors="backslashreplace").decode()

    def _bytes(self) -> int:
        """Of all files; those of several pages once."""
        columns = self.index.columns
        if self.index.pages != "images":
            return int(columns.bytes.sum())
        files = zip(map(file_of, columns.names), columns.bytes.tolist(), strict=True)
        return sum(dict(files).values())

    def _few(self, code: int) -> str:
        """The first names of the images of a kind that fewer than half of them are of."""
        codes, names = self.index.columns.kinds, self.index.columns.names
        if codes is None:
            return ""
        those = np.flatnonzero(codes % NO_RGB == code)
        if 2 * len(those) >= len(codes) or not len(those):
            return ""
        more = ", ..." if len(those) > _FEW else ""
        return f" ({', '.join(names[int(i)] for i in those[:_FEW])}{more})"


def _marked(formats: Mapping[str, int], mark: str) -> int:
    """How many images are of a format, or have it for a mark."""
    return sum(count for form, count in formats.items() if is_marked(form, mark))


def _pages_left(formats: Mapping[str, int], pages: str) -> list[str]:
    """What is not taken of files with several pages, and how it would be."""
    lines = []
    if _marked(formats, PAGES):
        first = "the first plane of depth and time, with all its channels"
        if pages == "channels":
            lines.append(f"  of OME-TIFF and ImageJ {first}; --pages images takes all planes")
        else:
            lines += [
                f"  the first page of each, of OME-TIFF and ImageJ {first};",
                "  --pages images takes all, --pages channels those of others as channels",
            ]
    if _marked(formats, PARTIAL):
        lines.append(f"  {PARTIAL}: the first page; --pages images takes each that it has")
    return lines


def _inverted(formats: Mapping[str, int], by_page: bool) -> list[str]:
    """Of images in which 0 is white, how many there are and what becomes of their values."""
    lines = []
    for name, forms, within, numbers in (
        (INVERTED_TIFF, _TIFF, "all that their type holds", "those of the files"),
        (INVERTED_DICOM, ("DICOM",), "the bits stored", "the modality's (Hounsfield units, say)"),
    ):
        if many := _marked(formats, name):
            form = forms[0]
            total = sum(n for f, n in formats.items() if is_marked(f, name, *forms))
            what = f"of {total} {form} {'file is' if total == 1 else 'files are'}"
            if by_page:
                what = "pages of TIFF are" if form == "TIFF" else "frames of DICOM are"
            lines.append(
                f"  {many} {what} {name.split()[0]}: inverted within {within}, "
                f"so their values are not {numbers}"
            )
    return lines


def _no_data(formats: Mapping[str, int], nodata: str) -> list[str]:
    """What is not filled of files with a value that stands for no data, and how it would be."""
    many = _marked(formats, NOT_FILLED if nodata else NO_DATA)
    if not many:
        return []
    if nodata:
        kinds = "TIFF with a palette, YCbCr, CMYK, L*a*b* or fewer than 8 bits, or no TIFF"
        return [f"  {many} {kinds}, are not filled"]
    return [
        f"  {many} name a value that stands for no data ({NO_DATA}): it is measured and used as",
        "  any other; --nodata file puts the least value of the channel in its place",
    ]


def _as_floats(formats: Mapping[str, int]) -> list[str]:
    """Which types of values are read as float32, and what that rounds."""
    found = Counter[str]()
    for form, count in formats.items():
        for mark in form.split(", "):
            if mark.startswith(OF_TYPE):
                found[mark.removeprefix(OF_TYPE)] += count
    lines = []
    for name, count in found.most_common():
        are, rounded = "image is" if count == 1 else "images are", ""
        if name.endswith(("int32", "int64")):
            rounded = "; whole numbers beyond 2^24 are rounded"
        elif name == "float64":
            rounded = "; seven digits of a number are kept"
        lines.append(f"  {count} {are} of {name}, read as float32{rounded}")
    return lines


def _values(kind: Kind, measured: Measured, doubt: str, given: list[str]) -> list[str]:
    """The options of a run of the images of one kind, and what was measured of them, as printed
    lines."""
    lines = list(given)
    if kind.channels in (1, 3) and kind.depth == "uint8":
        return lines
    if doubt:
        lines.append(f"  {doubt}")
    if kind.depth == "float32":
        lines.append("  of floats, all but mean and std are nearer to 0 by up to a 512th")
    lines.append(f"  {'channel':>7s}{''.join(f' {name:>9s}' for name in (*_SHOWN, 'mean', 'std'))}")
    for c in range(min(kind.channels, _CHANNELS)):
        ends = [measured.percentiles[p][c] for p in _SHOWN.values()]
        numbers = (*ends, measured.mean[c], measured.std[c])
        lines.append(f"  {c:7d}{''.join(f' {plain(number):>9s}' for number in numbers)}")
    if kind.channels > _CHANNELS:
        lines.append(f"  and {kind.channels - _CHANNELS} more")
    return lines


def _apart(kind: Kind, measured: Measured) -> list[str]:
    """Channels with an end that many values have, and that is farther from the next percentile than
    the others are from each other: it is likely to stand for no data."""
    found: dict[int, float] = {}
    low, *_, high = sorted(p for p in measured.percentiles if p not in (0.0, 100.0))
    for c in range(kind.channels):
        values = sorted({each[c] for each in measured.percentiles.values()})
        if len(values) < _FEW:
            continue
        least, after, before, largest = *values[:2], *values[-2:]
        if measured.percentiles[low][c] == least and after - least > largest - after:
            found[c] = least
        elif measured.percentiles[high][c] == largest and largest - before > before - least:
            found[c] = largest
    if not found:
        return []
    c, value = next(iter(found.items()))
    near = "near " * (kind.depth == "float32")
    more = f" (and in {len(found) - 1} more)" if len(found) > 1 else ""
    return [
        f"  {near}{plain(value)} in channel {c}{more} stands apart from all others: if it means no",
        "  data, --nodata NUMBER fills it (--nodata file where GDAL_NODATA says it)",
    ]


def plain(number: float) -> str:
    """A value as people write it: 65535, 33563, 12.35; with an exponent from 1e7 and below 1e-4."""
    return f"{number:.0f}" if 1e3 <= abs(number) < 1e7 else f"{number:.4g}"


def _size(count: int) -> str:
    """Bytes in the unit that fits: "491 kB", "12.3 GB"."""
    unit, size = "kB", count / 1e3
    for larger in ("MB", "GB", "TB"):
        if size < 999.5:
            break
        unit, size = larger, size / 1e3
    return f"{size:.3g} {unit}"


def _extremes(sizes: NDArray[np.int32]) -> tuple[int, int]:
    """Places of the images with the fewest and the most pixels, the first of each."""
    least, most, small, large = 0, 0, -1, -1
    for start in range(0, len(sizes), _CHUNK):
        pixels = sizes[start : start + _CHUNK].astype(np.int64).prod(1)
        i, j = int(pixels.argmin()), int(pixels.argmax())
        if small < 0 or pixels[i] < small:
            least, small = start + i, int(pixels[i])
        if pixels[j] > large:
            most, large = start + j, int(pixels[j])
    return least, most


def _some(lines: list[str], count: int) -> str:
    """The number and the first lines."""
    shown = "".join(f"\n  {line}" for line in lines)
    return f"{count}{shown}" + ("\n  ..." if count > len(lines) else "")

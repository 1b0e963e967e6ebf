"""What a run takes of the images of one place: those that can be read and are of its kind.

What is left out is named and counted; more than a given share of it is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from fastequi.data.sources.columns import Rows
from fastequi.data.sources.encoded import counted, format_of, is_marked
from fastequi.data.sources.extras import readable_now
from fastequi.data.sources.headers import headers_of
from fastequi.data.sources.images import Indexed, Region, Source
from fastequi.data.sources.index import Index
from fastequi.data.sources.listing import Listing
from fastequi.data.sources.made_texts import Joined, Numbered
from fastequi.data.sources.parts import name_of, part_named
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.texts import Texts, taken
from fastequi.data.sources.tiff_stacks import PAGES, PARTIAL
from fastequi.data.sources.wanted import Wanted, smallest

logger = logging.getLogger(__name__)

_LOOKED_AT = 1000  # names
_NAMED, _ALIKE = 10, 3
_OF_PAGES = (
    "of a TIFF with several pages the first is the image, of OME-TIFF and ImageJ the first plane "
    "with all its channels; fastequi data scan PLACE --pages images takes all, --pages channels "
    "those of other TIFF as channels"
)


def headers_for(listing: Listing, wanted: Wanted) -> Index:
    """Of images that no scan has seen."""
    found = headers_of(listing.of_part(part_named(wanted.part)))
    return replace(found, part=wanted.part)


def differs(wanted: Wanted, names: Iterable[str]) -> bool:
    """Whether a run took another part of one of these files than a name says."""
    part = part_named(wanted.part)
    return bool(wanted.part) and any(name_of(name, part) != name for name in names)


def source_of(
    what: str,
    root: Path | str,
    file: Path,
    known: Index,
    region: Region,
    tolerate: float,
    patterns: Patterns,
    wanted: Wanted,
    count: int | None = None,
) -> Source:
    """A source from an index; checks how much is left out and logs it.

    Args:
        count: images before patterns chose some of them; None: those of the index.
    """
    count = len(known.rows) if count is None else count
    tolerance = replace(wanted.tolerance, share=tolerate)
    known = known.only(patterns)
    if known.passed_over:
        logger.info("%s: passed over %s", what, counted(known.passed_over))
    if patterns:
        logger.info("%s: %d of %d images by %s", what, len(known.rows), count, patterns)
    again = readable_now(known.left_out) if known.decoded else ""
    if again:
        again = f"; {again}: fastequi data scan {what.partition(': ')[2]} reads them again"
    kinds = known.columns.kinds
    known, unfit = _fit(known, wanted)
    of_pages = any(is_marked(form, PAGES, PARTIAL) for form in known.formats)
    if wanted.begun and unfit:
        reasons = "; ".join(sorted(set(wanted.unfit(kinds).values())))
        logger.info(
            "%s: %d images of another kind than the run's are not used (%s)",
            *(what, unfit, reasons),
        )
        unfit = 0
    bad, total = len(known.left_out), len(known.left_out) + len(known.rows)
    if bad:
        how = f" as data.channels={wanted.channels} asks" * bool(unfit)
        reasons = _by_reason(known.left_out)
        failed = f"{bad} of {total} images in {root} cannot be read{how}: {reasons}"
        if not known.rows or bad > tolerance.allowed(total):
            ways = f"; --exclude leaves images out, {tolerance.option} a share of all"
            hint = ways * bool(known.rows and tolerance.option)
            hint += f"; {_OF_PAGES}" * of_pages
            if wanted.part != known.part and (wanted.part or wanted.begun):
                options = part_named(wanted.part).options
                hint += f"; fastequi data scan PLACE {options} takes images as the run did"
            raise ValueError(f"{what.partition(':')[0]}: {failed}{again or hint}")
        if unfit or again or not known.decoded:
            logger.warning("%s; left out%s", failed, again)
    if of_pages and known.pages != "channels":  # which a scan was asked for
        logger.warning("%s: %s", what, _OF_PAGES)
    if known.decoded:
        counts = len(known.rows), file, known.when, bad
        logger.info("%d images by the index %s, scanned %s; %d left out", *counts)
    columns, archives = known.columns, known.archives
    names = columns.names
    paths: Texts = Joined(str(root), names)
    if columns.of is not None:
        paths = Numbered([os.path.join(root, archive.name) for archive in archives], columns.of)
    formats = known.formats or tuple({format_of(name) for name in names})
    wanted.tell(what, columns.kinds, columns.sizes, formats, known.measured)
    if known.part != wanted.part and differs(wanted, islice(names, _LOOKED_AT)):
        options = part_named(wanted.part).options
        how = part_named(known.part).words or "files as they are"
        logger.warning("%s: read as its index says, %s; a run had %s", what, how, options)
    whole = Indexed(file, known.fingerprint, names, columns.sizes) if known.fingerprint else None
    more = columns.spans, formats, whole
    return Source(
        *(paths, names, columns.sizes, region, *more),
        kinds=columns.kinds,
        measured=known.measured,
        part=known.part,
        tolerance=tolerance,
    )


def _by_reason(left_out: Mapping[str, str]) -> str:
    """Some of the names with their reasons; of many with the same reason the first and a count."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    each = []
    for reason, those in names.items():
        if len(those) > _ALIKE:
            each.append(f"{those[0]} and {len(those) - 1} more ({reason})")
        else:
            each += [f"{name} ({reason})" for name in those]
    return ", ".join(each[:_NAMED]) + (", ..." if len(each) > _NAMED else "")


def _fit(known: Index, wanted: Wanted) -> tuple[Index, int]:
    """The images that a run can take; the others are left out. And their number."""
    columns = known.columns
    if not len(columns):  # why none of them is read says more
        return known, 0
    reasons = wanted.unfit(columns.kinds, smallest(columns.sizes), known.formats)
    if not reasons or columns.kinds is None:
        return known, 0
    are = np.isin(columns.kinds, np.array(list(reasons), np.uint16))
    places = np.flatnonzero(are)
    each = zip(taken(columns.names, places), columns.kinds[places].tolist(), strict=True)
    named = {} if wanted.begun and not are.all() else {name: reasons[code] for name, code in each}
    left_out = {**known.left_out, **named}
    rows = Rows(columns.take(np.flatnonzero(~are)))
    return replace(known, rows=rows, left_out=left_out, fingerprint=""), len(places)

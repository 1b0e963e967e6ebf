"""Scans a set into its index: with little memory, resumable after a kill, or in parts.

Every image is a line of a journal once it has been decoded (`fastequi.data.sources.journal`); the
same command continues it. The index is merged from the journal, or from those of many machines that
see the same files.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fastequi.data.scan import Show, scanned
from fastequi.data.scan_report import Scan
from fastequi.data.sources.journal import End, Journal
from fastequi.data.sources.listing import Listing
from fastequi.data.sources.merge import merge

logger = logging.getLogger(__name__)


def scan_into(file: Path, listing: Listing, end: End, num_threads: int, show: Show) -> int:
    """Scans a listing into a journal, or continues one.

    Args:
        file: the journal.
        listing: the images; see :func:`fastequi.data.scan.scan` for the rest.
        end: what the journal ends with.

    Returns:
        The number of images that could be decoded.

    Raises:
        BlockingIOError: another process scans the same part.
        ImportError: DALI is not installed.
    """
    with Journal(file) as journal:
        now = ((name, listing.state(i)) for i, name in enumerate(listing.names))
        done = journal.resume(now)
        if done:
            logger.info("continuing: %d images were scanned before", done)
            show(done, len(listing))
        for part, values in scanned(listing, num_threads, show, done):
            journal.add(part, values)
        journal.finish(end)
        return journal.images


def merged(index: Path, journals: list[Path]) -> Scan:
    """The index of journals; see :func:`fastequi.data.sources.merge.merge`."""
    return Scan(*merge(index, journals))

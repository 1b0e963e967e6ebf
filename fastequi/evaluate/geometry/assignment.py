"""The assignment problem: each row a column of its own, so that the sum of costs is least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assignment(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] the column of every row, by shortest augmenting paths in O(n² m).

    (The Hungarian method as Jonker and Volgenant, Computing 38, 1987, order it: each row in turn
    is joined by the cheapest path of alternating edges, Dijkstra's on costs reduced by the
    potentials of rows and columns.)

    Args:
        cost: [n, m] finite, n <= m.

    Raises:
        ValueError: more rows than columns, or a cost that is not finite.
    """
    n, m = cost.shape
    if n > m or not np.isfinite(cost).all():
        raise ValueError(f"cost: expected finite [n, m] with n <= m, got [{n}, {m}]")
    row_of = np.full(m, -1)
    of_row, of_column = np.zeros(n), np.zeros(m)  # potentials
    for start in range(n):
        least = np.full(m, np.inf)  # of paths from `start` to each column
        before = np.full(m, -1)  # the column before it on that path
        done = np.zeros(m, bool)
        row, column, reached = start, -1, 0.0
        while True:
            through = reached + cost[row] - of_row[row] - of_column
            shorter = ~done & (through < least)
            least[shorter], before[shorter] = through[shorter], column
            column = int(np.where(done, np.inf, least).argmin())
            reached, done[column] = least[column], True
            if row_of[column] < 0:
                break
            row = row_of[column]
        slack = reached - least[done]
        of_column[done] -= slack
        joined = row_of[done]
        of_row[joined[joined >= 0]] += slack[joined >= 0]
        of_row[start] += reached
        while column >= 0:  # turn the path around
            previous = before[column]
            row_of[column] = start if previous < 0 else row_of[previous]
            column = previous
    found = np.empty(n, np.int64)
    columns = np.flatnonzero(row_of >= 0)
    found[row_of[columns]] = columns
    return found

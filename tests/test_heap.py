"""Freed memory stays with the process: measured by the page faults of a second allocation."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastequi.runtime.heap import keep_heap

CODE = """
import resource, sys
from fastequi.runtime.heap import keep_heap
if sys.argv[1] == "kept":
    assert keep_heap()
import torch
for _ in range(40):  # aligned blocks of one size need some rounds to settle
    torch.zeros(12 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.zeros(12 << 20)  # 48 MB, 12,288 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not keep_heap(), reason="no glibc")
def test_memory_is_faulted_in_once():
    root = Path(__file__).parent.parent
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", CODE, how],
                cwd=root, capture_output=True, text=True, check=True,
            ).stdout
        )
        for how in ("fresh", "kept")
    }  # fmt: skip
    assert faults["fresh"] > 40_000
    assert faults["kept"] < faults["fresh"] / 3

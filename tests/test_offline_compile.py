"""The kernels as machine code, without a GPU: no spills; all but one are slow.

The counts are printed (pytest -s) and may not exceed what support/launches.py declares.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from tests.support.launches import cases
from tests.support.once import once

ROOT = Path(__file__).parent.parent
FAST = ("packed, rgb",)  # a compilation takes two seconds and more
CEILINGS = [
    pytest.param(case, marks=() if case.name in FAST else pytest.mark.slow, id=case.name)
    for case in cases()
    if case.ceilings
]


def compiled_by(factory, *options):
    """Counts by launch and architecture, printed; made once for all workers."""

    def make(folder):
        run = subprocess.run(
            [sys.executable, "-m", "tests.support.sass", folder, *options],
            env={
                "PYTHONPATH": str(ROOT),
                "PATH": "/usr/bin:/bin",
                "TRITON_CACHE_DIR": str(folder),
            },
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        (folder / "counts.json").write_text(run.stdout.splitlines()[-1])

    folder = once(factory, "cubins " + " and ".join(options), make)
    rows = json.loads((folder / "counts.json").read_text())
    for name, row in rows.items():
        print(triton.__version__, name, row)
    return rows


def assert_no_spills(rows, architectures):
    assert {name.rsplit("_", 1)[1] for name in rows} == architectures
    assert all(row["instructions"] > 50 for row in rows.values())  # disassemblies were really read
    spilled = {name: row for name, row in rows.items() if row["local"] or row["stack"]}
    assert not spilled
    assert all(row["registers"] <= 255 for row in rows.values())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compiled_by(tmp_path_factory, *FAST)


def test_the_packed_kernel_does_not_spill(compiled):
    assert len(compiled) == len(FAST)
    assert_no_spills(compiled, {"90"})


@pytest.fixture(scope="module")
def all_compiled(tmp_path_factory):
    return compiled_by(tmp_path_factory, "all")


@pytest.mark.slow  # 570 compilations
def test_no_launch_spills_on_any_architecture(all_compiled):
    assert_no_spills(all_compiled, {"80", "90", "100"})


@pytest.mark.parametrize("case", CEILINGS)
def test_instructions_per_pixel_only_go_down(request, case):
    version = "_".join(triton.__version__.split(".")[:2])
    ceiling = getattr(case.ceilings, f"triton_{version}", None)
    if ceiling is None:
        pytest.skip(f"no ceilings for Triton {triton.__version__}")
    rows = request.getfixturevalue("compiled" if case.name in FAST else "all_compiled")
    counted = rows[f"{case.name} sm_90"]["per_pixel"]
    assert ceiling / 2 < counted <= ceiling  # half of it would mean that another loop was counted


def test_every_kernel_is_declared():
    """In a section of support/launches.py, so that no kernel is left out above."""
    declared = {case.kernel.fn.__name__ for case in cases() if not case.slow}
    launched = set()
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                assert [ast.unparse(d) for d in node.decorator_list] == ["triton.jit"], node.name
                launched.add(node.name)
    assert declared == launched

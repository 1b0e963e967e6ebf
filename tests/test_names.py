"""One thing bears one name everywhere, and what another file uses is public."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {
    *("__init__", "arguments", "checks", "distributed", "normalise", "reduction"),
    *("sigmas", "view_pairs"),
}
OPS = sorted({path.stem for path in ROOT.glob("fastequi/functional/*.py")} - SHARED)
OWN = ("fastequi", "bench")


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_called_alike_in_kernels_and_tests(name):
    assert (ROOT / "kernels" / f"{name}.py").is_file()
    assert (ROOT / "tests" / f"test_{name}.py").is_file()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("fastequi/losses/*.py")), ids=lambda path: path.stem
)
def test_a_loss_is_called_as_its_function(path):
    assert path.stem in {"__init__", *OPS}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_file_uses_what_is_private_to_another():
    files = [
        *ROOT.glob("fastequi/**/*.py"),
        *ROOT.glob("kernels/*.py"),
        *ROOT.glob("bench/**/*.py"),
    ]
    found = []
    for path in files:
        tree, modules = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OWN:
                found += [(path.name, alias.name) for alias in node.names if _private(alias.name)]
                modules |= {alias.asname or alias.name for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _private(node.attr):
                owner = ast.unparse(node.value)
                found += [(path.name, f"{owner}.{node.attr}")] if owner in modules else []
    assert not found

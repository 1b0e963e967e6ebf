"""Who may import whom, read from the ASTs (the picture in the README's map)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# part -> the parts of fastequi it may import; what a command runs may reach everything
ALLOWED = {
    "kernels": {"kernels"},
    "boxes": set(),
    "checks": {"kernels"},
    "distributed": set(),
    "functional": {"kernels", "checks", "distributed", "functional"},
    "philox": set(),
    "places": set(),
    "devices": set(),
    "paths": {"philox", "kernels.constants"},
    "losses": {"functional", "losses", "distributed"},
    "models": {"models", "versions", "kernels.toolchain"},  # the cache folder
    "data": {"paths", "philox", "boxes", "manifest", "places", "data"},
    "methods": {
        "optim",
        "losses",
        "models",
        "paths",
        "functional",
        "distributed",
        "data.batch",
        "methods",
    },
    # a run is judged as its config and checkpoint say: evaluate stands above build, below train
    "evaluate": {
        *("models", "methods", "data", "paths", "philox", "functional", "evaluate"),
        *("build", "config", "checkpoint", "devices", "places"),
    },
    "config": {"paths", "data.augment", "limits", "devices"},
    "limits": {"config"},  # for its type alone
    "recipes": {"config", "data.augment"},
    "build": {"config", "methods", "models", "data.batch"},
    "optim": set(),
    "heap": set(),
    "manifest": set(),
    "metrics": {"manifest"},
    "guard": {"scale"},
    "scale": set(),
    "lock": set(),
    "preempt": set(),
    "interrupts": {"preempt"},
    "streams": set(),
    "processes": {"models", "preempt"},
    "sharded": set(),
    "versions": set(),
    "checkpoint": {"optim", "manifest", "processes", "sharded", "versions"},
    "progress": set(),
    "pace": set(),
    "train": {
        *("build", "config", "methods", "data", "optim", "checkpoint", "progress", "pace"),
        *("guard", "lock", "manifest", "metrics", "preempt", "processes", "scale"),
        "doctor.machine",
        "evaluate.online",  # what a run looks at on its way
    },
}
UNBOUND = {
    *("__init__", "cli", "commands", "evaluations", "demo", "doctor", "dryrun", "results"),
    *("judge_rotnet", "judge_equivariance", "judge_classes", "judge_reconstruct", "embed"),
    *("visualize", "report", "slurm", "vit_options", "chosen"),
}

# a heavy dependency is imported in one place
HOME = {
    "nvidia": {"fastequi/data/dali.py"},
    "xformers": {"fastequi/models/attention.py"},
    "flash_attn_interface": {"fastequi/models/attention.py"},
    "submitit": {"fastequi/slurm.py"},
    "tyro": {"fastequi/commands.py", "fastequi/evaluations.py", "fastequi/chosen.py"},
}


def _files() -> list[Path]:
    found = [*ROOT.glob("fastequi/*.py"), *ROOT.glob("kernels/*.py")]
    for part in ("functional", "losses", "models", "methods", "data", "evaluate"):
        found += ROOT.glob(f"fastequi/{part}/**/*.py")
    return sorted(found)


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "kernels":
        return "kernels"
    return relative.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_map(path: Path) -> None:
    part = _part(path)
    for name in _imports(path):
        top = name.split(".")[0]
        assert top not in {"bench", "tests", "ci", "kernels"}, f"{path} imports {name}"
        if top in HOME:
            assert str(path.relative_to(ROOT)) in HOME[top], f"{path} imports {name}"
        if top == "fastequi" and part not in UNBOUND:
            inside = name.removeprefix("fastequi.")
            allowed = any(
                inside == target or inside.startswith(f"{target}.") for target in ALLOWED[part]
            )
            assert allowed, f"{part} may not import {name} ({path})"


def test_nothing_loads_a_pickle() -> None:
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [k for k in node.keywords if k.arg == "weights_only"]
                values = [ast.unparse(k.value) for k in safe]
                assert values == ["True"], f"{path}:{node.lineno}"
        assert not {"pickle", "dill", "cloudpickle"} & set(_imports(path)), path

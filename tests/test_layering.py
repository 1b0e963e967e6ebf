"""Who may import whom, read from the ASTs (the picture in the README's map)."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# room -> the rooms and modules of fastequi that it may import, itself aside
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "functional": {"kernels"},
    "losses": {"functional", "kernels.precision"},
    "models": {
        *("functional.arguments", "versions", "choices", "kernels.graphs"),
        *("kernels.short_attention", "kernels.gelu", "kernels.overlap"),
    },
    "data.sources": {"atomic", "data.channels", "kernels.toolchain"},  # the cache folder
    "data.channels": {"functional.fused_views"},  # how wide a range may be
    "data.config": {"data.channels"},
    "data.scenes": {"data.pillow", "data.sources"},
    "data.views": {"data.config", "data.sources.images", "philox"},
    "data": {
        "choices",
        "versions",
        "data.channels",
        "data.config",
        "data.sources",
        "data.views",
        "functional",
        "paths",
        "philox",
    },
    "methods": {
        *("losses", "models", "functional", "data.views.batch", "paths", "optim"),
        "kernels.graphs",
    },
    "runtime": {"models", "atomic", "optim", "sharded", "versions"},
    # networks of others become ours, and a run starts from them: above build, below train
    "weights": {
        *("build", "config", "limits", "data.config", "methods", "models", "runtime"),
        "functional.arguments",
    },
    # a run is evaluated as its config and checkpoint say: above build, below train
    "evaluate": {
        *("data", "functional", "methods", "models", "runtime", "weights"),
        *("atomic", "build", "config", "paths", "philox", "evaluate.geometry.kinds"),
    },
    "evaluate.geometry": {
        *("data", "evaluate", "functional", "methods", "models", "runtime", "weights"),
        *("atomic", "build", "config", "paths", "philox", "kernels.toolchain"),
    },
    "evaluate.geometry.kinds": set(),
    # above report, whose figures stand in the model card
    "export": {
        *("evaluate", "report", "weights", "models", "atomic", "versions"),
        *("data.channels", "data.pillow", "data.sources", "functional.normalise"),
        *("runtime.checkpoint", "runtime.progress"),
    },
    "report": {
        *("evaluate", "weights", "data", "functional", "methods", "models"),
        *("build", "paths", "philox", "runtime.progress"),
    },
    "cli": {"*"},
    "__main__": {"cli"},
    # the modules beside the rooms
    "atomic": set(),
    "choices": {"atomic", "kernels.toolchain"},  # the cache folder
    "build": {"config", "data.views.batch", "methods", "models", "optim"},
    "config": {"config_json", "data.config", "limits", "paths", "runtime.devices"},
    "config_json": {"data.channels", "data.config"},
    "freezing": set(),
    "limits": {"config", "data.channels"},  # of config its type alone
    "loop": {
        *("config", "data", "evaluate.online", "freezing", "methods", "optim"),
        *("runtime", "sharded"),
    },
    "muon": {"functional.arguments", "sharded"},
    "optim": {"muon", "sharded"},
    "paths": {"functional.checks", "functional.arguments", "kernels.constants", "philox"},
    "philox": set(),
    "recipes": {"config", "data.config"},
    "resuming": {"config", "config_json", "data.views_choice", "runtime"},
    "sharded": set(),
    "train": {
        *("atomic", "build", "config", "data", "loop", "methods", "optim", "resuming"),
        *("runtime", "sharded", "weights", "versions"),
        "models.lora",  # what a run writes at the end is merged
        "evaluate.online",  # the probes of a run that goes on
    },
    "versions": set(),
    "__init__": {"export.pretrained", "functional", "losses", "paths"},
}

# a heavy dependency is imported in one place
HOME = {
    "nvidia": {"fastequi/data/decode.py"},
    "xformers": {"fastequi/models/attention.py"},
    "flash_attn_interface": {"fastequi/models/attention.py"},
    "submitit": {"fastequi/runtime/slurm.py"},
    "fsspec": {
        "fastequi/data/sources/http_ranges.py",
        "fastequi/data/sources/remote.py",
    },
    "aiohttp": {"fastequi/data/sources/remote.py"},
    "tifffile": {"fastequi/data/sources/tiff.py"},
    "pydicom": {"fastequi/data/sources/dicom.py"},
    "onnx": {"fastequi/export/onnx.py"},
    "onnxruntime": {"fastequi/export/onnx.py"},
    "scipy": {"fastequi/evaluate/geometry/jhmdb.py"},
    "tyro": {
        "fastequi/cli/all_evaluations.py",
        "fastequi/cli/commands.py",
        "fastequi/cli/dense.py",
        "fastequi/cli/evaluations.py",
        "fastequi/cli/geometry.py",
        "fastequi/cli/image_options.py",
        "fastequi/cli/parsing.py",
        "fastequi/cli/pretraining.py",
    },
}


def _files() -> list[Path]:
    own = [path for path in ROOT.glob("fastequi/**/*.py") if "kernels" not in path.parts]
    return sorted([*own, *ROOT.glob("kernels/*.py")])


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names = []
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _room(path: Path) -> str:
    """Of fastequi/data/sources/index.py "data.sources", of fastequi/train.py "train".

    A module of a folder that stands in ALLOWED itself is a room of its own: "data.config".
    """
    *folders, name = path.relative_to(ROOT).with_suffix("").parts
    if folders[0] == "kernels":
        return "kernels"
    own = ".".join([*folders[1:], name])
    return own if own in ALLOWED else ".".join(folders[1:])


def _inside(name: str, room: str) -> bool:
    return room == "*" or name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_map(path: Path) -> None:
    room = _room(path)
    for name in _imports(path):
        top, _, inside = name.partition(".")
        assert top not in {"bench", "tests", "ci", "kernels"}, f"{path} imports {name}"
        if top in HOME:
            assert str(path.relative_to(ROOT)) in HOME[top], f"{path} imports {name}"
        if top == "fastequi" and inside != "__version__":
            allowed = {room, *ALLOWED[room]}
            assert any(_inside(inside, other) for other in allowed), f"{path} may not import {name}"


def test_no_two_rooms_import_each_other() -> None:
    above: dict[str, set[str]] = {}
    rooms = {_room(path) for path in _files()}
    for path in _files():
        for name in _imports(path):
            if not name.startswith("fastequi."):
                continue
            inside = name.removeprefix("fastequi.")
            within = [room for room in rooms if _inside(inside, room)]
            if within:
                above.setdefault(_room(path), set()).add(max(within, key=len))
    reached = {room: set(others) - {room} for room, others in above.items()}
    for _ in rooms:
        for others in reached.values():
            others |= {far for near in list(others) for far in reached.get(near, ())}
    circles = sorted(room for room, others in reached.items() if room in others)
    assert circles == ["config", "limits"], circles  # limits knows config's type alone


def test_every_room_says_what_belongs_there() -> None:
    for folder in {path.parent for path in _files() if path.parent.name != "kernels"}:
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert said, folder
        if folder.name != "fastequi":
            assert said.count("\n") == 0, f"{folder}/__init__.py: expected one sentence"


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("data/views/__init__.py", "methods/tir.py"),  # where v2 is made
        ("losses/__init__.py", "kernels/README.md"),
        ("functional/__init__.py", "kernels/README.md"),
        ("evaluate/baselines.py", "evaluate/pair_scores.py"),
        ("sharded.py", "runtime/checkpoint.py"),
        ("atomic.py", "runtime/checkpoint.py"),
    ],
)
def test_a_file_that_one_may_take_for_another_names_it(file: str, names: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / "fastequi" / file).read_text()))
    assert said
    dotted = names.removesuffix(".py").replace("/", ".")
    assert names in said.splitlines()[0] or dotted in said.splitlines()[0], file
    assert (ROOT / "fastequi" / names).is_file()


def test_no_test_file_imports_another() -> None:
    """What two of them use lies in tests/support."""
    own = sorted((ROOT / "tests").rglob("*.py"))
    for path in own:
        for name in _imports(path):
            last = name.removeprefix("tests.").split(".")[0]
            assert not last.startswith(("test_", "conftest")), f"{path} imports {name}"


def test_scripts_name_test_files_that_exist() -> None:
    for script in sorted((ROOT / "ci").glob("*.sh")):
        for name in re.findall(r"tests/\w+\.py", script.read_text()):
            assert (ROOT / name).is_file(), f"{script.name}: {name}"


def _is_torch_load(function: ast.expr) -> bool:
    named = isinstance(function, ast.Attribute) and function.attr == "load"
    return named and ast.unparse(function) == "torch.load"


def test_nothing_loads_a_pickle() -> None:
    for path in _files():
        for node in _nodes(path):
            if isinstance(node, ast.Call) and _is_torch_load(node.func):
                safe = [k for k in node.keywords if k.arg == "weights_only"]
                values = [ast.unparse(k.value) for k in safe]
                assert values == ["True"], f"{path}:{node.lineno}"
        assert not {"pickle", "dill", "cloudpickle"} & set(_imports(path)), path

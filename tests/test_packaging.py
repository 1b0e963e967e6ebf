"""The symlinked, flat kernels/ folder works everywhere a user may import from."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _python(code: str, cwd: Path, **env: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_kernels_is_a_flat_folder_behind_a_symlink():
    assert (ROOT / "fastequi" / "kernels").is_symlink()
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not [p for p in (ROOT / "kernels").iterdir() if p.is_dir() and p.name != "__pycache__"]


def test_bare_pythonpath_finds_the_kernels(tmp_path):
    code = "import fastequi.kernels.warp_recon as op; print(op.__file__)"
    found = _python(code, tmp_path, PYTHONPATH=str(ROOT))
    assert Path(found).resolve() == (ROOT / "kernels" / "warp_recon.py").resolve()


@pytest.mark.slow
def test_a_wheel_holds_kernels_photographs_type_marker_and_licences(tmp_path):
    source = tmp_path / "source"  # a copy: setuptools writes build/ beside pyproject.toml
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("fastequi", "kernels"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*build, "-w", tmp_path, source], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("fastequi-*.whl")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    if shutil.which("gcc"):
        assert "-py3-none-linux_" in wheel.name
        assert "fastequi/kernels/libfastequi.so" in names
        site = tmp_path / "site"
        archive.extractall(site)
        code = """
import pathlib, fastequi
from fastequi.kernels import native, toolchain
toolchain.compiler = lambda: None                    # the wheel's own library is enough
assert native.obstacle() is None, native.obstacle()
print(native.library_file())
"""
        found = _python(code, tmp_path, PYTHONPATH=str(site))
        assert found == str(site / "fastequi" / "kernels" / "libfastequi.so")
    assert "fastequi/kernels/warp_recon.c" in names
    assert "fastequi/kernels/warp_recon.py" in names
    assert "fastequi/py.typed" in names
    assert "fastequi/report/report.css" in names
    assert sum(name.endswith(".jpg") for name in names) == 9
    assert "fastequi/data/photos/LICENSES.md" in names
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    about = message_from_bytes(archive.read(metadata))
    assert about["License-Expression"] == "Apache-2.0"
    licences = ["fastequi/LICENSE", "fastequi/data/photos/LICENSES.md"]
    assert sorted(about.get_all("License-File")) == licences
    for name in licences:
        carried = archive.read(metadata.replace("METADATA", f"licenses/{name}"))
        assert carried == (ROOT / name).read_bytes()
    assert b"Apache License" in (ROOT / "fastequi" / "LICENSE").read_bytes()[:100]
    assert not [n for n in names if n.startswith(("tests", "bench", "kernels/", "ci"))]


@pytest.mark.parametrize("module", ["fastequi", "fastequi.cli.main"])
def test_importing_is_light(module, tmp_path):
    code = f"""
import sys, {module}
heavy = {{"torch", "triton", "nvidia", "xformers", "tyro", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    _python(code, tmp_path, PYTHONPATH=str(ROOT))


def test_lazy_names_all_resolve():
    import fastequi

    for name in fastequi.__all__:
        assert getattr(fastequi, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'warp_loss'"):
        _ = fastequi.warp_loss


def test_an_import_brings_neither_compiler_nor_fsdp():
    """They take longer than all else; a run that needs them imports them."""
    code = "import sys, fastequi.train as t; from fastequi import *; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "fastequi.methods.dino" in loaded
    assert not {"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"} & {*loaded}

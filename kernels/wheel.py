"""Build hooks: a wheel built where there is a C compiler carries the compiled CPU kernels.

Named in pyproject.toml. Without a compiler the wheel is the plain one, and the kernels are compiled
at first use, or not at all.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def _toolchain() -> ModuleType:
    """toolchain.py by its file: while building, fastequi is not importable."""
    spec = importlib.util.spec_from_file_location(
        "fastequi_toolchain", Path(__file__).with_name("toolchain.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """build_py, then the shared library beside the kernels and what it was made from."""

    def run(self) -> None:
        super().run()
        toolchain = _toolchain()
        cc = toolchain.compiler() if sys.platform == "linux" else None
        if self.editable_mode or cc is None:
            return
        folder = Path(self.build_lib) / "fastequi" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / toolchain.LIBRARY
        toolchain.build(cc, library)
        library.with_suffix(".txt").write_text(toolchain.fingerprint())


class BdistWheel(bdist_wheel):
    """A wheel for this platform and any Python 3, if it carries compiled kernels."""

    def finalize_options(self) -> None:
        if sys.platform == "linux" and _toolchain().compiler() is not None:
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)

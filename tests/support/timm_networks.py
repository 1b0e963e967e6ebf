"""timm's networks, the real ones; a machine without torchvision need not skip them."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from unittest import mock

import pytest


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports of packages that timm's model files name but the models never touch."""

    names = ("torchvision", "huggingface_hub")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: mock.MagicMock()
        return module

    def exec_module(self, module):
        pass


def timm_module(name):
    """A module of timm by its dotted name; without timm the test is skipped."""
    finder = _Unused()
    sys.meta_path.append(finder)  # last: an installed torchvision is found first
    try:
        return importlib.import_module(f"timm.{name}")
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {error}")
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, m in sys.modules.items() if getattr(m, "__loader__", None) is finder]:
            del sys.modules[name]

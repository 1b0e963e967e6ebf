"""Records tell the build that runs, not what its wheel's metadata say."""

import sys

import pytest
import torch

import fastequi
from fastequi.cli import doctor
from fastequi.runtime.machine import machine
from fastequi.versions import version_of


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs distributions: a name, a version and its modules become a folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, *modules):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
        (folder / "top_level.txt").write_text("\n".join(modules))

    return install


@pytest.mark.parametrize("build", ["2.14.1+cu130", "2.13.0a0+git1a2b3c4", "2.8.0"])
def test_the_build_of_torch_is_told_where_its_metadata_leave_it_out(site, monkeypatch, build):
    site("torch", "2.14.1")
    assert version_of("torch") == machine()["torch"] == torch.__version__
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(build))
    assert version_of("torch") == machine()["torch"] == build
    assert type(version_of("torch")) is str
    assert f" {build} " in doctor.report()


def test_what_is_not_imported_is_known_by_its_distribution(site):
    assert version_of("attends") == "not installed"
    site("attends-3", "3.0.0b1+cu130", "attends")
    assert version_of("attends-3") == version_of("attends") == "3.0.0b1+cu130"
    site("nvidia-other-cuda130", "2.4.0")
    assert version_of("nvidia-other") == "2.4.0 (nvidia-other-cuda130)"
    assert "attends" not in sys.modules


def test_a_checkout_on_the_path_tells_its_own():
    assert version_of("fastequi") == fastequi.__version__

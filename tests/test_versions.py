"""Records tell the build that runs, not what its wheel's metadata say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastequi
from fastequi import versions
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


def test_the_commit_is_that_of_a_checkout_and_of_nothing_around_it(tmp_path, monkeypatch):
    def git(*words):
        who = "-c", "user.name=a", "-c", "user.email=a@b"
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    inner = tmp_path / "site/fastequi/versions.py"  # installed below a checkout of something else
    for file in (tmp_path / "fastequi/versions.py", inner):
        file.parent.mkdir(parents=True)
        file.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short", "HEAD")
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "fastequi/versions.py"))
    assert versions.commit() == head
    Path(versions.__file__).write_text("changed")
    assert versions.commit() == f"{head}+"
    monkeypatch.setattr(versions, "__file__", str(inner))
    assert versions.commit() == ""

"""Shards in a dataset of Hugging Face's hub, by a server on this machine.

pip install -e '.[hf-tests]'
"""

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("huggingface_hub", reason="fastequi[hf-tests] is not installed")

from huggingface_hub import constants

from fastequi.data.config import DataConfig
from fastequi.data.sources import remote, remote_listing
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Gone, Patience, Unreadable
from fastequi.data.sources.shard_cache import ShardCache
from tests.support import hub
from tests.support.batches import assert_same, batches
from tests.support.shards import shards

CFG = DataConfig(
    image_size=16, source_size=24, batch_size=4, num_threads=1, shuffle="window", window=2
)
PLACE = "hf://datasets/someone/photos/train"


def told(monkeypatch, url):
    """What the package makes of HF_ENDPOINT when it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    """A dataset of shards."""
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 5.0))
    monkeypatch.setattr(remote, "_filesystems", {})
    files = {f"train/{name}": data for name, data in shards().items()}
    with hub.serving("someone/photos", files) as served:
        told(monkeypatch, served.url)
        monkeypatch.setenv("HF_TOKEN", "hf_hidden")
        yield served


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar"])
def test_the_same_batches_as_of_local_shards(dataset, tmp_path, pattern):
    for name, data in shards().items():
        (tmp_path / name).write_bytes(data)
    local = open_source(tmp_path / "*.tar")
    source = open_source(f"{PLACE}/{pattern}")
    assert source.names == local.names
    assert source.paths[0] == f"{PLACE}/000.tar"
    assert dataset.tokens == {"Bearer hf_hidden"}
    if pattern == "*.tar":
        cached = open_source(f"{PLACE}/{pattern}", cache=ShardCache(tmp_path / "cache", 10**9))
        expected = batches(7, local, CFG)
        for found in (source, cached):
            assert_same(batches(7, found, CFG), expected)


def test_a_shard_that_is_gone_or_another(dataset):
    with pytest.raises(FileNotFoundError, match=r"train/005.tar does not exist"):
        open_source(f"{PLACE}/{{000..005}}.tar")
    with pytest.raises(FileNotFoundError, match=r"photos/other/\*.tar names nothing"):
        open_source("hf://datasets/someone/photos/other/*.tar")
    with pytest.raises(Gone, match=r"hf://datasets/nobody/none/a\.tar: not found"):
        remote.state("hf://datasets/nobody/none/a.tar")
    source = open_source(f"{PLACE}/*.tar")
    del dataset.files["train/001.tar"]
    with pytest.raises(OSError, match=r"train/001.tar: not found"):
        source.encoded(7)
    dataset.files["train/002.tar"] = shards()["002.tar"][::-1]
    with pytest.raises(OSError, match="it changed since it was listed"):
        source.encoded(10)
    assert len(source.remote.lost) == 2


def test_what_fails_for_a_while_is_tried_again_and_no_secret_is_told(dataset, monkeypatch):
    source = open_source(f"{PLACE}/*.tar")
    wanted = source.encoded(3)
    dataset.faults = [503, 500]
    assert (source.encoded(3) == wanted).all()
    assert not dataset.faults
    dataset.faults = [401]
    with pytest.raises(OSError, match="no access with the credentials") as error:
        source.encoded(3)
    assert "hidden" not in str(error.value)


def test_a_server_that_is_away_is_tried_again(dataset, monkeypatch):
    told(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(Unreadable, match="after 3 tries"):
        remote.state(f"{PLACE}/000.tar")

"""Shards in a dataset of Hugging Face's hub, by a server on this machine.

pip install -e '.[hf-tests]'
"""

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("huggingface_hub", reason="fastequi[hf-tests] is not installed")

from huggingface_hub import constants

from fastequi.data.sources import remote
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Gone
from fastequi.data.sources.trouble import Unreadable
from tests.support import hub
from tests.support.remote_shards import expect_faults_told, expect_the_same_batches, impatient
from tests.support.shards import shards

PLACE = "hf://datasets/someone/photos/train"


def told(monkeypatch, url):
    """What the package makes of HF_ENDPOINT when it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    """A dataset of shards."""
    impatient(monkeypatch, tmp_path)
    files = {f"train/{name}": data for name, data in shards().items()}
    with hub.serving("someone/photos", files) as served:
        told(monkeypatch, served.url)
        monkeypatch.setenv("HF_TOKEN", "hf_hidden")
        yield served


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar"])
def test_the_same_batches_as_of_local_shards(dataset, tmp_path, pattern):
    expect_the_same_batches(PLACE, pattern, tmp_path)
    assert dataset.tokens == {"Bearer hf_hidden"}


def test_a_shard_that_is_gone_or_another(dataset):
    with pytest.raises(Gone, match=r"hf://datasets/nobody/none/a\.tar: not found"):
        remote.state("hf://datasets/nobody/none/a.tar")

    def put(name, data):
        dataset.files[f"train/{name}"] = data

    expect_faults_told(PLACE, lambda name: dataset.files.pop(f"train/{name}"), put)


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

"""Tar shards behind URLs: the same images as of local shards, bit for bit, through faults too."""

import io
import json
import logging
import random
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")
pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")

from fastequi.cli import commands
from fastequi.data.labelled import labelled_sets
from fastequi.data.loader import make_loader
from fastequi.data.scan import scan
from fastequi.data.sources import index, kept, pages, remote, remote_listing, remote_reader
from fastequi.data.sources.image_sets import open_source, scanned_listing
from fastequi.data.sources.parts import FilePart
from fastequi.data.sources.ranged_file import LEAST, RangedFile
from fastequi.data.sources.remote import Gone, Patience
from fastequi.data.sources.shard_cache import ShardCache
from fastequi.data.sources.trouble import Unreadable
from fastequi.data.sources.urls import shown
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from fastequi.paths import SE2
from tests.support import science
from tests.support.batches import assert_same
from tests.support.batches import batches as loaded
from tests.support.corpus import CORPUS
from tests.support.objects import serving
from tests.support.runs import environment
from tests.support.shards import VIEWS, picture, shards, tar

WINDOW = replace(VIEWS, shuffle="window", window=2)


@pytest.fixture(autouse=True)
def hurried(tmp_path, monkeypatch):
    """Its own cache folder; a fault costs milliseconds."""
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(remote, "PATIENCE", Patience(4, 0.01, 0.02, 5.0, 2.0))
    monkeypatch.setattr(remote, "GREETING", Patience(4, 0.01, 0.02, 5.0, 2.0))


@pytest.fixture
def local(tmp_path):
    """The shards as files."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, data in shards().items():
        (folder / name).write_bytes(data)
    return open_source(folder / "{000..004}.tar")


@pytest.fixture
def web():
    with serving(shards()) as objects:
        yield objects


def opened(web, **options):
    return open_source(f"{web.url}/{{000..004}}.tar", **options)


def batches(source, n=6, cfg=VIEWS, **options):
    return loaded(n, source, cfg, **options)


def test_images_and_batches_are_those_of_local_shards(local, web):
    source = opened(web)
    again = opened(web)  # by the index
    for found in (source, again):
        assert found == replace(local, paths=found.paths)
        assert found.fingerprint() == local.fingerprint()
        np.testing.assert_array_equal(found.sizes, local.sizes)
        np.testing.assert_array_equal(found.spans, local.spans)
        assert found.formats == local.formats
        for i in range(len(local)):
            np.testing.assert_array_equal(found.encoded(i), local.encoded(i))
    for cfg in (VIEWS, WINDOW):
        assert_same(batches(source, 14, cfg), batches(local, 14, cfg))


@pytest.mark.parametrize("done", [1, 5, 9])
def test_a_run_goes_on_from_local_to_remote_shards(local, web, done):
    expected = batches(local, 12, WINDOW)
    with make_loader(local, WINDOW, SE2(), seed=0) as loader:
        for _ in range(done):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(batches(opened(web), 12 - done, WINDOW, state=state), expected[done:])


def test_ranks_take_parts_of_the_same_windows(local, web):
    whole = batches(local, 12, WINDOW)
    source = opened(web)
    ranks = [batches(source, 12, WINDOW, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        for name in ("v1", "u", "sample_ids"):
            both = torch.cat([getattr(rank[step], name) for rank in ranks])
            assert torch.equal(both, getattr(batch, name))


def test_windows_need_shards(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"data.shuffle: window needs images in tar shards"):
        make_loader(open_source(tmp_path), replace(WINDOW, batch_size=2), SE2(), seed=0)


def test_an_index_spares_the_listing(web, caplog):
    with caplog.at_level(logging.INFO):
        opened(web)
    assert "24 images listed" in caplog.text
    web.asked.clear()
    opened(web)
    assert {method for method, _ in web.asked} == {"HEAD"}
    web.files["001.tar"] = web.files["002.tar"]
    with caplog.at_level(logging.INFO):
        assert len(opened(web)) == 28
    assert "changed: 1 (001.tar); the shards are listed again" in caplog.text


def test_a_scan_of_remote_shards(web, tmp_path, capsys):
    url = f"{web.url}/{{000..004}}.tar"
    commands.data(["scan", url, "--index", str(tmp_path / "a.jsonl")])
    assert "24 images" in capsys.readouterr().out
    known = index.read(tmp_path / "a.jsonl")
    assert known.decoded
    assert all(row.sha256 for row in known.rows)
    assert len(opened(web, index=tmp_path / "a.jsonl")) == 24
    commands.data(["scan", url])
    assert remote_listing.place_of(url).is_file()
    web.files["001.tar"] += bytes(512)
    with pytest.raises(ValueError, match=r"changed: 1 \(001.tar\).*fastequi data scan"):
        opened(web)
    with pytest.raises(FileNotFoundError, match=r"index: .*b.jsonl does not exist"):
        opened(web, index=tmp_path / "b.jsonl")


def stacks():
    """Shards of stacks, one of which ends inside its last page, and of an image of one page."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")

    def stack(count, k):
        file = io.BytesIO()
        planes = [science.values(1, "uint16", 10 * k + i)[..., 0] for i in range(count)]
        tifffile.imwrite(file, np.stack(planes), photometric="minisblack", metadata=None)
        return file.getvalue()

    frames = np.stack([science.values(1, "uint16", 40 + i)[..., 0] for i in range(3)])
    volume = science.dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    whole = {"a/s.tif": stack(5, 0), "a/t.tif": stack(4, 1), "b.tif": stack(1, 2)}
    return {
        "0.tar": tar(whole),
        "1.tar": tar({"cut.tif": stack(4, 3)[:-2000], "u.tif": stack(6, 4)}),
        "2.tar": tar({"v.tif": stack(2, 5)}),
    }, {"3.tar": tar({"volume.dcm": volume})}


@pytest.fixture
def stacks_at(tmp_path):
    """The folder of local shards, and what serves them."""
    with serving(stacks()[0]) as objects:
        folder = tmp_path / "stacks"
        folder.mkdir()
        for name, data in objects.files.items():
            (folder / name).write_bytes(data)
        yield folder, objects


def test_pages_of_remote_members_are_those_of_local_shards(stacks_at, tmp_path, capsys, caplog):
    folder, objects = stacks_at
    here, there = str(folder / "{0..2}.tar"), f"{objects.url}/{{0..2}}.tar"
    said = []
    for place in (here, there):
        commands.data(["scan", place, "--pages", "images"])
        said.append(capsys.readouterr().out)
    assert "17 TIFF, page by page, 1 TIFF" in said[1]
    assert [line for out in said for line in out.splitlines() if "cut.tif" in line]
    local = open_source(here, wanted=Wanted("all"))
    source = open_source(there, wanted=Wanted("all"))
    assert f"{there}: each page is fetched with all of its file" in caplog.text
    assert list(source.names) == list(local.names)
    assert "0.tar/a/s.tif::0004" in source.names
    assert source.fingerprint() == local.fingerprint()
    objects.asked.clear()
    for i in range(len(local)):
        np.testing.assert_array_equal(source.encoded(i), local.encoded(i))
    assert objects.asked["GET", "0.tar"] == 3  # of three files, whose pages follow each other
    cfg = replace(VIEWS, channels="0", mean=(0.5,), std=(0.2,), batch_size=4)
    expected = batches(local, 8, cfg)
    assert_same(batches(source, 8, cfg), expected)
    with make_loader(local, cfg, SE2(), seed=0) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(
        batches(open_source(there, wanted=Wanted("all")), 5, cfg, state=state), expected[3:]
    )


def test_a_page_of_a_shard_in_the_cache_is_read_alone(stacks_at, tmp_path, monkeypatch, caplog):
    folder, objects = stacks_at
    place = f"{objects.url}/{{0..2}}.tar"
    commands.data(["scan", place, "--pages", "images"])
    local_place = str(folder / "{0..2}.tar")
    commands.data(["scan", local_place, "--pages", "images"])
    local = open_source(local_place, wanted=Wanted("all"))
    cache = ShardCache(tmp_path / "shard_cache", 10**9)
    caplog.clear()
    source = open_source(place, wanted=Wanted("all"), cache=cache)
    assert "all of its file" not in caplog.text
    source.remote.want(f"{objects.url}/{k}.tar" for k in range(3))
    end = time.monotonic() + 10
    while len(list(cache.folder.glob("*.tar"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)

    def whole(*_):
        raise AssertionError("a page was read with all of its member")

    monkeypatch.setattr(pages, "of_bytes", whole)
    objects.asked.clear()
    for i in range(len(local)):
        np.testing.assert_array_equal(source.encoded(i), local.encoded(i))
    assert not objects.asked


def test_faults_of_a_server_are_no_faults_of_pages(stacks_at, capsys):
    _, objects = stacks_at
    place = f"{objects.url}/{{0..2}}.tar"
    objects.faults[""] = [503, "reset", "short", 503]
    commands.data(["scan", place, "--pages", "images"])
    assert "17 TIFF, page by page, 1 TIFF" in capsys.readouterr().out
    source = open_source(place, wanted=Wanted("all"))
    del objects.files["1.tar"]
    lost = [i for i, name in enumerate(source.names) if name.startswith("1.tar/")]
    for i in range(len(source)):
        if i in lost:
            with pytest.raises(Unreadable, match=r"1\.tar: not found"):
                source.encoded(i)
        else:
            source.encoded(i)
    with pytest.raises(OSError, match="page 9"):
        source.remote.read(source.paths[0], tuple(source.spans[0].tolist()), FilePart(9))


def test_frames_of_dicom_in_remote_shards_may_be_images(capsys):
    pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")
    with serving(stacks()[1]) as objects:
        place = f"{objects.url}/3.tar"
        commands.data(["scan", place, "--pages", "images"])
        assert "formats     3 DICOM, frame by frame\n" in capsys.readouterr().out
        source = open_source(place, wanted=Wanted("all"))
        for i in range(3):
            expected = science.values(1, "uint16", 40 + i)
            np.testing.assert_array_equal(decoded(source.encoded(i)), expected)


def test_dicom_without_an_extension_in_remote_shards():
    """By its bytes, and only where there are no images."""
    image = science.dicom(science.values(1, "uint16")[..., 0])
    photo = next(iter(shards().values()))
    with serving({"0.tar": tar({"IM1": image, "README": b"text"}), "1.tar": photo}) as objects:
        found = open_source(f"{objects.url}/0.tar", wanted=Wanted("all"))
        assert list(found.names) == ["0.tar/IM1"]
        np.testing.assert_array_equal(decoded(found.encoded(0)), science.values(1, "uint16"))
        both = open_source(f"{objects.url}/{{0..1}}.tar")
        assert len(both) > 0
        assert all(name.startswith("1.tar/") for name in both.names)


@pytest.mark.slow
def test_parts_of_a_scan_of_remote_shards_make_the_whole(web, tmp_path):
    url = f"{web.url}/{{000..004}}.tar"
    whole, merged = tmp_path / "whole.fei", tmp_path / "merged.fei"
    commands.data(["scan", url, "--index", str(whole)])
    for part in ("2/2", "1/2"):
        commands.data(["scan", url, "--part", part, "--index", str(merged)])
    # by itself, as it takes over signals
    merge = [sys.executable, "-m", "fastequi.cli", "data", "merge", url, "--index", str(merged)]
    done = subprocess.run(merge, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, other = index.read(whole), index.read(merged)
    assert list(one.rows) == list(other.rows)
    assert one.archives == other.archives
    assert len(opened(web, index=merged)) == 24


def test_a_remote_shard_that_was_written_again_is_scanned_again(web, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(scan.__globals__, "_FILES", 1)
    url = f"{web.url}/{{000..004}}.tar"
    part = ["scan", url, "--part", "1/1", "--index", str(tmp_path / "a.fei")]
    commands.data(part)
    with caplog.at_level("INFO"):
        commands.data(part)
    assert "continuing: 24 images were scanned before" in caplog.text
    caplog.clear()
    web.files["001.tar"] = tar({"new.png": picture(4)})  # of 3 images before; 6 are ahead of them
    with caplog.at_level("INFO"):
        commands.data(part)
    assert "continuing: 6 images were scanned before" in caplog.text


def test_odd_members_and_headers_are_as_of_files(tmp_path):
    members = {name: content for name, (content, _) in CORPUS.items()}
    members |= {f"large {i}.png": picture(2 * i, (400, 400)) for i in range(3)}  # 470 kB each
    data = tar(members)
    (tmp_path / "a.tar").write_bytes(data)
    whole = open_source(tmp_path / "a.tar", tolerate=0.9)
    with serving({"a.tar": data}) as web:
        source = open_source(f"{web.url}/a.tar", tolerate=0.9)
        assert source.names == whole.names
        np.testing.assert_array_equal(source.sizes, whole.sizes)
        files = remote_listing.place_of(f"{web.url}/a.tar"), tmp_path / ".fastequi" / "a.tar.fei"
        ours, theirs = map(index.read, files)
        assert ours.left_out == theirs.left_out
        assert ours.rows == theirs.rows
        scanned = [scanned_listing(place) for place in (f"{web.url}/a.tar", tmp_path / "a.tar")]
        assert list(scanned[0].names) == list(scanned[1].names)
        assert scanned[0].left_out == scanned[1].left_out
        for place in (f"{web.url}/a.tar", str(tmp_path / "a.tar")):
            with suppress(SystemExit):  # much is damaged
                commands.data(["scan", place])
        ours, theirs = map(index.read, files)
        assert ours.rows == theirs.rows
        assert ours.left_out == theirs.left_out
        for file in files:
            file.unlink()
        (tmp_path / "a.tar").write_bytes(data[:-20_000])
        web.files["a.tar"] = data[:-20_000]
        whole = open_source(tmp_path / "a.tar", tolerate=0.9)
        assert open_source(f"{web.url}/a.tar", tolerate=0.9).names == whole.names
        (tmp_path / "a.tar").write_bytes(data[:700])
        web.files["a.tar"] = data[:700]
        errors = _error(f"{web.url}/a.tar"), _error(str(tmp_path / "a.tar"))
        assert errors[0].replace(web.url, "") == errors[1].replace(str(tmp_path), "")


def _error(place):
    with pytest.raises(ValueError, match="shards: ") as error:
        open_source(place)
    return str(error.value)


def test_classes_beside_images(web):
    sets = labelled_sets(f"{web.url}/{{000..004}}.tar")
    for part in sets:
        assert part.classes == ("0", "1", "2")
        numbers = [int(name[8:11]) for name in part.source.names]
        assert part.labels.tolist() == [number % 3 for number in numbers]
    assert sum(map(len, sets)) == 24


def test_large_members_are_skipped_and_small_ones_read_through():
    for size, least, most in ((3000, 0, 4), (1 << 20, 20, 45)):
        count = 20 if size > 3000 else 2000
        data = tar({f"{i:05}.bin": bytes(size) for i in range(count)})
        read = 0

        def fetch(first, count, data=data):
            nonlocal read
            read += count
            return data[first : first + count]

        file = RangedFile(fetch, len(data))
        with tarfile.open(fileobj=file, mode="r:") as archive:
            assert len(archive.getnames()) == count
        assert least <= file.requests <= (most if size > 3000 else 12)
        assert read <= max(count * 3 * LEAST, 1.2 * len(data))


@pytest.mark.parametrize(
    "faults",
    [[503], [503, 500, 429, 502], ["reset"], ["short", "short"], ["reset", 503, "short"]],
    ids=str,
)
def test_faults_that_pass_change_nothing(web, local, faults, caplog):
    source = opened(web)
    for name in web.files:
        web.faults[name] = [None, *faults]  # the first answer tells size and version
    for i in range(len(local)):
        np.testing.assert_array_equal(source.encoded(i), local.encoded(i))
    assert not any(web.faults.values())
    assert not source.remote.lost


def test_faults_while_listing(web, local):
    for name in web.files:
        web.faults[name] = [503, "reset", "short"]
    assert opened(web).names == local.names


def test_a_server_that_is_away_makes_no_index(web, tmp_path, monkeypatch):
    """What was asked for in vain is not what a damaged archive lacks."""
    url = f"{web.url}/{{000..004}}.tar"
    for faults in ([503] * 1000, [None, *["reset"] * 1000], [None, "short", *["short"] * 1000]):
        web.faults["001.tar"] = list(faults)
        with pytest.raises(OSError, match=r"001.tar: .*, after 5 tries in"):
            opened(web, tolerate=0.5)
        assert not remote_listing.place_of(url).exists()
    web.faults.clear()
    listing = scanned_listing(url)
    web.faults["001.tar"] = [503] * 1000
    with pytest.raises(OSError, match=r"001.tar: HTTP 503, after 5 tries in"):
        scan(listing, 1)


def test_no_answer_in_time(web, monkeypatch):
    source = opened(web)
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 0.2))
    web.faults["001.tar"] = ["hang"] * 2
    assert len(source.encoded(7)) == source.spans[7, 1]
    web.faults["001.tar"] = ["hang"] * 20
    with pytest.raises(OSError, match=r"001.tar: no answer in time, after 3 tries in"):
        remote.read(f"{web.url}/001.tar", 0, 10)


def test_which_errors_are_tried_again(web):
    url = f"{web.url}/001.tar"
    for fault, tries in ((400, 1), (401, 1), (403, 1), (404, 1), (408, 5), (429, 5), (503, 5)):
        web.asked.clear()
        web.faults["001.tar"] = [fault] * 5
        with pytest.raises(Unreadable) as error:
            remote.read(url, 0, 10)
        assert isinstance(error.value, Gone) == (fault == 404)
        assert web.asked["GET", "001.tar"] == tries, fault
        web.faults["001.tar"] = [fault] * 20
        with pytest.raises(Unreadable) as error:
            remote.state(url)
        assert isinstance(error.value, Gone) == (fault == 404), fault
    web.faults.clear()
    web.without_ranges = True
    with pytest.raises(Unreadable, match="expected a server that knows byte ranges"):
        remote.read(url, 0, 10)
    with pytest.raises(Gone, match=r"nothing\.tar: not found"):
        remote.state(f"{web.url}/nothing.tar")
    with pytest.raises(FileNotFoundError, match=r"shards: .*/005.tar does not exist"):
        open_source(f"{web.url}/{{000..005}}.tar")


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    monkeypatch.setattr(remote, "PATIENCE", Patience(6, 1.0, 10.0, 1e9, 1.0))
    before = random.getstate()
    with pytest.raises(Unreadable, match="after 7 tries"):
        remote.read("http://127.0.0.1:1/a.tar", 0, 1)
    for wait, most in zip(waits, (1, 2, 4, 8, 10, 10), strict=True):
        assert most / 2 <= wait <= most
    assert random.getstate() == before  # the run's own numbers


def test_nothing_secret_is_shown():
    text = "403, url='https://k:pw@cdn/x.tar?X-Signature=abc&y=1' for s3://a:b@c/d"
    assert shown(text) == "403, url='https://cdn/x.tar' for s3://c/d"
    assert shown("was it changed? no") == "was it changed no"
    assert shown("of https:/k:p@w@cdn/x.tar#part") == "of https:/cdn/x.tar"
    assert shown("s3://bucket/a b/{00..12}.tar") == "s3://bucket/a b/{00..12}.tar"


@pytest.mark.parametrize("again", [shards((6, 3, 7, 4, 4))["002.tar"][::-1], b"x" * 9], ids=len)
def test_a_shard_that_changes_during_a_run_is_lost(web, again):
    """Although it was compared a moment ago: every answer says its version."""
    source = opened(web)
    source.encoded(9)
    web.files["002.tar"] = again
    for i in (10, 11):
        with pytest.raises(OSError, match=r"002.tar: it changed since it was listed"):
            source.encoded(i)
    assert len(source.encoded(8)) == source.spans[8, 1]


@pytest.mark.parametrize("how", ["gone", "changed", "down"])
def test_a_lost_shard_is_left_out_on_all_ranks_alike(web, local, caplog, how):
    """Its images are replaced by those behind it, counted, and tolerated up to a share."""
    cfg = replace(WINDOW, tolerate=0.3)
    source = opened(web)
    if how == "gone":
        del web.files["001.tar"]
    elif how == "changed":
        web.files["001.tar"] = web.files["001.tar"][::-1]
    else:
        web.faults["001.tar"] = [503] * 10_000
    with make_loader(source, cfg, SE2(), seed=0, steps=12) as loader:
        whole = list(loader)
        assert sorted(loader.quarantined) == [f"001.tar/{n}" for n in NAMES_OF_1]
        state = loader.state_dict()
    assert "a shard is lost" in caplog.text
    said = {"gone": "not found", "changed": "it changed since it was", "down": "HTTP 503, after 5"}
    assert said[how] in loader.quarantined["001.tar/006.png"]
    ranks = []
    for rank in range(2):  # each meets the loss by itself
        ranks.append(batches(opened_as(source, web), 12, cfg, rank=rank, world_size=2))
    for step, batch in enumerate(whole):
        both = torch.cat([rank[step].u for rank in ranks])
        assert torch.equal(both, batch.u)
    # a run that goes on keeps them out, and so would one of the local shards
    later = batches(source, 3, cfg, state=state)
    assert_same(batches(local, 3, cfg, state=state), later)
    strict = replace(cfg, tolerate=0.1)
    with (
        make_loader(opened_as(source, web), strict, SE2(), seed=0, steps=12) as loader,
        pytest.raises(
            RuntimeError,
            match=r"3 of 24 images cannot be decoded.* 10 %.*; the reason of 3: .*001.tar: ",
        ),
    ):
        list(loader)


NAMES_OF_1 = ["006.png", "007.jpg", "008.png"]


def opened_as(source, web):
    """The same images with a reader that has met no loss."""
    known = index.read(remote_listing.place_of(f"{web.url}/{{000..004}}.tar"))
    return replace(source, remote=remote_reader.RemoteShards(web.url, known.archives))


def test_a_few_changed_shards_are_replaced_not_listed_again(web, caplog):
    source = opened(web)
    cfg = replace(VIEWS, tolerate=0.3)
    web.files["001.tar"] = web.files["001.tar"][::-1]
    again = opened(web, tolerate=0.3)
    assert again == source
    assert "changed since they were listed and will be replaced: shards 1 (001.tar)" in caplog.text
    with make_loader(again, cfg, SE2(), seed=0, steps=9) as loader:
        list(loader)
        assert sorted(loader.quarantined) == [f"001.tar/{name}" for name in NAMES_OF_1]


def test_a_run_that_goes_on_without_a_shard(web, tmp_path, caplog):
    source = opened(web)
    expected = batches(source, 3)
    kept.keep(tmp_path / kept.NAME, source)
    del web.files["004.tar"]
    again = kept.as_begun(tmp_path / kept.NAME, opened(web), 0.3)
    assert again.names == source.names
    assert "cannot be read and will be replaced: shards 1 (004.tar)" in caplog.text
    batches(again, 12, replace(VIEWS, tolerate=0.3))
    web.files |= shards()
    assert_same(batches(opened(web), 3), expected)


def test_a_run_that_goes_on_without_a_shard_on_a_new_machine(web, tmp_path, caplog, monkeypatch):
    cfg = replace(WINDOW, tolerate=0.3)
    source = opened(web)
    kept.keep(tmp_path / kept.NAME, source)
    expected = batches(opened_as(source, web), 6, cfg)
    del web.files["003.tar"]
    replaced = batches(opened_as(source, web), 6, cfg)
    assert any((a.u != b.u).any() for a, b in zip(expected, replaced, strict=True))
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "another")
    with pytest.raises(FileNotFoundError, match=r"003.tar does not exist \(1 of 5 shards are mis"):
        opened(web)
    found = opened(web, tolerate=0.3)
    assert "missing and left out: shards 1 (003.tar)" in caplog.text
    assert len(found) == 20
    again = kept.as_begun(tmp_path / kept.NAME, found, 0.3)
    assert again.names == source.names
    assert_same(batches(again, 6, cfg), replaced)
    web.files |= shards()
    assert_same(batches(opened(web, tolerate=0.3), 6, cfg), expected)  # it is listed again


def test_images_of_the_next_steps_are_read_while_one_is_made(web, local):
    source = opened(web)
    web.latency, web.most = 0.05, 0
    with make_loader(source, VIEWS, SE2(), seed=0, steps=20) as loader:
        assert_same(list(loader), batches(local, 20))
    assert web.most > 4
    assert source.remote.requests <= 4 * (20 + 8)  # each once, of what is made ahead too


@pytest.mark.parametrize(
    ("url", "missing", "said"),
    [
        (
            "https://host/a.tar",
            "fsspec",
            "https:// URLs need fsspec: pip install 'fastequi[rem",
        ),
        ("https://host/a.tar", "aiohttp", "https:// URLs need aiohttp: pip install 'fastequi[rem"),
        ("s3://b/a.tar", "s3fs", "s3:// URLs need s3fs: pip install 'fastequi[remote]' ("),
        ("gs://b/a.tar", "gcsfs", "gs:// URLs need gcsfs: pip install 'fastequi[remote]' gcsfs"),
        ("hf://datasets/a/b/c.tar", "huggingface_hub", "pip install 'fastequi[remote]' hugging"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, url, missing, said):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(remote, "_filesystems", {})
    with pytest.raises(ImportError) as error:
        open_source(url)
    assert said in str(error.value)

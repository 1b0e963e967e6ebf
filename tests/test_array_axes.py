"""NumPy arrays that are [C, H, W], and several in a .npz: taken by a scan's --axes and --array."""

import io
import json
import logging
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from fastequi.cli import commands
from fastequi.data import read_image
from fastequi.data.config import DataConfig
from fastequi.data.labelled import labelled_sets
from fastequi.data.loader import make_loader
from fastequi.data.settling import wanted as asked
from fastequi.data.sources import arrays, kept, pages
from fastequi.data.sources.encoded import ARRAYS, EXTENSIONS
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.index import read as read_index
from fastequi.data.sources.kinds import Kind, counts
from fastequi.data.sources.parts import FilePart, expect_array, file_of, name_of, part_of
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import held_out_of, shared
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from fastequi.evaluate.geometry.reading import Reading
from fastequi.paths import SE2
from tests.support.batches import assert_same, batches
from tests.support.science import plain_tiff, values
from tests.support.shards import VIEWS, tar

COUNT = 7


def image(i):
    """[H, W, C] of 16 bits."""
    return values(4, "uint16", i, (30, 26))


def planes(i):
    return np.ascontiguousarray(np.moveaxis(image(i), -1, 0))


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def written(folder, kind):
    """Images in one of the ways that a scan has to be told of, or as they are read without."""
    folder.mkdir()
    for i in range(COUNT):
        if kind == "plain":
            np.save(folder / f"{i}.npy", image(i))
        elif kind == "planes":
            np.save(folder / f"{i}.npy", planes(i))
        else:
            both = {"image": planes(i) if kind == "both" else image(i), "mask": image(i)[..., 0]}
            (folder / f"{i}.npz").write_bytes(saved(**both, extent=np.arange(4)))
    return folder


TOLD = {
    "planes": (["--axes", "chw"], "::chw", "axes [C, H, W]"),
    "named": (["--array", "image"], "::image", "array image of .npz, axes [H, W, C]"),
    "both": (
        ["--array", "image", "--axes", "chw"],
        "::image:chw",
        "array image of .npz, axes [C, H, W]",
    ),
}


@pytest.mark.parametrize("kind", list(TOLD))
def test_a_scan_takes_arrays_as_it_is_told(kind, tmp_path, capsys):
    plain, folder = written(tmp_path / "plain", "plain"), written(tmp_path / kind, kind)
    options, end, words = TOLD[kind]
    commands.data(["scan", str(plain)])
    expected = capsys.readouterr().out
    commands.data(["scan", str(folder), *options])
    said = capsys.readouterr().out
    form = "NPY" if kind == "planes" else "NPZ"
    assert f"formats     {COUNT} {form}\n  read as {words}\n" in said
    assert "is it [" not in said
    table = re.search(r"values .*?duplicates", expected, re.DOTALL)
    assert table
    assert table[0] in said  # the same numbers of each channel
    source, known = (open_source(place, wanted=Wanted("all")) for place in (folder, plain))
    assert list(source.names) == [f"{i}.{form.lower()}{end}" for i in range(COUNT)]
    assert counts(source.kinds) == {Kind(4, "uint16"): COUNT}
    assert np.array_equal(source.sizes, known.sizes)
    cfg = replace(VIEWS, channels="0,1,2,3", mean=(0.5,) * 4, std=(0.2,) * 4, batch_size=4)
    expected = batches(6, known, cfg)
    assert_same(batches(6, source, cfg), expected)
    with make_loader(source, cfg, SE2(), seed=0) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(batches(3, source, cfg, state=state), expected[3:])
    assert np.array_equal(held_out_of(source), held_out_of(known))


def test_a_scan_again_takes_arrays_as_the_index_does(tmp_path, capsys):
    folder = written(tmp_path / "both", "both")
    index = folder / ".fastequi" / "index.fei"
    with pytest.raises(SystemExit):
        commands.data(["scan", str(folder)])
    said = "3 arrays in a .npz (image, mask, extent), expected one; fastequi data scan PLACE"
    assert said in capsys.readouterr().out
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    capsys.readouterr()
    commands.data(["scan", str(folder)])
    said = f"array image of .npz, axes [C, H, W], as the index that is there has: {index}"
    assert said in capsys.readouterr().out
    commands.data(["scan", str(folder), "--axes", "hwc", "--array", "mask"])
    out = capsys.readouterr().out
    assert "array mask of .npz, axes [H, W, C]; the index that it replaces has array image" in out
    assert "values      1 channel of uint16" in out
    with pytest.raises(SystemExit):
        commands.data(["scan", str(folder), "--array", "masks"])
    out = capsys.readouterr()
    assert "no array masks in a .npz, which has image, mask, extent" in out.out
    assert f"all 7 images are left out; {index}, which has others, is kept as it was" in out.err
    assert read_index(index).columns.names[0] == "0.npz::mask"
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    assert "the index that it replaces has array mask of .npz" in capsys.readouterr().out
    assert read_index(index).columns.names[0] == "0.npz::image:chw"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--array", "a/b"], '--array: expected the name of an array, without "/"'),
        (["--array", "chw"], "got 'chw'"),
        (["--array", "x:chw"], "got 'x:chw'"),
        (["--array", "image"], "--array: expected .npz as images, got none in "),
    ],
)
def test_what_is_no_array_is_refused(options, said, tmp_path):
    folder = written(tmp_path / "planes", "planes")
    with pytest.raises(ValueError, match=re.escape(said)):
        commands.data(["scan", str(folder), *options])
    assert not (folder / ".fastequi").exists()


def test_axes_are_of_arrays_alone(tmp_path):
    photo = tmp_path / "a.tif"
    photo.write_bytes(plain_tiff(image(0)))
    with pytest.raises(ValueError, match="--axes chw: expected "):
        commands.data(["scan", str(tmp_path), "--axes", "chw"])


def test_wrong_axes_are_doubted_with_the_option_that_helps(tmp_path, capsys, caplog):
    folder = written(tmp_path / "plain", "plain")
    commands.data(["scan", str(folder), "--axes", "chw"])
    with caplog.at_level(logging.WARNING):
        open_source(folder, wanted=Wanted("all"))
    said = (
        "more channels (30) than the 4 pixels of a side: is it [H, W, C]? [C, H, W] is read; "
        "fastequi data scan PLACE --axes hwc, or axes='hwc' of read_image, makes it that"
    )
    assert said in capsys.readouterr().out
    assert said in caplog.text


def test_grey_arrays_have_no_axis_to_turn(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", image(i)[..., 0])
    commands.data(["scan", str(tmp_path), "--axes", "chw"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert counts(source.kinds) == {Kind(1, "uint16"): 3}
    np.testing.assert_array_equal(read_of(source, 2), image(2)[..., :1])


def read_of(source, i):
    return decoded(source.encoded(i))


def test_members_of_shards_may_be_such_arrays(tmp_path, capsys):
    contents = {f"cat/{i}.npz": saved(image=planes(i), mask=image(i)[..., 0]) for i in range(COUNT)}
    (tmp_path / "0.tar").write_bytes(tar(contents))
    place = str(tmp_path / "0.tar")
    commands.data(["scan", place, "--axes", "chw", "--array", "image"])
    assert f"formats     {COUNT} NPZ\n  read as array image" in capsys.readouterr().out
    source = open_source(place, wanted=Wanted("all"))
    assert list(source.names) == [f"0.tar/cat/{i}.npz::image:chw" for i in range(COUNT)]
    for i in range(COUNT):
        np.testing.assert_array_equal(read_of(source, i), image(i))


def test_members_behind_urls_are_those_of_local_shards(tmp_path):
    pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")
    from tests.support.objects import serving

    contents = {f"{i}.npz": saved(image=planes(i), mask=image(i)[..., 0]) for i in range(COUNT)}
    with serving({"0.tar": tar(contents)}) as objects:
        place = f"{objects.url}/0.tar"
        commands.data(["scan", place, "--axes", "chw", "--array", "image"])
        source = open_source(place, wanted=Wanted("all"))
        for i in range(COUNT):
            np.testing.assert_array_equal(read_of(source, i), image(i))


def test_parts_of_a_scan_take_arrays_alike(tmp_path, capsys):
    folder = written(tmp_path / "planes", "planes")
    for part in ("1/2", "2/2"):
        commands.data(["scan", str(folder), "--axes", "chw", "--part", part])
    commands.data(["merge", str(folder)])
    assert f"{COUNT} NPY\n  read as axes [C, H, W]" in capsys.readouterr().out
    commands.data(["scan", str(folder), "--axes", "chw", "--part", "1/2"])
    commands.data(["scan", str(folder), "--axes", "hwc", "--part", "2/2"])
    with pytest.raises(ValueError, match=r"part 2/2 was scanned with .* --axes hwc .* --axes chw"):
        commands.data(["merge", str(folder)])


def test_patterns_choose_pages_and_arrays_by_their_file(tmp_path):
    names = ["a.tif::0001", "b/a.npy::chw", "b/c.npz::image", "a.png"]
    for patterns, expected in (
        (Patterns(("*.npy", "*.tif")), [True, True, False, False]),
        (Patterns((), ("*.np[yz]",)), [True, False, False, True]),
        (Patterns(("*.tif::0001", "*::image")), [True, False, False, False]),
        (Patterns((), ("b/c.npz",)), [True, True, False, True]),
    ):
        assert patterns.chosen(names) == expected
    folder = written(tmp_path / "planes", "planes")
    commands.data(["scan", str(folder), "--axes", "chw"])
    chosen = Selection((str(folder),), Patterns(("[0-2].npy",)))
    assert len(open_source(chosen, wanted=Wanted("all"))) == 3


def test_a_run_whose_arrays_were_scanned_otherwise_is_told_how(tmp_path):
    folder = written(tmp_path / "both", "both")
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    file = tmp_path / "images.jsonl"
    begun = open_source(folder, wanted=Wanted("all"))
    kept.keep(file, begun)
    commands.data(["scan", str(folder), "--axes", "hwc", "--array", "mask"])
    now = open_source(folder, wanted=Wanted("all"))
    said = "7 images of the run .*; fastequi data scan PLACE --axes chw --array 'image' takes"
    with pytest.raises(ValueError, match=said):
        kept.as_begun(file, now, 0.1)
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    again = kept.as_begun(file, open_source(folder, wanted=Wanted("all")), 0.1)
    assert list(again.names) == list(begun.names)


def test_an_image_is_read_as_runs_read_it(tmp_path):
    np.save(tmp_path / "a.npy", planes(0))
    (tmp_path / "a.npz").write_bytes(saved(image=planes(0), mask=image(0)[..., 0]))
    for file, options in (("a.npy", {}), ("a.npz", {"array": "image"})):
        found = read_image(tmp_path / file, axes="chw", **options)
        np.testing.assert_array_equal(found.numpy(), planes(0))
    found = read_image(tmp_path / "a.npz", "2,0", axes="chw", array="image")
    np.testing.assert_array_equal(found.numpy(), planes(0)[[2, 0]])
    assert read_image(tmp_path / "a.npz", array="mask").shape == (1, 30, 26)
    photo = tmp_path / "a.tif"
    photo.write_bytes(b"II*\0")
    for options, error, said in (
        ({"array": "photo"}, OSError, "a.npz: no array photo in a .npz, which has image, mask"),
        ({"array": 3}, TypeError, "array: expected the name of one in a .npz, got 3"),
        ({"array": "a/b"}, ValueError, "array: expected the name of an array"),
        ({"axes": "cwh"}, ValueError, 'axes: expected "hwc" or "chw", got \'cwh\''),
        ({"axes": "chw", "page": 1}, ValueError, "page: expected None for axes [C, H, W], got 1"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            read_image(tmp_path / "a.npz", **options)
    with pytest.raises(ValueError, match=r"array: expected a file whose name ends with \.npz"):
        read_image(tmp_path / "a.npy", array="image")
    with pytest.raises(ValueError, match=r"axes: expected a file whose name ends with \.npy or"):
        read_image(photo, axes="chw")
    with pytest.raises(ValueError, match="pages_are_channels: expected False for filled where"):
        read_image(photo, nodata=0, pages_are_channels=True)


def test_arrays_that_claim_too_much_are_refused_unread(tmp_path):
    """An array of 6 TB, of which there is nothing but the header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<u2", "fortran_order": False, "shape": (3, 1 << 20, 1 << 20)}
    )
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    with pytest.raises(OSError, match="1099511627776 pixels, more than"):
        pages.read(str(tmp_path / "a.npy"), FilePart(planes=True))
    (tmp_path / "b.npy").write_bytes(file.getvalue().replace(b"1048576", b"     64"))
    with pytest.raises(OSError, match="it ends before its values do"):
        pages.read(str(tmp_path / "b.npy"), FilePart(planes=True))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<u2", ">u2", "|u1", "?", "<f8", ">f4", "<i4", "<f2"])
def test_arrays_of_any_order_and_type_are_turned(kind, order, tmp_path):
    array = planes(0).astype(kind, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", image=array)
    for file, chosen in (
        ("a.npy", FilePart(planes=True)),
        ("a.npz", FilePart(array="image", planes=True)),
    ):
        found = np.load(io.BytesIO(pages.read(str(tmp_path / file), chosen).tobytes()))
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, np.moveaxis(array, 0, -1))
    found = np.load(
        io.BytesIO(pages.read(str(tmp_path / "a.npz"), FilePart(array="image")).tobytes())
    )
    np.testing.assert_array_equal(found, array)


def test_one_image_in_two_sets_is_found_whatever_array_is_taken(tmp_path):
    folder = written(tmp_path / "both", "both")
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    train = open_source(folder, wanted=Wanted("all"))
    commands.data(["scan", str(folder), "--axes", "hwc", "--array", "mask"])
    test = open_source(folder, wanted=Wanted("all"))
    assert shared(train, test) == COUNT


def test_names_say_what_of_a_file_is_taken():
    for part, end in (
        (FilePart(), ""),
        (FilePart(planes=True), "chw"),
        (FilePart(array="image"), "image"),
        (FilePart(array="0001", planes=True), "0001:chw"),
        (FilePart(array="a b:c::d"), "a b:c::d"),
        (FilePart(nodata="file"), "nodata=file"),
        (FilePart(None, "image", True, "-9999"), "image:chw::nodata=-9999"),
        (FilePart(None, "nodata=3", False, "nan"), "nodata=3::nodata=nan"),
    ):
        assert str(part) == end
        name = name_of("x/y.NPZ", part)
        assert name == (f"x/y.NPZ::{end}" if end else "x/y.NPZ")
        assert file_of(name) == "x/y.NPZ"
        assert part_of(name) == part
    whole = FilePart(None, "image", True, "file")
    assert name_of("y.npy", whole) == "y.npy::chw::nodata=file"
    assert name_of("y.npy", FilePart(array="image")) == "y.npy"
    assert name_of("y.tif", FilePart(planes=True)) == "y.tif"
    assert name_of("y.TIFF::0003", whole) == "y.TIFF::0003::nodata=file"
    assert part_of("y.TIFF::0003::nodata=file") == FilePart(3, nodata="file")
    assert name_of("y.png", whole) == "y.png"
    assert name_of("y.dcm::0003", whole) == "y.dcm::0003"
    for name in ("y.tif::chw", "y.png::nodata=file", "y.tif::nodata=", "y.tif::nodata=a b"):
        assert part_of(name) == FilePart()
        assert file_of(name) == name


def test_evaluations_read_arrays_as_the_encoder_has_channels(tmp_path):
    reading = Reading(Wanted("all", count=4), "dtype")
    np.save(tmp_path / "hwc.npy", image(0))
    np.save(tmp_path / "chw.npy", planes(0))
    first, second = (reading(tmp_path / name) for name in ("hwc.npy", "chw.npy"))
    assert first.shape == (4, 30, 26)
    assert (first == second).all()
    reading.expect_one_kind([tmp_path / "hwc.npy", tmp_path / "chw.npy"])
    np.save(tmp_path / "other.npy", values(5, "uint16"))
    with pytest.raises(ValueError, match="expected an image that the encoder takes"):
        reading(tmp_path / "other.npy")


def test_a_pipe_is_no_image_and_waits_for_nobody(tmp_path, capsys):
    folder = written(tmp_path / "planes", "planes")
    os.mkfifo(folder / "pipe.npy")
    (folder / "empty.npy").touch()
    commands.data(["scan", str(folder), "--axes", "chw"])
    said = capsys.readouterr().out
    assert "pipe.npy::chw (not a regular file)" in said
    assert "empty.npy::chw (empty file)" in said
    with pytest.raises(OSError, match="not a regular file"):
        read_image(folder / "pipe.npy", axes="chw")


def test_arrays_of_more_bytes_than_files_may_have_are_refused(tmp_path, monkeypatch):
    folder = written(tmp_path / "planes", "planes")
    monkeypatch.setattr(arrays, "MAX_BYTES", 4 * 30 * 26 * 2 - 1)
    with pytest.raises(OSError, match="6240 bytes of values, more than 6239"):
        pages.read(str(folder / "0.npy"), FilePart(planes=True))


def test_a_mixed_set_keeps_what_it_was_told(tmp_path, capsys):
    """Arrays without names come first, and only some files have the one that is asked for."""
    for i in range(2):
        np.save(tmp_path / f"a{i}.npy", image(i))
        (tmp_path / f"b{i}.npz").write_bytes(saved(image=image(i), mask=image(i)[..., 0]))
    commands.data(["scan", str(tmp_path), "--array", "image"])
    said = capsys.readouterr().out
    assert "formats     2 NPY, 2 NPZ\n  read as array image of .npz" in said
    commands.data(["scan", str(tmp_path)])
    assert "array image of .npz, axes [H, W, C], as the index" in capsys.readouterr().out
    assert len(open_source(tmp_path, wanted=Wanted("all"))) == 4
    for part in ("1/2", "2/2"):
        commands.data(["scan", str(tmp_path), "--array", "image", "--part", part])
    commands.data(["merge", str(tmp_path)])
    assert "formats     2 NPY, 2 NPZ\n" in capsys.readouterr().out


def test_a_rescan_does_not_ask_for_what_is_there_no_more(tmp_path, capsys):
    folder = written(tmp_path / "planes", "planes")
    commands.data(["scan", str(folder), "--axes", "chw"])
    (folder / "preview.tif").write_bytes(plain_tiff(image(0)))  # arrays are no images beside it
    commands.data(["scan", str(folder)])
    assert "formats     1 TIFF\n" in capsys.readouterr().out


def test_an_image_of_two_places_is_taken_once_however_it_is_read(tmp_path, caplog):
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"{i}.npy", image(i)[..., 0])
    commands.data(["scan", str(folder), "--axes", "chw"])
    (tmp_path / "l.txt").write_text("grey/0.npy\ngrey/1.npy\n")
    found = open_source((str(folder), str(tmp_path / "l.txt")), wanted=Wanted("all"))
    assert len(found) == 4
    assert "2 images are named more than once and taken once" in caplog.text


def test_files_may_be_named_as_parts_are(tmp_path):
    """Where nothing says otherwise they are themselves."""
    for name in ("t.npz::band.npy", "t.npy::chw", "t.tif::nodata=a.npy"):
        np.save(tmp_path / "x.npy", image(0))
        os.rename(tmp_path / "x.npy", tmp_path / name)
    for name in ("t.npz::band.npy", "t.tif::nodata=a.npy"):
        found = open_source(tmp_path, wanted=Wanted("all"))
        assert name in found.names
    contents = {f"{i}.npz::band.npy": (tmp_path / "t.npz::band.npy").read_bytes() for i in range(3)}
    (tmp_path / "0.tar").write_bytes(tar(contents))
    place = str(tmp_path / "0.tar")
    for scanned in (False, True):
        if scanned:
            commands.data(["scan", place])
        source = open_source(place, wanted=Wanted("all"))
        assert len(source) == 3
        np.testing.assert_array_equal(read_of(source, 1), image(0))


def test_no_ending_of_an_image_is_an_arrays_name():
    for ending in (*EXTENSIONS, *ARRAYS, ".avif"):
        assert part_of(f"a.npz::x{ending}") == FilePart()
        with pytest.raises(ValueError, match="--array: expected the name of an array"):
            expect_array("--array", f"x{ending}")
    for name in ("image", "0001", "a::b", "x.npy::y", "band.10"):
        expect_array("--array", name)
    for name in ("chw", "x:chw", "nodata=3", "x::nodata=file"):
        with pytest.raises(ValueError, match="--array: expected the name of an array"):
            expect_array("--array", name)


def test_a_run_is_told_how_its_arrays_were_scanned_where_none_fits(tmp_path):
    folder = written(tmp_path / "both", "both")
    commands.data(["scan", str(folder), "--axes", "hwc", "--array", "mask"])
    said = (
        "1 channel of uint16, expected 4 channels as the run's.*; fastequi data scan PLACE "
        "--axes chw --array 'image' --nodata none takes images as the run did"
    )
    with pytest.raises(ValueError, match=said):
        open_source(folder, wanted=Wanted("all", count=4, part="image:chw"))


def test_images_seen_in_training_are_found_under_another_array(tmp_path):
    folder = written(tmp_path / "both", "both")
    commands.data(["scan", str(folder), "--axes", "chw", "--array", "image"])
    (tmp_path / "run").mkdir()
    kept.keep(tmp_path / "run" / kept.NAME, open_source(folder, wanted=Wanted("all")))
    commands.data(["scan", str(folder), "--axes", "hwc", "--array", "mask"])
    assert kept.seen(tmp_path / "run", open_source(folder, wanted=Wanted("all"))) == COUNT


def test_order_of_names_with_parts_makes_no_image_new(tmp_path, caplog):
    for name in ("a", "a.npy-2", "a.npy.b"):
        np.save(tmp_path / f"{name}.npy", planes(0))
    commands.data(["scan", str(tmp_path), "--axes", "chw"])
    with caplog.at_level(logging.INFO):
        assert len(open_source(tmp_path, wanted=Wanted("all"))) == 3
    assert "new" not in caplog.text


def test_parts_of_scans_of_different_things_are_not_merged(tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.npz").write_bytes(saved(images=image(i)))
    commands.data(["scan", str(folder), "--pages", "images", "--part", "1/2"])
    commands.data(["scan", str(folder), "--pages", "first", "--array", "images", "--part", "2/2"])
    with pytest.raises(ValueError, match=r"with --pages first .* with --pages images .* scan one"):
        commands.data(["merge", str(folder)])


@pytest.mark.parametrize("name", ["", "image"])
def test_a_damaged_header_of_a_member_is_noticed(name, tmp_path):
    """It claims fewer values, which no sum of bytes would be compared with."""
    content = saved(image=image(0)).replace(b"(30, 26, 4)", b"(10, 26, 4)")
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"more bytes than its header says|CRC"):
        read_image(tmp_path / "a.npz", array=name)


def test_lists_name_the_classes_of_arrays_too(tmp_path):
    folder = written(tmp_path / "both", "both")
    lines = [f"both/{i}.npz\t{'AB'[i % 2]}\n" for i in range(COUNT)]
    (tmp_path / "l.txt").write_text("".join(lines))
    place = str(tmp_path / "l.txt")
    commands.data(["scan", place, "--axes", "chw", "--array", "image"])
    assert folder.is_dir()
    train, _ = labelled_sets(place, test_data=place, values=DataConfig(channels="all"))
    assert list(train.classes) == ["A", "B"]


def test_a_place_without_an_index_is_read_as_the_run_did(tmp_path):
    folder = written(tmp_path / "both", "both")
    (tmp_path / "0.tar").write_bytes(
        tar({f"{i}.npz": saved(image=planes(i), m=planes(i)[0]) for i in range(COUNT)})
    )
    wanted = Wanted("all", count=4, part="image:chw")
    for place in (folder, tmp_path / "0.tar"):
        source = open_source(str(place), wanted=wanted)
        assert source.part == "image:chw"
        assert counts(source.kinds) == {Kind(4, "uint16"): COUNT}
        np.testing.assert_array_equal(read_of(source, 3), image(3))
    cfg = DataConfig(channels="all", file_part="image:chw")
    assert asked(cfg).part == "image:chw"
    for wrong in ("a/b", "x.npy"):
        with pytest.raises(ValueError, match=r"data\.file_part: expected an end of a name"):
            asked(replace(cfg, file_part=wrong))


def test_an_array_that_is_read_with_wrong_axes_is_doubted(tmp_path, caplog):
    np.save(tmp_path / "a.npy", planes(0))
    assert read_image(tmp_path / "a.npy", "0,1,2").shape == (3, 4, 30)
    said = "more channels (26) than the 4 pixels of a side: is it [C, H, W]? [H, W, C] is read"
    assert said in caplog.text
    caplog.clear()
    read_image(tmp_path / "a.npy", axes="chw")
    assert not caplog.text

"""Pages of TIFF and frames of DICOM: channels of one image, or images of their own."""

import io
import logging
import re
import struct
from dataclasses import replace

import numpy as np
import pytest

from fastequi.cli import commands
from fastequi.data.labelled import labelled_sets
from fastequi.data.single import read_image
from fastequi.data.sources import kept, limits, pages, tiff, tiff_stacks, tiff_tags
from fastequi.data.sources.encoded import header, read
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.index import read as read_index
from fastequi.data.sources.index import write as write_index
from fastequi.data.sources.kinds import Kind, counts
from fastequi.data.sources.parts import FilePart
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.portions import pages_of
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import held_out_of
from fastequi.data.sources.tiff_stacks import PAGES, PARTIAL
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from tests.support import science
from tests.support.science import values
from tests.support.shards import tar


def test_pages_may_be_channels():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    array = values(4, "uint16")
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))

    def written(**options):
        file = io.BytesIO()
        tifffile.imwrite(file, planes, photometric="minisblack", **options)
        return np.frombuffer(file.getvalue(), np.uint8)

    for image in (
        written(ome=True, metadata={"axes": "CYX"}),
        written(imagej=True, metadata={"axes": "CYX"}),
    ):
        for by_request in (False, True):
            assert Kind.of(header(image, by_request).kind) == Kind(4, "uint16")
        np.testing.assert_array_equal(decoded(image, 4), array)
    for image in (
        written(ome=True, metadata={"axes": "ZYX"}),
        written(imagej=True, metadata={"axes": "TYX"}),
    ):  # they say that they are none
        assert Kind.of(header(image, True).kind) == Kind(1, "uint16")
        np.testing.assert_array_equal(decoded(image), array[..., :1])
    for options in ({}, {"bigtiff": True}, {"byteorder": ">"}):
        image = written(metadata=None, **options)
        assert Kind.of(header(image).kind) == Kind(1, "uint16")
        assert Kind.of(header(image, True).kind) == Kind(4, "uint16")
        np.testing.assert_array_equal(decoded(image, 4), array)
    both = written(bigtiff=True, byteorder=">")
    assert header(both) == "a BigTIFF of big-endian numbers, which Pillow does not read"
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        out.write(planes[0], metadata=None)
        out.write(planes[0, :5], metadata=None)
    assert header(np.frombuffer(file.getvalue(), np.uint8), True) == (
        "channel 2's page is unlike the first: no channels of one image"
    )


def test_a_scan_takes_pages_as_channels_by_request(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    for i in range(3):
        planes = np.ascontiguousarray(np.moveaxis(values(4, "uint16", i), -1, 0))
        tifffile.imwrite(tmp_path / f"{i}.tif", planes, photometric="minisblack", metadata=None)
    commands.data(["scan", str(tmp_path)])
    assert "values      1 channel of uint16: 3 images" in capsys.readouterr().out
    commands.data(["scan", str(tmp_path), "--pages", "channels"])
    assert "values      4 channels of uint16: 3 images" in capsys.readouterr().out
    assert counts(open_source(tmp_path, wanted=Wanted("all")).kinds) == {Kind(4, "uint16"): 3}


def stack(folder, name, count=4, depth="uint16"):
    """A TIFF of several images."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    planes = np.stack([values(1, depth, i)[..., 0] for i in range(count)])
    tifffile.imwrite(folder / name, planes, photometric="minisblack", metadata=None)
    return planes


@pytest.mark.parametrize("scanned", [False, True])
def test_a_run_says_that_it_takes_one_page_of_a_stack(scanned, tmp_path, caplog):
    stack(tmp_path, "stack.tif")
    if scanned:
        commands.data(["scan", str(tmp_path)])
    said = "of a TIFF with several pages the first is the image, of OME-TIFF and ImageJ the first"
    with caplog.at_level(logging.WARNING):
        for wanted in (Wanted(), Wanted("all")):
            caplog.clear()
            open_source(tmp_path, wanted=wanted)
            assert said in caplog.text
    with pytest.raises(ValueError, match=rf"1 channel of uint16, expected 4 channels .*; {said}"):
        open_source(tmp_path, wanted=Wanted("all", count=4))
    commands.data(["scan", str(tmp_path), "--pages", "channels"])
    caplog.clear()
    open_source(tmp_path, wanted=Wanted("all"))
    assert said not in caplog.text


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("ZCYX", {"ome": True}),
        ("CZYX", {"ome": True}),
        ("TZCYX", {"ome": True}),
        ("CTZYX", {"ome": True}),
        ("TCZYX", {"ome": True}),
        ("ZCYX", {"imagej": True}),
        ("TZCYX", {"imagej": True}),
    ],
)
def test_planes_of_depth_and_time_are_images_with_all_their_channels(
    tmp_path, capsys, axes, options
):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    sizes = {"T": 2, "Z": 3, "C": 2, "Y": 20, "X": 26}
    whole = np.arange(np.prod([sizes[a] for a in axes]), dtype=np.uint16)
    whole = whole.reshape([sizes[a] for a in axes])
    file = tmp_path / "stack.tif"
    tifffile.imwrite(file, whole, photometric="minisblack", metadata={"axes": axes}, **options)
    planes = np.moveaxis(whole, axes.index("C"), -1).reshape(-1, 20, 26, 2)

    first = header(str(file))
    assert (Kind.of(first.kind), first.format) == (Kind(2, "uint16"), PAGES)
    np.testing.assert_array_equal(decoded(read(str(file)), 2), planes[0])
    np.testing.assert_array_equal(decoded(read(str(file)), 1), planes[0, ..., :1])  # an older index

    commands.data(["scan", str(tmp_path), "--pages", "images"])
    assert f"formats     {len(planes)} TIFF, page by page\n" in capsys.readouterr().out
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert counts(source.kinds) == {Kind(2, "uint16"): len(planes)}
    for i, expected in enumerate(planes):
        np.testing.assert_array_equal(decoded(source.encoded(i)), expected)


@pytest.mark.parametrize("planes", [3, 6, 8])
def test_a_stack_of_other_pages_than_it_says_is_read_page_by_page(tmp_path, planes):
    """An OME-TIFF whose planes are in several files, or that holds several series."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    said = (
        '<?xml version="1.0"?><OME><Image><Pixels DimensionOrder="XYCZT" SizeX="26" SizeY="20" '
        f'SizeC="2" SizeZ="{planes}" SizeT="1" Type="uint16"/></Image></OME>'
    )
    whole = np.arange(10 * 20 * 26, dtype=np.uint16).reshape(10, 20, 26)
    file = tmp_path / "part.tif"
    tifffile.imwrite(file, whole, photometric="minisblack", description=said, metadata=None)
    assert Kind.of(header(str(file)).kind) == Kind(1, "uint16")
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    for i, expected in enumerate(whole):
        np.testing.assert_array_equal(decoded(source.encoded(i))[..., 0], expected)


def described(planes, said, **options):
    """A TIFF of planes [P, Y, X] with the description."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file = io.BytesIO()
    options = {"photometric": "minisblack", "metadata": None, **options}
    tifffile.imwrite(file, planes, description=said, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize("planes", [1, 9])
def test_more_channels_than_pages_are_not_believed(tmp_path, capsys, planes):
    """Of a damaged file, or one of several that hold an image together; a scan says it."""
    said = f'<OME><Image><Pixels SizeC="20000000" SizeZ="{planes}" SizeT="1"/></Image></OME>'
    whole = np.moveaxis(values(3, "uint16"), -1, 0)
    image = described(whole, said)
    found = header(image)
    assert (Kind.of(found.kind), found.format) == (Kind(1, "uint16"), PARTIAL)
    np.testing.assert_array_equal(decoded(image)[..., 0], whole[0])
    assert tiff_stacks.count(io.BytesIO(image.data)) == 3
    (tmp_path / "a.tif").write_bytes(image.tobytes())
    commands.data(["scan", str(tmp_path)])
    said = f"{PARTIAL}: the first page; --pages images takes each that it has\n"
    assert said in capsys.readouterr().out


def test_images_of_imagej_without_pages_are_refused():
    """Of large stacks it writes one page alone."""
    image = described(np.zeros((1, 8, 9), np.uint16), "ImageJ=1.53\nimages=3\nchannels=3\n")
    said = "ImageJ's file of 3 images has 1 pages, expected as many"
    assert header(image) == said
    with pytest.raises(ValueError, match=said):
        decoded(image)


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_a_plane_of_a_long_stack_is_read_without_its_other_pages(monkeypatch, options):
    planes = np.arange(600 * 20, dtype=np.uint16).reshape(600, 4, 5)
    image = described(planes, "ImageJ=1.53\nimages=600\nchannels=2\nslices=300\n", **options)
    loaded, load = [], tiff_tags.load
    for module in (tiff_tags, tiff_stacks):
        monkeypatch.setattr(
            module, "load", lambda file, place: loaded.append(place) or load(file, place)
        )
    assert Kind.of(header(image).kind) == Kind(2, "uint16")
    found = tiff.decoded(io.BytesIO(image.data), page=299)
    np.testing.assert_array_equal(found, np.moveaxis(planes[-2:], 0, -1))
    assert tiff_stacks.count(io.BytesIO(image.data)) == 300
    assert len(loaded) < 8
    with pytest.raises(ValueError, match=r"the TIFF's images are 0 \.\. 299"):
        tiff.decoded(io.BytesIO(image.data), page=300)


def test_a_stack_that_is_cut_off_says_where():
    said = "ImageJ=1.53\nimages=600\nchannels=2\nslices=300\n"
    image = described(np.zeros((600, 4, 5), np.uint16), said)
    found = header(image[: len(image) // 2])
    assert re.fullmatch(r"page \d+ lies beyond the end of the file", found)
    assert 200 < int(found.split()[1]) < 400


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("pages", ["first", "channels", "images"])
def test_a_cut_off_ome_tiff_is_left_out(tmp_path, capsys, pages, share):
    """Its description comes last; without it nothing says that there are channels."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    whole = np.arange(12 * 20 * 26, dtype=np.uint16).reshape(4, 3, 20, 26)
    for name in ("a.tif", "cut.tif"):
        tifffile.imwrite(tmp_path / name, whole, ome=True, metadata={"axes": "ZCYX"})
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: int(share * len(content))])
    commands.data(["scan", str(tmp_path), "--pages", pages])
    said = capsys.readouterr().out
    assert "; 1 left out\n" in said
    assert re.search(
        r"cut.tif \((its description|page \d+) lies beyond the end of the file\)", said
    )


def test_a_cut_off_stack_is_not_one_image(tmp_path, capsys):
    image = described(np.arange(90 * 80, dtype=np.uint16).reshape(90, 8, 10), "").tobytes()
    (tmp_path / "stack.tif").write_bytes(image[: len(image) // 2])
    (tmp_path / "b.tif").write_bytes(science.plain_tiff(values(1, "uint16")))
    (tmp_path / "a.tar").write_bytes(tar({"s.tif": image[: len(image) // 2], "t.tif": image}))
    for place, count in ((tmp_path, 1), (tmp_path / "a.tar", 90)):
        commands.data(["scan", str(place), "--pages", "images"])
        said = capsys.readouterr().out
        assert said.startswith(f"{count} image")
        assert re.search(r"left out    1\n  \S+ \(page \d+ lies beyond the end of the file\)", said)
    commands.data(["scan", str(tmp_path), "--pages", "first"])  # which is there
    assert "2 images" in capsys.readouterr().out


def test_directories_without_their_last_bytes_or_in_circles():
    planes = np.arange(3 * 80, dtype=np.uint16).reshape(3, 8, 10)
    image = bytearray(described(planes, "ImageJ=1.53\nimages=3\nchannels=3\n").tobytes())
    places, _ = tiff_tags.chain_of(io.BytesIO(image))
    ends = [place + 2 + 12 * int.from_bytes(image[place : place + 2], "little") for place in places]

    def expect_all(content):
        content = np.frombuffer(bytes(content), np.uint8)
        assert Kind.of(header(content).kind) == Kind(3, "uint16")
        np.testing.assert_array_equal(decoded(content, 3), np.moveaxis(planes, 0, -1))

    for following in (0, 1 << 31, places[0], places[2]):  # behind the last: none, beyond, a circle
        image[ends[2] : ends[2] + 4] = following.to_bytes(4, "little")
        expect_all(image)
    image[4:8] = bytes(4)  # no first page
    assert header(np.frombuffer(bytes(image), np.uint8)).startswith("a damaged TIFF")
    with pytest.raises(ValueError, match="a damaged TIFF: it has no page"):
        tiff_tags.places_of(io.BytesIO(image))


def test_more_pages_than_65535():
    one = bytearray(science.plain_tiff(np.full((1, 1, 1), 7, np.uint8)))
    (place,) = tiff_tags.places_of(io.BytesIO(one))
    size = 2 + 12 * one[place] + 4
    directory = one[place : place + size - 4]
    many = 70_000
    for k in range(many):
        if k == 0:
            one[place + size - 4 : place + size] = len(one).to_bytes(4, "little")
        else:
            after = len(one) + size
            one += directory + (after if k < many - 1 else 0).to_bytes(4, "little")
    assert tiff_stacks.count(io.BytesIO(one)) == many
    assert tiff.decoded(io.BytesIO(one), page=many - 1).tolist() == [[[7]]]


def test_channels_of_two_types_or_colours_are_refused():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    said = "ImageJ=1.53\nimages=4\nchannels=2\nslices=2\n"
    for other in ({"dtype": np.uint8}, {"photometric": "miniswhite"}):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as out:
            for k in range(4):
                given = other if k == 3 else {}
                plane = np.full((8, 9), 10, given.get("dtype", np.uint16))
                colour = given.get("photometric", "minisblack")
                text = said if k == 0 else None
                out.write(plane, photometric=colour, description=text, metadata=None)
        image = io.BytesIO(file.getvalue())
        assert tiff.decoded(image, page=0).tolist() == np.full((8, 9, 2), 10).tolist()
        with pytest.raises(
            ValueError, match=r"page 3 is uint\d+ \(8, 9\) of photometric [01], anoth"
        ):
            tiff.decoded(image, page=1)


def test_channels_of_two_sizes_are_refused():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    said = '<OME><Image><Pixels SizeC="2" SizeZ="1" SizeT="1"/></Image></OME>'
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        out.write(np.zeros((8, 9), np.uint16), description=said, metadata=None)
        out.write(np.zeros((7, 9), np.uint16), metadata=None)
    image = np.frombuffer(file.getvalue(), np.uint8)
    assert header(image) == "channel 2's page is unlike the first: no channels of one image"
    with pytest.raises(
        ValueError,
        match=r"page 1 is uint16 \(7, 9\) of photometric 1, another channel's page uint16 \(8, 9\)",
    ):
        decoded(image)


def test_channels_of_which_one_is_inverted_are_refused_before_they_are_read(tmp_path, capsys):
    """Their numbers do not mean the same."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        for name in ("minisblack", "miniswhite"):
            out.write(np.ones((8, 9), np.uint16), photometric=name, metadata=None)
    stack(tmp_path, "b.tif")
    commands.data(["scan", str(tmp_path), "--pages", "channels"])
    said = capsys.readouterr().out
    assert "a.tif (channel 2's page is unlike the first: no channels of one image)" in said
    assert said.startswith("1 images")


def test_pages_and_frames_may_be_images(tmp_path, capsys, caplog):
    planes = stack(tmp_path, "stack.tif")
    single = values(1, "uint16", 9)
    (tmp_path / "one.tif").write_bytes(science.plain_tiff(single))
    pydicom = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")
    del pydicom
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    said = capsys.readouterr().out
    assert "5 images" in said
    assert "formats     4 TIFF, page by page, 1 TIFF\n" in said
    source = open_source(tmp_path, wanted=Wanted("all"))
    names = ["one.tif", *(f"stack.tif::{k:04}" for k in range(4))]
    assert list(source.names) == names
    assert source.sizes.tolist() == [[20, 26]] * 5
    for i, expected in enumerate([single[..., 0], *planes]):
        np.testing.assert_array_equal(decoded(source.encoded(i))[..., 0], expected)
    with caplog.at_level(logging.WARNING):
        (tmp_path / "new.tif").write_bytes(science.plain_tiff(single))
        assert len(open_source(tmp_path, wanted=Wanted("all"))) == 5
    assert "not used: 1 new images (new.tif)" in caplog.text
    stack(tmp_path, "stack.tif", count=3)
    with pytest.raises(ValueError, match=r"out of date .*changed: 4 images of 5 \(stack.tif::0000"):
        open_source(tmp_path, wanted=Wanted("all"))
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    assert len(open_source(tmp_path, wanted=Wanted("all"))) == 5


def test_a_scan_takes_pages_as_the_index_before_unless_it_is_told(tmp_path, capsys):
    stack(tmp_path, "stack.tif")
    index = tmp_path / ".fastequi" / "index.fei"

    def scan(*options):
        commands.data(["scan", str(tmp_path), *options])
        return capsys.readouterr().out

    assert not scan().startswith("--pages")
    assert scan("--pages", "images").startswith(
        f"--pages images; the index that it replaces has --pages first: {index}\n4 images"
    )
    assert scan().startswith(f"--pages images, as the index that is there has: {index}\n4 images")
    for k in (1, 2):
        assert scan("--part", f"{k}/2").startswith("--pages images, as the index that is there")
    commands.data(["merge", str(tmp_path)])
    assert "4 images" in capsys.readouterr().out
    assert pages_of(index) == "images"
    before = read_index(index)
    write_index(index, replace(before, pages=""))  # as scans wrote it before
    assert pages_of(index) == "images"
    lines = index.with_suffix(".jsonl")
    write_index(lines, replace(before, pages="channels"))
    assert pages_of(index) == "channels"  # the newer one
    lines.unlink()
    said = f"--pages channels; the index that it replaces has --pages images: {index}\n1 images"
    assert scan("--pages", "channels").startswith(said)
    assert "4 channels of uint16" in scan()
    index.write_bytes(index.read_bytes()[:-1])
    assert not scan().startswith("--pages")  # a damaged one says nothing


def test_frames_of_dicom_may_be_images(tmp_path, capsys):
    frames = np.stack([values(1, "uint16", i)[..., 0] for i in range(3)])
    content = science.dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    (tmp_path / "ct.dcm").write_bytes(content)
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    said = capsys.readouterr().out
    assert "3 images" in said
    assert "formats     3 DICOM, frame by frame\n" in said
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert list(source.names) == [f"ct.dcm::{k:04}" for k in range(3)]
    for i, expected in enumerate(frames):
        np.testing.assert_array_equal(decoded(source.encoded(i))[..., 0], expected)


@pytest.mark.parametrize(("before", "after"), [("images", "first"), ("first", "images")])
def test_a_run_of_other_pages_is_told_which(tmp_path, before, after):
    folder, file = tmp_path / "set", tmp_path / "run" / kept.NAME
    file.parent.mkdir()
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        stack(folder, name)
    commands.data(["scan", str(folder), "--pages", before])
    kept.keep(file, open_source(folder, wanted=Wanted("all")))
    commands.data(["scan", str(folder), "--pages", after])
    said = rf"are gone; fastequi data scan PLACE --pages {before} takes images as the run did"
    with pytest.raises(ValueError, match=said):
        kept.as_begun(file, open_source(folder, wanted=Wanted("all")), 0.1)


@pytest.mark.parametrize("inside", [False, True])
def test_a_page_that_claims_too_many_pixels_is_refused_undecoded(tmp_path, inside):
    """Its tags are read, no memory is taken."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file = io.BytesIO()
    options = {"tile": (16, 16), "compression": "zlib", "metadata": None}
    tifffile.imwrite(file, np.zeros((2, 16, 16), np.uint8), photometric="minisblack", **options)
    image = bytearray(file.getvalue())
    _, second = tiff_tags.places_of(io.BytesIO(image))
    for k in range(image[second]):
        entry = second + 2 + 12 * k
        if int.from_bytes(image[entry : entry + 2], "little") in (256, 257):
            image[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 50_000)
    name, span = "a.tif", None
    (tmp_path / name).write_bytes(image)
    if inside:
        name = "a.tar"
        (tmp_path / name).write_bytes(tar({"a.tif": bytes(image)}))
        span = (512, len(image))
    with pytest.raises(OSError, match="page 1: 2500000000 pixels, more than"):
        read(str(tmp_path / name), span, FilePart(1))


def test_pages_of_a_stack_are_for_training_or_for_testing(tmp_path, caplog):
    planes = np.stack([values(1, "uint8", k, (16, 16))[..., 0] for k in range(8)])
    for kind in "ab":
        for k in range(10):
            file = tmp_path / "set" / kind / f"{k}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(described(planes, "").tobytes())
    commands.data(["scan", str(tmp_path / "set"), "--pages", "images"])
    both = labelled_sets(str(tmp_path / "set"))
    files = [{name.partition("::")[0] for name in one.source.names} for one in both]
    assert [len(each) for each in files] == [16, 4]
    assert not files[0] & files[1]
    assert [len(one.labels) for one in both] == [128, 32]
    commands.data(["scan", str(tmp_path / "set" / "a"), "--pages", "images"])
    one = open_source(tmp_path / "set" / "a").pick(range(8))
    assert held_out_of(one).sum() == 1
    assert "pages of one file, 0.tif, are for training and for testing" in caplog.text


def test_missing_pages_are_said(tmp_path):
    stack(tmp_path, "stack.tif")
    found = header(str(tmp_path / "stack.tif::0009"))
    assert found == "page 9: the TIFF's pages are 0 .. 3"
    with pytest.raises(OSError, match="page 9"):
        read(str(tmp_path / "stack.tif::0009"))
    (tmp_path / "odd::0001").write_bytes(b"x")  # a file of that name is itself
    assert read(str(tmp_path / "odd::0001")).tolist() == [120]


def test_pages_and_frames_of_members_may_be_images(tmp_path, capsys):
    planes = [values(1, "uint16", k) for k in range(7)]
    frames = np.stack(planes[4:])[..., 0]
    volume = science.dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    pages = described(np.stack(planes[:3])[..., 0], "")
    contents = {
        "b/stack.tif": pages.tobytes(),
        "b/one.tif": science.plain_tiff(planes[3]),
        "c/volume.dcm": volume,
    }
    (tmp_path / "0.tar").write_bytes(tar({n: contents[n] for n in ("b/stack.tif", "b/one.tif")}))
    (tmp_path / "1.tar").write_bytes(tar({"a.cls": b"7", "a.tif": pages.tobytes()}))
    place = str(tmp_path / "{0..1}.tar")
    commands.data(["scan", place, "--pages", "images"])
    assert "formats     6 TIFF, page by page, 1 TIFF\n" in capsys.readouterr().out
    source = open_source(place, wanted=Wanted("all"))
    names = [f"0.tar/b/{n}" for n in ("one.tif", *(f"stack.tif::{k:04}" for k in range(3)))]
    assert list(source.names) == [*names, *(f"1.tar/a.tif::{k:04}" for k in range(3))]
    for i, k in enumerate([3, 0, 1, 2, 0, 1, 2]):
        np.testing.assert_array_equal(decoded(source.encoded(i))[..., 0], planes[k][..., 0])
    again = open_source(place, wanted=Wanted("all"))
    assert again.fingerprint() == source.fingerprint()
    chosen = Selection((place,), Patterns(include=("b/stack*",)))
    assert len(open_source(chosen, wanted=Wanted("all"))) == 3

    (tmp_path / "v.tar").write_bytes(tar({"c/volume.dcm": volume}))
    commands.data(["scan", str(tmp_path / "v.tar"), "--pages", "images"])
    assert "formats     3 DICOM, frame by frame\n" in capsys.readouterr().out
    source = open_source(tmp_path / "v.tar", wanted=Wanted("all"))
    for i in range(3):
        np.testing.assert_array_equal(decoded(source.encoded(i))[..., 0], planes[4 + i][..., 0])


def test_a_page_of_a_large_stack_in_a_shard_is_read_alone(tmp_path, monkeypatch):
    from fastequi.data.sources import member_file

    planes = np.arange(200 * 60 * 80, dtype=np.uint16).reshape(200, 60, 80)
    (tmp_path / "a.tar").write_bytes(tar({"s.tif": described(planes, "").tobytes()}))
    commands.data(["scan", str(tmp_path / "a.tar"), "--pages", "images"])
    source = open_source(tmp_path / "a.tar", wanted=Wanted("all"))
    total = []
    readinto = member_file.MemberFile.readinto
    monkeypatch.setattr(
        member_file.MemberFile,
        "readinto",
        lambda self, buffer: total.append(readinto(self, buffer)) or total[-1],
    )
    np.testing.assert_array_equal(decoded(source.encoded(150))[..., 0], planes[150])
    assert planes[0].nbytes < sum(total) < planes.nbytes


def test_dicom_too_short_for_its_frames_is_left_out_once(tmp_path, capsys):
    plane = values(1, "uint16")[..., 0]
    for name, frames in (("a", 2), ("b", 2_000_000_000)):
        pixels = np.stack([plane] * 2).tobytes()
        (tmp_path / f"{name}.dcm").write_bytes(
            science.dicom(plane, NumberOfFrames=frames, PixelData=pixels)
        )
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    said = capsys.readouterr().out
    assert "2 DICOM, frame by frame" in said
    assert "bytes do not hold the 2000000000 frames that it says" in said


def test_pages_that_are_channels_are_limited_together(monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    planes = np.ascontiguousarray(np.moveaxis(values(6, "uint16"), -1, 0))
    file = io.BytesIO()
    tifffile.imwrite(file, planes, photometric="minisblack", metadata=None)
    image = np.frombuffer(file.getvalue(), np.uint8)
    monkeypatch.setattr(limits, "_MOST_VALUES", planes[0].size * 5)
    assert "values, more than" in header(image, True)
    with pytest.raises(ValueError, match="values, more than"):
        tiff.decoded(io.BytesIO(file.getvalue()), 6)
    assert header(image).height == planes.shape[1]


def test_pages_that_lie_otherwise_are_no_channels_of_one_image():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file, plane = io.BytesIO(), values(1, "uint16", size=(20, 20))[..., 0]
    with tifffile.TiffWriter(file) as out:
        for turned in (1, 3):
            tag = (274, "H", 1, turned, True)
            out.write(plane, photometric="minisblack", metadata=None, extratags=[tag])
    with pytest.raises(ValueError, match="page 1 has orientation 3, another channel's page 1"):
        tiff.decoded(io.BytesIO(file.getvalue()), 2)


def test_pages_of_one_file_are_one_draw(tmp_path):
    """Of intervals, as windows of one photograph are."""
    pytest.importorskip("nvidia.dali")
    from fastequi.data.config import DataConfig
    from fastequi.data.loader import make_loader
    from fastequi.paths import SE2

    for name, several in (("a", 3), ("b", 1), ("c", 2)):
        planes = np.stack([values(1, "uint16", k)[..., 0] for k in range(several)])
        (tmp_path / f"{name}.tif").write_bytes(described(planes, "").tobytes())
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    cfg = DataConfig(
        image_size=16, source_size=16, batch_size=6, channels="0", mean=(0.5,), std=(0.2,)
    )
    with make_loader(source, cfg, SE2(), seed=0) as loader:
        ids = next(loader).sample_ids
        images, photographs = loader.images_of(ids), loader.photographs_of(ids)
    assert sorted(images.tolist()) == list(range(6))
    assert photographs.tolist() == [[0, 0, 0, 3, 4, 4][i] for i in images]


def test_of_several_ome_images_the_first_counts():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    first, file = values(4, "uint16"), io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as out:
        for planes, axes in ((np.moveaxis(first, -1, 0), "CYX"), (values(9, "uint16").T, "ZYX")):
            out.write(planes, photometric="minisblack", metadata={"axes": axes})
    image = np.frombuffer(file.getvalue(), np.uint8)
    found = header(image)
    assert (Kind.of(found.kind), found.format) == (Kind(4, "uint16"), PAGES)
    np.testing.assert_array_equal(decoded(image, 4), first)


def ome(folder, *series, name="series.tif"):
    """An OME-TIFF of images of other sizes, each of (planes, axes)."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    with tifffile.TiffWriter(folder / name, ome=True) as out:
        for planes, axes in series:
            rgb = axes.endswith("S")
            out.write(planes, photometric="rgb" if rgb else "minisblack", metadata={"axes": axes})
    return folder / name


def planes_of(count, i=0, size=(20, 26)):
    return np.stack([values(1, "uint16", 7 * i + k, size)[..., 0] for k in range(count)])


def test_series_of_one_file_are_images_one_behind_the_other(tmp_path, capsys):
    """Of channels, of depth, and an RGB picture of the slide."""
    first, second = planes_of(4), planes_of(3, 1, (12, 14))
    label = values(3, "uint16", 9)
    ome(tmp_path, (first, "CYX"), (second, "ZYX"), (label, "YXS"))
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    assert "5 images" in capsys.readouterr().out
    file = tmp_path / "series.tif"
    np.testing.assert_array_equal(read_image(file, page=0).numpy(), first)
    for k in range(3):
        np.testing.assert_array_equal(read_image(file, page=1 + k)[0].numpy(), second[k])
    np.testing.assert_array_equal(read_image(file, page=4).permute(1, 2, 0).numpy(), label)
    np.testing.assert_array_equal(read_image(file).numpy(), first)


def test_series_of_other_files_leave_the_first_as_it_is(tmp_path):
    """A file says what is in others too, of other sizes."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    whole = ome(tmp_path, (planes_of(3), "CYX"), (planes_of(2, 1, (12, 14)), "ZYX"))
    with tifffile.TiffFile(whole) as opened:
        said = opened.pages[0].description
    file = tmp_path / "alone.tif"
    tifffile.imwrite(file, planes_of(3), photometric="minisblack", metadata=None, description=said)
    np.testing.assert_array_equal(read_image(file).numpy(), planes_of(3))


def test_an_index_that_numbered_pages_otherwise_is_told(tmp_path, caplog, capsys):
    stack(tmp_path, "a.tif")
    index = tmp_path / "i.jsonl"
    commands.data(["scan", str(tmp_path), "--pages", "images", "--index", str(index)])
    open_source(tmp_path, index=index, wanted=Wanted("all"))
    assert "scan again" not in caplog.text
    text = index.read_bytes()
    assert text.count(b'"numbering": 2') == 1
    index.write_bytes(text.replace(b'"numbering": 2', b'"numbering": 1'))
    open_source(tmp_path, index=index, wanted=Wanted("all"))
    assert "overviews of GeoTIFF were images" in caplog.text


def said_of(folder, said, *taken):
    """A TIFF of these pages that carries a description of somebody else."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    with tifffile.TiffWriter(folder / "said.tif") as out:
        for k, page in enumerate(taken):
            rgb = page.ndim == 3
            options = {"description": said if not k else None, "metadata": None}
            out.write(page, photometric="rgb" if rgb else "minisblack", **options)
    return folder / "said.tif"


def pixels(number, sizes, inside):
    size = " ".join(f'Size{name}="{sizes.get(name, 1)}"' for name in "CZT")
    head = f'<Image ID="Image:{number}"><Pixels DimensionOrder="XYCZT" {size}>'
    return f"{head}{inside}</Pixels></Image>"


def shapes_of(file):
    count = pages.count(str(file))
    return [tuple(read_image(file, page=k).shape[:1]) for k in range(count)]


def test_an_rgb_series_need_not_say_its_samples(tmp_path):
    grey, rgb = planes_of(1)[0], values(3, "uint16", 9)
    channel = '<Channel ID="C:0"/>'
    said = f"<OME>{pixels(0, {}, channel)}{pixels(1, {'C': 3}, channel)}</OME>"
    file = said_of(tmp_path, said, grey, rgb)
    assert shapes_of(file) == [(1,), (3,)]


@pytest.mark.parametrize(
    "places",
    [
        ('<TiffData IFD="2" PlaneCount="2"/>', '<TiffData IFD="0" PlaneCount="2"/>'),
        ('<TiffData FirstC="0" IFD="1"/><TiffData FirstC="1" IFD="0"/>', '<TiffData IFD="2"/>'),
    ],
)
def test_planes_that_are_pages_in_another_order_are_images_by_themselves(places, tmp_path, caplog):
    both = "".join(pixels(k, {"C": 2}, inside) for k, inside in enumerate(places))
    file = said_of(tmp_path, f"<OME>{both}</OME>", *planes_of(4))
    assert header(str(file)).format == PARTIAL
    assert shapes_of(file) == [(1,)] * 4


def test_a_file_of_several_has_the_series_that_are_its_own(tmp_path):
    def inside(file):
        return f'<TiffData IFD="0"><UUID FileName="{file}.tif">urn:uuid:{file}</UUID></TiffData>'

    both = pixels(0, {"C": 2}, inside("a")) + pixels(1, {"Z": 2}, inside("b"))
    for own, shapes in (("a", [(2,)]), ("b", [(1,), (1,)])):
        said = f'<OME UUID="urn:uuid:{own}">{both}</OME>'
        assert shapes_of(said_of(tmp_path, said, *planes_of(2))) == shapes

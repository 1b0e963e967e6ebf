"""What headers say of channels, depth and RGB, and which images a run takes by that."""

import io
import logging
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastequi.cli import commands
from fastequi.data.sources import kept, tiff
from fastequi.data.sources.encoded import header, read
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.index import read as read_index
from fastequi.data.sources.index import write as write_index
from fastequi.data.sources.kinds import DEPTHS, NO_RGB, RGB8, Kind, counts
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.portions import pages_of
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.tiff import PAGES, PARTIAL
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from tests.support import science
from tests.support.science import values
from tests.support.shards import tar


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


COLOURS = Image.fromarray(values(3, "uint8"))
GREY = COLOURS.convert("L")
CASES = {
    "rgb.jpg": (saved(COLOURS, "JPEG"), RGB8),
    "grey.jpg": (saved(GREY, "JPEG"), Kind(1)),
    "cmyk.jpg": (saved(COLOURS.convert("CMYK"), "JPEG"), RGB8),
    "rgb.png": (saved(COLOURS, "PNG"), RGB8),
    "palette.png": (saved(COLOURS.quantize(7), "PNG"), RGB8),
    "alpha.png": (saved(COLOURS.convert("RGBA"), "PNG"), Kind(4, "uint8", True)),
    "grey alpha.png": (saved(COLOURS.convert("LA"), "PNG"), Kind(2)),
    "two.png": (saved(COLOURS.convert("1"), "PNG"), Kind(1)),
    "grey 16.png": (science.png(values(1, "uint16")), Kind(1, "uint16")),
    "rgb.bmp": (saved(COLOURS, "BMP"), RGB8),
    "rgb.webp": (saved(COLOURS, "WEBP"), RGB8),
    "grey.pgm": (saved(GREY, "PPM"), Kind(1)),
    "deep.pgm": (b"P5\n2 3\n4095\n" + bytes(12), Kind(1, "uint16")),
    "rgb.tif": (saved(COLOURS, "TIFF"), RGB8),
    "palette.tif": (saved(COLOURS.quantize(7), "TIFF"), RGB8),
    "bits.tif": (saved(COLOURS.convert("1"), "TIFF"), Kind(1)),
    "float.tif": (saved(GREY.convert("F"), "TIFF"), Kind(1, "float32")),
    "twelve.tif": (science.plain_tiff(values(12, "uint16")), Kind(12, "uint16")),
    "five.tif": (science.plain_tiff(values(5, "float32")), Kind(5, "float32")),
    "grey.npy": (science.npy(values(1, "uint16")[..., 0]), Kind(1, "uint16")),
    "nine.npy": (science.npy(values(9, "uint8")), Kind(9)),
    "big endian.npy": (science.npy(values(2, "uint16").astype(">u2")), Kind(2, "uint16")),
    "half.npy": (science.npy(values(2, "float32").astype(np.float16)), Kind(2, "float32")),
    "four.npz": (science.npz(values(4, "uint8")), Kind(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_header_says_what_the_values_are(tmp_path, name, caplog):
    content, expected = CASES[name]
    (tmp_path / name).write_bytes(content)
    for image in (str(tmp_path / name), np.frombuffer(content, np.uint8)):
        found = header(image)
        assert not isinstance(found, str), found
        assert Kind.of(found.kind) == expected
        assert found.bytes == len(content)
    if not name.startswith("deep"):
        assert (found.height, found.width) == (20, 26)
    assert not caplog.records  # Pillow's own, of many channels


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (science.npy(np.zeros((3, 4), complex)), "values of type complex128, expected numbers"),
        (science.npy(np.zeros((2, 3, 4, 5))), r"an array of shape \(2, 3, 4, 5\), expected \[H, W"),
        (science.npy(np.zeros((0, 4))), r"an array of shape \(0, 4\)"),
        (science.npy(np.array([[{}]], object)), "values of type object"),
        (science.npy(np.zeros((3, 4)))[:20], "EOF|reading"),
        (b"PK\x03\x04 and more", "zip"),
        (b"II*\0\x08\0\0\0", "."),
        (b"II*\0\xff\xff\xff\xff", "."),
    ],
)
def test_what_is_no_image_is_said(content, reason):
    found = header(np.frombuffer(content, np.uint8))
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_arrays_that_claim_too_many_pixels_are_refused():
    head = science.npy(np.zeros((1, 1), np.uint8))
    huge = head.replace(b"(1, 1), }  ", b"(99999, 99999), }"[:17].ljust(11))
    found = header(np.frombuffer(huge, np.uint8))
    assert isinstance(found, str)
    assert "refused undecoded: 9999800001 pixels" in found


def test_several_arrays_in_a_file_are_refused():
    file = io.BytesIO()
    np.savez(file, a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    assert header(np.frombuffer(file.getvalue(), np.uint8)) == (
        "2 arrays in a .npz (a.npy, b.npy), expected one"
    )


def test_dicom_headers():
    grey = values(1, "uint16")[..., 0]
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    for content, expected in (
        (science.dicom(grey), Kind(1, "uint16")),
        (science.dicom(grey, **scaled), Kind(1, "float32")),
        (science.dicom(grey.view(np.int16)), Kind(1, "float32")),
        (science.dicom(values(1, "uint8")[..., 0]), Kind(1)),
    ):
        found = header(np.frombuffer(content, np.uint8))
        assert (found.height, found.width, found.format) == (20, 26, "DICOM")
        assert Kind.of(found.kind) == expected
    several = header(np.frombuffer(science.dicom(grey, NumberOfFrames=4), np.uint8))
    assert several == "4 frames in a DICOM file, expected one; --pages images of a scan"


def test_kinds_are_numbers():
    for depth in DEPTHS:
        for kind in (Kind(1, depth), Kind(3, depth, True), Kind(4095, depth)):
            assert Kind.of(kind.code) == kind
            assert 0 < kind.code < 1 << 16
    assert Kind.of(0) is None
    assert Kind(4096).code == 0
    codes = np.array([RGB8.code] * 3 + [Kind(2).code] * 5 + [0], np.uint16)
    assert list(counts(codes).items()) == [(Kind(2), 5), (RGB8, 3)]
    assert counts(np.broadcast_to(np.uint16(RGB8.code), 7)) == {RGB8: 7}
    assert str(Kind(12, "uint16")) == "12 channels of uint16"
    assert str(RGB8) == "3 channels (RGB) of uint8"


def test_a_run_takes_what_most_images_are():
    codes = np.array([Kind(12, "uint16").code] * 4 + [Kind(12).code] * 2 + [RGB8.code], np.uint16)
    assert Wanted("all").unfit(codes) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have"
    }
    assert Wanted("0,2", one_depth=True).unfit(codes) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have",
        Kind(12).code: (
            "12 channels of uint8, but data.value_range is in the numbers of one depth, uint16 as "
            "most have; data.value_range=dtype takes several"
        ),
    }
    assert Wanted("all").unfit(codes[3:]) == {  # as many of eight bits
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have"
    }
    assert Wanted("all").unfit(codes[-2:]) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 (as many have another)"
    }
    assert set(Wanted("0,12").unfit(codes)) == set(map(int, codes))  # none has thirteen
    assert Wanted().unfit(codes) == {}
    flagged = codes | np.array([NO_RGB] * 6 + [0], np.uint16)
    assert set(Wanted().unfit(flagged)) == {
        Kind(12, "uint16").code | NO_RGB,
        Kind(12).code | NO_RGB,
    }
    assert set(Wanted("all").unfit(flagged)) == {RGB8.code}
    assert Wanted("all").unfit(np.append(codes, np.uint16(0)))[0] == (
        "channels that are not read as they are"
    )
    for unknown in (None, np.zeros(3, np.uint16)):
        assert Wanted().unfit(unknown) == {}
        with pytest.raises(ValueError, match=r"data.channels: expected rgb, as an index of before"):
            Wanted("all").unfit(unknown)


def test_depths_mix_unless_a_range_or_a_run_says_one():
    """In evaluation, which knows a run's channels alone, as when it began."""
    depths = ("uint8", "uint16", "float32")
    codes = np.array([Kind(1, depth).code for depth in depths for _ in range(3)], np.uint16)
    assert Wanted("all").unfit(codes) == Wanted("0", count=1).unfit(codes) == {}
    assert Wanted("0", count=1, depth="uint16").unfit(codes) == {
        Kind(1, "float32").code: "1 channel of float32, expected uint16 at most as the run's"
    }
    assert Wanted("all", one_depth=True).unfit(codes[:6]) == {
        Kind(1).code: (
            "1 channel of uint8, but data.value_range is in the numbers of one depth, uint16 (as "
            "many have another); data.value_range=dtype takes several"
        )
    }


def test_images_that_do_not_fit_are_named_and_counted(tmp_path, caplog):
    contents = {f"{i}.tif": science.plain_tiff(values(5, "uint16", i)) for i in range(30)}
    contents["b.png"] = CASES["rgb.png"][0]
    folder = science.write(tmp_path / "set", contents)
    with pytest.raises(
        ValueError,
        match=r"30 of 31 images .* read as data\.channels=rgb asks: .*, of which no RGB is made",
    ):
        open_source(folder)
    source = open_source(folder, wanted=Wanted("all"))
    assert len(source) == 30
    assert "1 of 31 images" in caplog.text
    assert "b.png (3 channels (RGB) of uint8, expected 5 as most have); left out" in caplog.text
    assert counts(source.kinds) == {Kind(5, "uint16"): 30}
    assert counts(source.pick([3, 1]).kinds) == {Kind(5, "uint16"): 2}


def test_an_rgb_run_says_what_it_loses(tmp_path, caplog):
    contents = {f"{i}.png": science.png(values(1, "uint16", i)) for i in range(3)}
    contents |= {"c.png": CASES["alpha.png"][0], "d.png": CASES["rgb.png"][0]}
    with caplog.at_level(logging.WARNING):
        assert len(open_source(science.write(tmp_path / "set", contents))) == 5
    assert "3 images of 1 channel of uint16 are made 8-bit RGB; --data.channels all" in caplog.text
    assert "1 images of 4 channels of uint8 are made 8-bit RGB" in caplog.text
    assert "of 3 channels (RGB)" not in caplog.text


def test_arrays_are_images_only_where_there_are_no_others(tmp_path, caplog):
    """Beside photographs they are labels or features."""
    alone = science.write(tmp_path / "a", {"1.npy": CASES["nine.npy"][0]})
    science.write(alone / "deeper", {"2.npz": science.npz(values(9, "uint8"))})
    found = open_source(alone, wanted=Wanted("all"))
    assert list(found.names) == ["1.npy", "deeper/2.npz"]
    beside = science.write(alone, {"photo.png": CASES["rgb.png"][0]})
    with caplog.at_level(logging.INFO):
        assert list(open_source(beside).names) == ["photo.png"]
    assert "passed over 1 × .npy beside images, 1 × .npz beside images" in caplog.text


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
        "channel 2's page is unlike the first, which channels are not"
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


def test_stacks_that_were_not_scanned_are_told_how_to_be(tmp_path, caplog):
    stack(tmp_path, "stack.tif")
    said = "of a TIFF with several pages the first is the image, of OME-TIFF and ImageJ the first"
    with caplog.at_level(logging.WARNING):
        open_source(tmp_path)  # of 8-bit RGB the first is what is wanted
        assert said not in caplog.text
        open_source(tmp_path, wanted=Wanted("all"))
        assert said in caplog.text
    with pytest.raises(ValueError, match=rf"1 channel of uint16, expected 4 channels .*; {said}"):
        open_source(tmp_path, wanted=Wanted("all", count=4))


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
    assert tiff.count(io.BytesIO(image.data)) == 3
    (tmp_path / "a.tif").write_bytes(image.tobytes())
    commands.data(["scan", str(tmp_path)])
    said = f"{PARTIAL}: the first page; --pages images takes those that it has\n"
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
    loaded, load = [], tiff._load
    monkeypatch.setattr(
        tiff, "_load", lambda file, place: loaded.append(place) or load(file, place)
    )
    assert Kind.of(header(image).kind) == Kind(2, "uint16")
    found = tiff.decoded(io.BytesIO(image.data), page=299)
    np.testing.assert_array_equal(found, np.moveaxis(planes[-2:], 0, -1))
    assert tiff.count(io.BytesIO(image.data)) == 300
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
    places, _ = tiff._chain(io.BytesIO(image))
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
        tiff._places(io.BytesIO(image))


def test_more_pages_than_65535():
    one = bytearray(science.plain_tiff(np.full((1, 1, 1), 7, np.uint8)))
    (place,) = tiff._places(io.BytesIO(one))
    size = 2 + 12 * one[place] + 4
    directory = one[place : place + size - 4]
    many = 70_000
    for k in range(many):
        if k == 0:
            one[place + size - 4 : place + size] = len(one).to_bytes(4, "little")
        else:
            after = len(one) + size
            one += directory + (after if k < many - 1 else 0).to_bytes(4, "little")
    assert tiff.count(io.BytesIO(one)) == many
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
    assert header(image) == "channel 2's page is unlike the first, which channels are not"
    with pytest.raises(
        ValueError,
        match=r"page 1 is uint16 \(7, 9\) of photometric 1, another channel's page uint16 \(8, 9\)",
    ):
        decoded(image)


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


def test_dicom_needs_no_extension(tmp_path, capsys, caplog):
    """As archives write it; of other files without one none is taken, nor the table of a medium."""
    content = [science.dicom(values(1, "uint16", i)[..., 0]) for i in range(4)]
    names = ["IM0", "b.dcm", "s1/1.2.840.10008.7", "s1/IM1"]
    (tmp_path / "set" / "s1").mkdir(parents=True)
    folder = science.write(tmp_path / "set", dict(zip(names, content, strict=True)))
    others = {"README": b"x" * 200, "s1/log.1": b"", "s1/DICOMDIR": content[0], ".im": content[0]}
    science.write(folder, others)
    os.mkfifo(folder / "s1" / "pipe")
    with caplog.at_level(logging.INFO):
        source = open_source(folder, wanted=Wanted("all"))
    assert list(source.names) == names
    assert "passed over 3 × without extension, 1 × .1, 1 × hidden" in caplog.text
    for i in range(4):
        np.testing.assert_array_equal(decoded(source.encoded(i)), values(1, "uint16", i))
    commands.data(["scan", str(folder)])
    assert "4 images" in capsys.readouterr().out
    caplog.clear()
    assert list(open_source(folder, wanted=Wanted("all")).names) == names
    assert "not used" not in caplog.text
    (tmp_path / "list.txt").write_text("set/IM0\nset/README\nset/s1/IM1\n")
    listed = open_source(tmp_path / "list.txt", wanted=Wanted("all"))
    assert list(listed.names) == ["set/IM0", "set/s1/IM1"]
    (folder / "a.png").write_bytes(CASES["rgb.png"][0])
    (folder / ".fastequi" / "index.fei").unlink()
    assert list(open_source(folder).names) == ["a.png"]


def test_a_scan_names_the_few_images_of_another_kind(tmp_path, capsys):
    contents = {f"{i}.npy": science.npy(values(5, "uint16", i)) for i in range(12)}
    contents |= {f"odd{i}.npy": science.npy(values(4, "uint16", i)) for i in range(4)}
    commands.data(["scan", str(science.write(tmp_path / "set", contents))])
    said = capsys.readouterr().out
    assert (
        "values      4 channels of uint16: 4 images (odd0.npy, odd1.npy, odd2.npy, ...)\n" in said
    )
    assert "values      5 channels of uint16: 12 images\n" in said


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
    said = rf"are gone; fastequi data scan PLACE --pages {before} takes pages as the run did"
    with pytest.raises(ValueError, match=said):
        kept.as_begun(file, open_source(folder, wanted=Wanted("all")), 0.1)


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


def test_dicom_without_an_extension_in_shards(tmp_path):
    """Where there are no images, and only by its bytes."""
    image = science.dicom(values(1, "uint16")[..., 0])
    (tmp_path / "0.tar").write_bytes(tar({"s/IM1": image, "s/IM0": image, "README": b"text"}))
    found = open_source(tmp_path / "0.tar", wanted=Wanted("all"))
    assert list(found.names) == ["0.tar/s/IM0", "0.tar/s/IM1"]
    np.testing.assert_array_equal(decoded(found.encoded(0)), values(1, "uint16"))
    (tmp_path / "1.tar").write_bytes(tar({"a.png": CASES["rgb.png"][0]}))
    assert list(open_source(tmp_path / "{0..1}.tar").names) == ["1.tar/a.png"]
    (tmp_path / "2.tar").write_bytes(tar({"a.png": CASES["rgb.png"][0], "IM0": image}))
    assert list(open_source(tmp_path / "2.tar").names) == ["2.tar/a.png"]


def test_arrays_of_a_set_with_images_are_labels(tmp_path, caplog):
    """In whatever shard they are, and in a list."""
    photo, label = CASES["rgb.png"][0], science.npy(values(1, "uint8"))
    (tmp_path / "0.tar").write_bytes(tar({"a.png": photo, "b.png": photo}))
    (tmp_path / "1.tar").write_bytes(tar({"a.npy": label, "b.npy": label}))
    with caplog.at_level(logging.INFO):
        assert list(open_source(tmp_path / "{0..1}.tar").names) == ["0.tar/a.png", "0.tar/b.png"]
    assert "passed over 2 × .npy beside images" in caplog.text
    assert len(open_source(tmp_path / "1.tar")) == 2
    folder = science.write(tmp_path / "files", {"a.png": photo, "b.npy": label})
    (folder / "list.txt").write_text("a.png\nb.npy\n")
    assert list(open_source(folder / "list.txt").names) == ["a.png"]
    (folder / "other.txt").write_text("b.npy\n")
    assert list(open_source(folder / "other.txt").names) == ["b.npy"]


def test_an_image_of_too_many_channels_is_left_out_alone(tmp_path, caplog):
    contents = {f"{i}.npy": science.npy(values(5, "uint16", i)) for i in range(12)}
    contents["odd.npy"] = science.npy(np.zeros((3, 4, 5000), np.uint16))
    source = open_source(science.write(tmp_path / "a", contents), wanted=Wanted("all"))
    assert len(source) == 12
    assert "odd.npy (channels that are not read as they are)" in caplog.text


def test_sixteen_bits_of_jpeg_2000_are_seen():
    """Pillow opens it as 8-bit RGB."""
    content = bytearray(saved(COLOURS, "JPEG2000", no_jp2=True))
    assert Kind.of(header(np.frombuffer(bytes(content), np.uint8)).kind) == RGB8
    for i in range(3):
        content[42 + 3 * i] = 15
    found = header(np.frombuffer(bytes(content), np.uint8))
    assert Kind.of(found.kind) == Kind(3, "uint16", True)


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


def test_what_was_left_out_without_a_package_is_scanned_again(tmp_path, monkeypatch, caplog):
    deep = {f"{i}.tif": science.tiff_of(values(3, "uint16", i)) for i in range(3)}
    plain = {f"p{i}.tif": science.plain_tiff(values(3, "uint16", i)) for i in range(3)}
    folder = science.write(tmp_path / "set", {**deep, **plain})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tifffile", None)
        commands.data(["scan", str(folder)])
        commands.data(["scan", str(folder), "--part", "1/1"])
        with pytest.raises(ValueError, match=r"this TIFF needs tifffile.*; --exclude leaves"):
            open_source(folder, wanted=Wanted("all"))
    said = (
        f"; 3 for tifffile, which can be imported now, were left out: fastequi data scan {folder} "
        f"reads them again"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        open_source(folder, wanted=Wanted("all"))
    assert len(open_source(folder, wanted=Wanted("all"), tolerate=0.6)) == 3
    assert said in caplog.text
    commands.data(["scan", str(folder), "--part", "1/1"])  # goes on with what it left out
    commands.data(["merge", str(folder)])
    assert len(open_source(folder, wanted=Wanted("all"))) == 6
    commands.data(["scan", str(folder)])
    assert len(open_source(folder, wanted=Wanted("all"))) == 6


def test_shards_are_listed_again_once_a_package_is_there(tmp_path, monkeypatch, caplog):
    images = {f"{i}.dcm": science.dicom(values(1, "uint16", i)[..., 0]) for i in range(3)}
    shard = tmp_path / "a.tar"
    shard.write_bytes(tar({**images, "b.npy": science.npy(values(1, "uint16"))}))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pydicom", None)
        assert len(open_source(shard, wanted=Wanted("all"), tolerate=0.9)) == 1
    with caplog.at_level(logging.INFO):
        assert len(open_source(shard, wanted=Wanted("all"))) == 4
    assert "of members 3 for pydicom, which can be imported now, were left out; the" in caplog.text


def test_where_a_scan_left_all_out_its_reasons_are_said(tmp_path, monkeypatch, capsys):
    frames = np.stack([values(1, "uint16", i)[..., 0] for i in range(3)])
    content = science.dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    folder = science.write(tmp_path / "set", {f"{i}.dcm": content for i in range(3)})
    with pytest.raises(SystemExit, match="1"):
        commands.data(["scan", str(folder)])
    said, file = capsys.readouterr(), folder / ".fastequi" / "index.fei"
    assert "0 images, 0 kB; 3 left out" in said.out
    assert said.err.endswith(f"fastequi: all 3 images are left out of {file}\n")
    with pytest.raises(ValueError, match=r"3 of 3 images .*3 frames in a DICOM .*--pages images"):
        open_source(folder, wanted=Wanted("all"))
    single = science.dicom(frames[0])
    other = science.write(tmp_path / "other", {"a.dcm": single, "b.dcm": single})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pydicom", None)
        with pytest.raises(SystemExit, match="1"):
            commands.data(["scan", str(folder), str(other)])
        assert capsys.readouterr().err.endswith("index.fei\n")
    with pytest.raises(ValueError, match=r"2 for pydicom, which can be imported now, were left"):
        open_source(other, wanted=Wanted("all"))

"""Images whose values nothing here reads as they are: told or left out by name, never squeezed
without a word."""

import base64
import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fastequi.cli import commands
from fastequi.data.channels import ALL
from fastequi.data.single import read_image
from fastequi.data.sources.encoded import header
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.kinds import DEEPER, MORE_BITS, Kind, siz_of
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from fastequi.evaluate.geometry.reading import Reading
from tests.support import science
from tests.support.science import values

# 4 x 4 pixels by OpenJPEG: four channels of 12 bits, two of 16, one of 16 that are signed
RGBA_12 = (
    "|4;u>05Sjo000040000400000000000000400004000000000000avG0Sf^E3jqNO0RjI~01N;C009611Oxy9|6BkBKw$r"
    "503`qcLvm$dbY)~9VtF7>aAj^vP(?=|c4cyNX>V>IGA=bPH2;tQ3IG5A004&o0soWF<ZKiv)zW(4lR+#A@&^H&lXKeb=<;"
    "&pC?CAQ0ng-Y320I;)iJb+&>JFK=c3!Y0CV7jPrl$S#8p4f<ZuOI7O(2Ly?!J$Djg?H8s*F06UNj2zWYqp8h_8^Y!894y7"
    "QjaI+E5wWrf;#K@`@Z4(Oz38(Y}J|Je"
)
LA_16 = (
    "|4;u>04x9i000040000400000000000000400004000000000000IvI0S^HI|55-900001000C800IA800cmQ|6~9q00Bd"
    "CWnpw>WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*00000Q2+t|lh6DxcoZqs(t6;NK`aUK2LYUubK33b@^a)TAH2"
    "W;p^Jad{4jJ0Xi_iLF|>-%8zNihqT9OwbKrwdzThpyRXn8&|Je"
)
SIGNED = (
    "|4;u>04V?f000040000400000000000000400004000000000000EBy0sm3}3;+NC0RR951ONg5TmS?>fd6CwB>(|Ka%Ew"
    "3Wn>^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000004)Fk|C7M}M!*y))zW(4lR+#A@&^H&lXKeb=<;&pC?CAQ0sq"
    "+"
)
SLICES = 32997


def grey_alpha_png():
    """Pillow writes no such file: of 16 bits, 6 x 4 pixels."""

    def chunk(name, content):
        sum_of = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", sum_of)

    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 6, 4, 16, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def changed(content, tag, value):
    """A TIFF of ours with another number in a tag."""
    entry = struct.pack("<HH", tag, 3)
    at = content.index(entry)
    return content[: at + 8] + struct.pack("<H", value) + content[at + 10 :]


def twelve_bits():
    return changed(science.plain_tiff(values(1, "uint16")), 258, 12)


def cmyk():
    return science.tiff_of(values(4, "uint16"), photometric="separated", planarconfig="contig")


SQUEEZED = {
    "rgba.j2k": lambda: base64.b85decode(RGBA_12),
    "la.j2k": lambda: base64.b85decode(LA_16),
    "la.png": grey_alpha_png,
    "twelve.tif": twelve_bits,
    "cmyk.tif": cmyk,
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_what_is_read_as_8_bits_alone_is_told(name, tmp_path, caplog):
    file = tmp_path / name
    file.write_bytes(SQUEEZED[name]())
    assert header(str(file)).kind == DEEPER
    said = f"1 image is made 8-bit RGB, of {MORE_BITS}"
    with caplog.at_level(logging.WARNING):
        assert len(open_source(tmp_path)) == 1
        assert said in caplog.text
        Reading().sizes_of([file])
    assert f"{file} and the like: images of {MORE_BITS} are made 8-bit RGB, which" in caplog.text
    with pytest.raises(ValueError, match="more than 8 bits, which nothing here reads of this kind"):
        open_source(tmp_path, wanted=Wanted(ALL))
    with pytest.raises(ValueError, match="has channels that are not read as they are"):
        read_image(file)


def test_a_scan_counts_them(tmp_path, capsys):
    for name, content in SQUEEZED.items():
        (tmp_path / name).write_bytes(content())
    commands.data(["scan", str(tmp_path)])
    assert "  5 are of more than 8 bits, which nothing here reads" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rgba.j2k", "la.j2k", "la.png"])
def test_their_values_are_not_those_of_8_bits(name):
    """As where a file of a run was replaced by one."""
    image = np.frombuffer(SQUEEZED[name](), np.uint8)
    with pytest.raises(ValueError, match="more than 8 bits, which nothing here reads"):
        decoded(image)


def test_what_a_jpeg_2000_says_of_its_channels():
    found = {name: siz_of(base64.b85decode(x)) for name, x in (("a", RGBA_12), ("b", SIGNED))}
    assert found == {"a": (4, 12, False), "b": (1, 16, True)}
    assert siz_of(b"\xff\x4f\xff\x51" + bytes(10)) is None


def many_channels():
    content = bytearray(base64.b85decode(LA_16))
    at = content.index(b"\xff\x4f\xff\x51") + 40
    content[at : at + 2] = struct.pack(">H", 7)
    return bytes(content)


def volume():
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file = io.BytesIO()
    planes = np.zeros((8, 32, 32), np.uint16)
    options = {"volumetric": True, "tile": (16, 16, 16), "photometric": "minisblack"}
    tifffile.imwrite(file, planes, metadata=None, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: base64.b85decode(SIGNED), "a JPEG 2000 of signed values, which are not read"),
        (many_channels, "a JPEG 2000 of 7 channels, of which 1 to 4 are read"),
        (
            lambda: changed(science.plain_tiff(values(1, "float32")), 339, 6),
            "complex values, which are not read",
        ),
        (volume, "a volume of 8 slices in one page, which is not read"),
    ],
)
def test_what_is_not_read_is_named(content, why):
    assert header(np.frombuffer(content(), np.uint8)) == why


def with_overviews(folder):
    """As GDAL writes a cloud-optimised GeoTIFF: an image, its halves, and a mask."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    image = values(1, "uint16")[..., 0]
    with tifffile.TiffWriter(folder / "cog.tif") as out:
        for array, kind in ((image, 0), (image[::2, ::2], 1), (image > 0, 4), (image[::4, ::4], 1)):
            out.write(array, photometric="minisblack", subfiletype=kind, metadata=None)
    return image


@pytest.mark.parametrize("pages", ["", "images", "channels"])
def test_overviews_and_masks_are_no_pages(pages, tmp_path, capsys, caplog):
    image = with_overviews(tmp_path)
    commands.data(["scan", str(tmp_path), *(["--pages", pages] if pages else [])])
    said = capsys.readouterr().out
    assert said.startswith("1 images")
    assert "page" not in said.replace("page by page", "")
    assert "1 channel of uint16: 1 images" in said
    assert "several pages" not in caplog.text
    np.testing.assert_array_equal(read_image(tmp_path / "cog.tif")[0].numpy(), image)


def test_values_that_stand_for_no_data_are_counted(tmp_path, capsys):
    for i in range(3):
        tags = {"extratags": [(42113, "s", 0, "-9999", True)]} if i else {}
        content = science.tiff_of(values(2, "float32", i), planarconfig="contig", **tags)
        (tmp_path / f"{i}.tif").write_bytes(content)
    commands.data(["scan", str(tmp_path)])
    said = capsys.readouterr().out
    assert "2 name a value that stands for no data (GDAL_NODATA): it is measured and used" in said
    assert "formats     3 TIFF" in said


def test_a_channel_of_a_jpeg_2000_keeps_its_depth():
    """Of one channel and three nothing changed; made by Pillow."""
    file = io.BytesIO()
    grey = Image.fromarray(values(1, "uint16")[..., 0])
    grey.save(file, "JPEG2000", irreversible=False)
    found = header(np.frombuffer(file.getvalue(), np.uint8))
    assert Kind.of(found.kind) == Kind(1, "uint16")

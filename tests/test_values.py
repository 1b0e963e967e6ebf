"""Every format and library gives the values that were written, exactly, at any depth."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from fastequi.data import values as values_module
from fastequi.data.pixels import Pixels
from fastequi.data.scan import examined, scan
from fastequi.data.scan_report import plain
from fastequi.data.sources.encoded import header
from fastequi.data.sources.kinds import DEEPER, NO_RGB, RGB8, Kind
from fastequi.data.sources.listing import folder_listing
from fastequi.data.values import as_rgb, decoded, is_for_dali, of_depth
from tests.support import science
from tests.support.science import given, values

CPU = torch.device("cpu")


WRITTEN = {
    "plain tiff": science.plain_tiff,
    "planar tiff": science.tiff_of,
    "tiled tiff": lambda x: science.tiff_of(x, planarconfig="contig", tile=(16, 16)),
    "deflated tiff": lambda x: science.tiff_of(x, planarconfig="contig", compression="zlib"),
    "bigtiff": lambda x: science.tiff_of(x, planarconfig="contig", bigtiff=True),
    "big endian tiff": lambda x: science.tiff_of(x, planarconfig="contig", byteorder=">"),
    "npy": science.npy,
    "fortran npy": lambda x: science.npy(np.asfortranarray(x)),
    "npz": science.npz,
}


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("how", WRITTEN)
def test_values_are_those_that_were_written(how, depth):
    for channels in (1, 2, 3, 4, 12):
        array = values(channels, depth)
        content = WRITTEN[how](array)
        found = given(content, Pixels.whole(Kind(channels, depth)))
        assert not isinstance(found, str), found
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(decoded(np.frombuffer(content, np.uint8)), array)


def test_more_channels_than_a_tiff_has():
    for depth in ("uint8", "uint16", "float32"):
        array, pixels = values(33, depth), Pixels.whole(Kind(33, depth))
        assert pixels.as_arrays
        for write in (science.npy, science.npz, science.plain_tiff):
            np.testing.assert_array_equal(given(write(array), pixels), array)


def test_dali_decodes_what_it_can():
    for content, channels, depth, direct in (
        (science.plain_tiff(values(12, "uint16")), 12, "uint16", True),
        (science.tiff_of(values(12, "uint16")), 12, "uint16", False),
        (science.plain_tiff(values(2, "float32")), 2, "float32", False),
        (science.png(values(1, "uint16")), 1, "uint16", True),
        (science.png(values(4, "uint8")), 4, "uint8", True),
        (science.npy(values(3, "uint8")), 3, "uint8", False),
        (science.npy(values(33, "uint8")), 33, "uint8", True),
    ):
        image = np.frombuffer(content, np.uint8)
        assert is_for_dali(image, Pixels.whole(Kind(channels, depth))) == direct


def test_shallower_values_are_scaled_as_the_types_are():
    small = values(2, "uint8")
    for content in (science.plain_tiff(small), science.tiff_of(small), science.npz(small)):
        wide = given(content, Pixels.whole(Kind(2, "uint16")))
        np.testing.assert_array_equal(wide, small.astype(np.uint16) * 257)
        real = given(content, Pixels.whole(Kind(2, "float32")))
        np.testing.assert_allclose(real, small / 255, rtol=1e-6)
    np.testing.assert_array_equal(
        of_depth(np.array([[[-3], [9]]], np.int32), "float32"), [[[-3.0], [9.0]]]
    )
    np.testing.assert_array_equal(of_depth(np.array([True, False]), "uint8"), [255, 0])
    with pytest.raises(ValueError, match="values of type uint16, expected uint8"):
        of_depth(values(1, "uint16"), "uint8")


def test_pngs_of_sixteen_bits_keep_them():
    array = values(1, "uint16")
    np.testing.assert_array_equal(given(science.png(array), Pixels.whole(Kind(1, "uint16"))), array)


def test_what_lies_on_its_side_is_turned():
    array = values(5, "uint16")
    for orientation in range(1, 9):
        content = science.tiff_of(
            array, planarconfig="contig", extratags=[(274, "H", 1, orientation, True)]
        )
        found = header(np.frombuffer(content, np.uint8))
        turned = given(content, Pixels.whole(Kind(5, "uint16")))
        assert turned.shape[:2] == (found.height, found.width)
        picture = Image.fromarray(array[..., 0])
        picture.getexif()[274] = orientation
        expected = np.asarray(ImageOps.exif_transpose(picture))
        np.testing.assert_array_equal(turned[..., 0], expected)


def test_white_may_be_zero():
    array = values(1, "uint8")
    content = science.tiff_of(array, photometric="miniswhite")
    np.testing.assert_array_equal(given(content, Pixels.whole(Kind(1))), 255 - array)


def test_dicom_in_the_modalitys_units():
    stored = values(1, "uint16") >> 4
    whole = Pixels.whole(Kind(1, "uint16"))
    np.testing.assert_array_equal(given(science.dicom(stored), whole), stored)
    inverted = science.dicom(
        stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11
    )
    np.testing.assert_array_equal(given(inverted, whole), 4095 - stored)
    real = Pixels.whole(Kind(1, "float32"))
    scaled = science.dicom(stored, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_array_equal(given(scaled, real), 2.0 * stored - 1024)
    signed = (stored.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(given(science.dicom(signed), real), signed)
    both = science.dicom(
        stored,
        RescaleSlope=2,
        RescaleIntercept=-1024,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )
    np.testing.assert_array_equal(given(both, real), 2.0 * (4095 - stored.astype(float)) - 1024)


def test_dicom_files_of_pydicom():
    """Scanners' own files: CT and MR, palettes, RGB by planes, JPEG, RLE, JPEG 2000."""
    pydicom = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")
    from pydicom.data import get_testdata_file

    kinds = {
        "CT_small.dcm": Kind(1, "float32"),
        "MR_small.dcm": Kind(1, "float32"),
        "examples_overlay.dcm": Kind(1, "uint16"),
        "examples_palette.dcm": Kind(3, "uint8", True),
        "SC_rgb_dcmtk_+eb+cr.dcm": Kind(3, "uint8", True),
        "SC_rgb_rle_16bit.dcm": Kind(3, "uint16", True),
        "SC_rgb_jpeg_dcmtk.dcm": Kind(3, "uint8", True),
        "SC_rgb_small_odd_big_endian.dcm": Kind(3, "uint8", True),
    }
    for name, kind in kinds.items():
        path = get_testdata_file(name, download=False)
        content = Path(path).read_bytes()
        found = header(np.frombuffer(content, np.uint8))
        assert Kind.of(found.kind) == kind, name
        values = given(content, Pixels.whole(kind))
        assert values.shape == (found.height, found.width, kind.channels)
        stored = pydicom.dcmread(path)
        if kind.channels == 1:
            slope, intercept = stored.get("RescaleSlope", 1), stored.get("RescaleIntercept", 0)
            expected = stored.pixel_array * float(slope) + float(intercept)
            np.testing.assert_array_equal(values[..., 0], expected)
        elif "palette" not in name:
            np.testing.assert_array_equal(values, stored.pixel_array)
    several = header(get_testdata_file("rtdose.dcm", download=False))
    assert several.startswith("15 frames in a DICOM file, expected one; fastequi data scan PLACE")


@pytest.mark.parametrize("form", ["npy", "tif"])
@pytest.mark.parametrize(
    ("name", "rounded"),
    [
        ("uint32", "; whole numbers beyond 2^24 are rounded"),
        ("float64", "; seven digits of a number are kept"),
        ("int16", ""),
        ("float16", ""),
    ],
)
def test_a_scan_says_which_types_are_read_as_floats(form, name, rounded, tmp_path, capsys):
    array = (1000 * abs(values(2, "float32"))).astype(name)
    write = {"npy": science.npy, "tif": science.tiff_of}[form]
    science.write(tmp_path, {f"{i}.{form}": write(array) for i in range(2)})
    said = f"  2 images are of {name}, read as float32{rounded}\n"
    commands.data(["scan", str(tmp_path)])
    assert said in capsys.readouterr().out
    commands.data(["scan", str(tmp_path), "--nodata", "5"])
    assert said in capsys.readouterr().out
    single = write(values(2, "float32"))
    science.write(tmp_path, {f"{i}.{form}": single for i in range(2)})
    commands.data(["scan", str(tmp_path)])
    assert "read as float32" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (science.npy(values(3, "uint16")), Kind(2, "uint16"), "3 channels, expected 2"),
        (science.plain_tiff(values(5, "uint16")), Kind(4, "uint16"), "5 channels, expected 4"),
        (science.npy(values(1, "uint16")), Kind(1), "values of type uint16, expected uint8"),
        (science.plain_tiff(values(2, "uint16"))[:-9], Kind(2, "uint16"), ""),
        (science.npz(values(2, "uint16"))[:-9], Kind(2, "uint16"), "zip"),
        (science.npy(values(2, "uint16"))[:-9], Kind(2, "uint16"), ""),
    ],
    ids=str,
)
def test_what_is_not_as_expected_is_said(content, kind, reason):
    found = given(content, Pixels.whole(kind))
    assert isinstance(found, str)
    assert reason in found


def test_values_that_are_not_finite_are_refused():
    array = values(2, "float32")
    array[3, 4, 0], array[5, 6, 1] = np.nan, np.inf
    for write in (science.npy, science.plain_tiff):
        assert given(write(array), Pixels.whole(Kind(2, "float32"))) == (
            "2 of its values are not finite; a scan with --nodata file fills them"
        )


def test_rgb_of_arrays():
    for channels in (1, 2, 3, 4):
        for depth in ("uint8", "uint16"):
            array = values(channels, depth)
            found = as_rgb(array)
            assert found.shape == (20, 26, 3)
            kept = array[..., :3] if channels >= 3 else array[..., :1]
            expected = np.round(kept / np.iinfo(depth).max * 255)
            np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
            np.testing.assert_array_equal(given(science.npy(array), None), found)
    for wrong in (values(5, "uint8"), values(3, "float32")):
        with pytest.raises(ValueError, match="of which no RGB is made"):
            as_rgb(wrong)


def test_a_scan_measures_the_values(tmp_path):
    """Of all formats alike; of damaged images nothing."""
    arrays = [values(3, "uint16", i) for i in range(4)]
    writers = science.plain_tiff, science.tiff_of, science.plain_tiff, science.tiff_of
    contents = {f"{i}.tif": writers[i](array) for i, array in enumerate(arrays)}
    contents["bad.tif"] = contents["0.tif"][:-200]
    found = scan(folder_listing(science.write(tmp_path / "a", contents)), 1)
    assert list(found.index.left_out) == ["bad.tif"]
    every = np.concatenate([array.reshape(-1, 3) for array in arrays]).astype(np.float64)
    by_kind = found.index.measured
    assert sum(one.images for one in by_kind.values()) == 4
    weights = [one.images for one in by_kind.values()]
    mean = np.average([one.mean for one in by_kind.values()], 0, weights)
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-12)
    assert "3 channels" in found.summary()
    assert "--data.channels all --data.value-range percentiles" in found.summary()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        *((0, "0"), (65535.0, "65535"), (33562.7, "33563"), (9_999_999, "9999999"), (1e7, "1e+07")),
        *((999.96, "1000"), (12.3456, "12.35"), (-0.5, "-0.5"), (1e-4, "0.0001"), (9e-5, "9e-05")),
        *((-1234.5678, "-1235"), (0.000123456, "0.0001235"), (float("nan"), "nan")),
    ],
)
def test_a_value_is_written_as_people_do(number, shown):
    assert plain(number) == shown


def test_a_scan_prints_values_of_16_bits_without_an_exponent(tmp_path):
    image = np.zeros((20, 30, 1), np.uint16)
    image[:10] = 65535
    image[10, 0] = 12345
    found = scan(
        folder_listing(science.write(tmp_path / "a", {"0.tif": science.plain_tiff(image)}))
    )
    ends = (f"{image.mean():.0f}", f"{image.std():.0f}")
    numbers = next(line.split() for line in found.summary().splitlines() if "65535" in line)
    assert numbers == ["0", "0", "0", "12345", "65535", "65535", *ends]


def test_columns_of_a_scan_s_table_do_not_touch(tmp_path):
    image = np.full((20, 26, 1), -3.4028235e38, np.float32)
    image[3:] = 1.0
    found = scan(folder_listing(science.write(tmp_path, {"a.npy": science.npy(image)})))
    line = next(line for line in found.summary().splitlines() if line.startswith("        0 "))
    assert line.split() == ["0", "-3.4e+38", "-3.4e+38", "1", "1", "1", "-5.104e+37", "1.215e+38"]


def test_a_scan_of_photographs_of_16_bits_advises_what_keeps_their_colours(tmp_path):
    arrays = [values(3, "uint16", i) for i in range(3)]
    options = {"photometric": "rgb", "planarconfig": "contig"}
    contents = {f"{i}.tif": science.tiff_of(arrays[i], **options) for i in range(3)}
    found = scan(folder_listing(science.write(tmp_path / "a", contents)), 1).summary()
    assert "values      3 channels (RGB) of uint16: 3 images" in found
    assert "  --data.channels all (red, green, blue; mean and std stay ImageNet's)" in found
    assert "percentiles" not in found


def test_a_scan_prints_the_options_of_an_rgb_run(tmp_path):
    arrays = [values(3, "uint8", i) for i in range(3)]
    contents = {f"{i}.png": science.png(array) for i, array in enumerate(arrays)}
    found = scan(folder_listing(science.write(tmp_path / "a", contents)), 1)
    every = np.concatenate([array.reshape(-1, 3) for array in arrays]) / 255
    mean, std = (" ".join(f"{v:.4g}" for v in x) for x in (every.mean(0), every.std(0)))
    assert f"  --data.mean {mean} --data.std {std}" in found.summary()


def test_what_nothing_reads_with_its_depth_stays_for_rgb_runs():
    """Grey with alpha of 16 bits: RGB is made of it; it is not counted."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    rows = b"".join(b"\0" + bytes(range(4 * 6)) for _ in range(5))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, 4, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    image = np.frombuffer(png, np.uint8)
    code = header(image).kind
    assert code == DEEPER
    assert "more than 8 bits, which nothing" in given(png, Pixels.whole(Kind(2, "uint16")))
    assert examined([image], code, 1) == ([(5, 6)], None)


def lying(image, form, orientation, **options):
    """Encoded bytes with EXIF's number of how an image lies, and the image upright."""
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image.save(file, form, **{"tiffinfo" if form == "TIFF" else "exif": exif, **options})
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    return file.getvalue(), upright


@pytest.mark.parametrize("orientation", range(1, 9))
def test_four_channels_that_lie_on_their_side(orientation):
    """DALI would write beyond the end of such a PNG."""
    for size in ((26, 20), (20, 26), (400, 300)):
        image = Image.fromarray(values(4, "uint8", size=size))
        content, upright = lying(image, "PNG", orientation)
        found = given(content, Pixels.whole(Kind(4, "uint8", True)))
        np.testing.assert_array_equal(found, np.asarray(upright))
    whole = header(np.frombuffer(content, np.uint8))
    assert examined([np.frombuffer(content, np.uint8)], whole.kind, 1)[0] == [found.shape[:2]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["P", "CMYK", "1"])
def test_tiffs_that_pillow_decodes_are_turned_once(mode, orientation):
    image = Image.fromarray(values(3, "uint8")).convert(mode)
    content, upright = lying(image, "TIFF", orientation)
    found = header(np.frombuffer(content, np.uint8))
    expected = np.asarray(upright if mode == "1" else upright.convert("RGB"))
    expected = expected.reshape(*expected.shape[:2], -1)
    if expected.dtype == bool:
        expected = expected * np.uint8(255)
    made = given(content, Pixels.whole(Kind.of(found.kind)))
    assert (found.height, found.width) == made.shape[:2]
    np.testing.assert_array_equal(made, expected)


def test_what_is_measured_of_planes_is_of_every_plane(tmp_path):
    """DALI makes RGB of the first one alone."""
    arrays = [values(3, "uint8", i) // np.uint8([1, 2, 4]) for i in range(3)]
    contents = {
        "a.tif": science.tiff_of(arrays[0]),
        "b.tif": science.tiff_of(arrays[1], planarconfig="contig"),
        "c.tif": science.plain_tiff(arrays[2]),
    }
    found = scan(folder_listing(science.write(tmp_path / "a", contents)), 1).index
    assert not found.left_out
    total = sum(one.images * np.array(one.mean) for one in found.measured.values()) / 3
    expected = np.concatenate([array.reshape(-1, 3) for array in arrays]).mean(0)
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_rgb_is_made_of_what_it_was_made_of_before():
    """Of whatever Pillow opens, although its channels may not be read as they are."""
    grey = Image.fromarray(values(1, "uint8")[..., 0])
    deep = values(1, "uint16")[..., 0] // 2
    for content in (
        lying(grey.convert("F"), "TIFF", 1)[0],
        lying(Image.fromarray(deep.astype(np.int32)), "TIFF", 1)[0],
        science.tiff_of(deep.astype(np.int16)[..., None]),
        lying(Image.fromarray(values(3, "uint8")).convert("CMYK"), "TIFF", 1)[0],
    ):
        assert not header(np.frombuffer(content, np.uint8)).kind & NO_RGB
    for content in (
        science.plain_tiff(values(12, "uint16")),
        science.npy(values(5, "uint8")),
        science.npy(values(3, "float32")),
    ):
        assert header(np.frombuffer(content, np.uint8)).kind & NO_RGB


def test_rgb_of_odd_tiffs_is_right():
    """Of two channels, and of 16 bits where planes follow one another or white is 0."""
    for array, options in (
        (values(2, "uint8"), {"planarconfig": "contig"}),
        (values(2, "uint16"), {"planarconfig": "contig"}),
        (values(3, "uint16"), {"photometric": "rgb"}),
    ):
        found = given(science.tiff_of(array, **options), None)
        np.testing.assert_array_equal(found, as_rgb(array))
    inverted = science.tiff_of(values(1, "uint16"), photometric="miniswhite")
    np.testing.assert_array_equal(given(inverted, None), as_rgb(65535 - values(1, "uint16")))


def test_dicom_without_a_slope():
    stored = values(1, "uint16")[..., 0]
    content = science.dicom(stored, RescaleSlope="", RescaleIntercept="")
    found = given(content, Pixels.whole(Kind(1, "uint16")))
    np.testing.assert_array_equal(found[..., 0], stored)


def test_kinds_of_which_no_image_decodes_are_not_measured(tmp_path):
    grey, deep = science.png(values(1, "uint8")), science.png(values(1, "uint16"))
    contents = {"a.png": science.png(values(3, "uint8")), "b.png": grey[:-30], "c.png": deep[:-30]}
    found = scan(folder_listing(science.write(tmp_path / "a", contents)), 1)
    assert sorted(found.index.left_out) == ["b.png", "c.png"]
    assert [Kind.of(code) for code in found.index.measured] == [RGB8]
    assert "values      3 channels (RGB) of uint8: 1 images" in found.summary()


def test_whole_numbers_that_float32_rounds_are_told_once(caplog):
    values_module._tell_rounded.cache_clear()
    exact = np.array([[[1 << 24], [-(1 << 24)], [3 << 30]]], np.int64)
    assert (of_depth(exact, "float32") == exact).all()
    assert not caplog.messages
    for _ in range(2):
        found = of_depth(np.array([[[33554433]]], np.int64), "float32")
        assert found.item() == 33554432
    (said,) = caplog.messages
    assert said.startswith("values of int64 beyond 2^24 are rounded")
    for name, value in (("uint32", 2**32 - 1), ("uint64", 2**63 + 1)):
        of_depth(np.array([[[value]]], name), "float32")
        assert f"values of {name}" in caplog.text
    for value in (2**53 + 1, -(2**53) - 1, 2**63 - 1):
        values_module._tell_rounded.cache_clear()
        caplog.clear()
        of_depth(np.array([[[value]]], np.int64), "float32")
        assert len(caplog.messages) == 1

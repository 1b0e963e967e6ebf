"""Pixels without data: numbers that a file or an option says, and values that are not finite."""

import numpy as np
import pytest

from fastequi.cli import commands
from fastequi.data import read_image
from fastequi.data.sources import nodata, pages, tiff_tags
from fastequi.data.sources.encoded import header
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.kinds import NO_RGB, Kind, counts
from fastequi.data.sources.parts import FilePart, name_of, nodata_of, parsed
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from fastequi.evaluate.geometry.reading import Reading
from fastequi.report.visualize import _opened
from tests.support.science import values
from tests.support.shards import tar


def margin(array, number):
    """With a margin of two rows, and a hole in the second channel."""
    array = array.copy()
    array[:2] = number
    array[10, 11, 1:2] = number
    return array


def expected(array, number):
    """By hand, pixel by pixel."""
    found = array.copy()
    for c in range(array.shape[2]):
        there = [
            value
            for value in array[..., c].ravel().tolist()
            if np.isfinite(value) and value != number
        ]
        for y, x in np.ndindex(array.shape[:2]):
            if not np.isfinite(array[y, x, c]) or array[y, x, c] == number:
                found[y, x, c] = min(there) if there else 0
    return found


def geotiff(file, array, said, **options):
    """With GDAL's tag, channels one after the other."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    tags = [] if said is None else [(tiff_tags.NODATA, "s", 0, said, True)]
    given = {"photometric": "minisblack", "planarconfig": "separate", **options}
    if array.shape[2] == 1:
        planes, given["planarconfig"] = planes[0], None
    tifffile.imwrite(file, planes, extratags=tags, metadata=None, **given)


CASES = [  # type, the number in the file, what GDAL_NODATA says of it
    ("uint16", 65535, "65535"),
    ("uint16", 0, "0"),
    ("uint8", 255, "255"),
    ("int16", -9999, "-9999"),
    ("float32", -9999.0, "-9999"),
    ("float32", np.finfo(np.float32).min, "-3.40282346638528860e+38"),
    ("float32", np.nan, "nan"),
    ("float32", np.nan, None),
    ("float64", -1.7976931348623157e308, "-1.7976931348623157e+308"),
]


@pytest.mark.parametrize(("kind", "number", "said"), CASES)
def test_files_say_which_number_stands_for_no_data(kind, number, said, tmp_path, capsys):
    arrays = []
    for i in range(3):
        whole = values(3, "float32" if kind[0] == "f" else "uint8", i).astype(kind) + 1
        arrays.append(margin(whole, number))
        geotiff(tmp_path / f"{i}.tif", arrays[-1], said)
    commands.data(["scan", str(tmp_path), "--nodata", "file"])
    out = capsys.readouterr().out
    assert "formats     3 TIFF\n  read as filled where there is GDAL_NODATA or no number" in out
    assert "is measured and used as" not in out
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert list(source.names) == [f"{i}.tif::nodata=file" for i in range(3)]
    for i, array in enumerate(arrays):
        found = decoded(source.encoded(i))
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, expected(array, number))
        image = read_image(tmp_path / f"{i}.tif", nodata="file")
        np.testing.assert_array_equal(
            image.numpy(), np.moveaxis(found, -1, 0).astype(image.numpy().dtype)
        )
    least = min(expected(array, number).min() for array in arrays)
    measured = next(iter(source.measured.values()))
    assert min(measured.percentiles[0.0]) == pytest.approx(least, rel=2**-8)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
@pytest.mark.parametrize("how", ["npy", "planes", "npz", "shard"])
def test_arrays_have_it_by_a_number(kind, how, tmp_path, capsys):
    array = margin(values(4, kind), 7)
    if kind == "float32":
        array[4, 4] = np.nan, np.inf, -np.inf, 3
    file, options = tmp_path / f"a.{'npz' if how == 'npz' else 'npy'}", []
    if how == "npz":
        np.savez(file, image=array, mask=array[..., 0])
        options = ["--array", "image"]
    else:
        np.save(file, np.moveaxis(array, -1, 0) if how == "planes" else array)
        options = ["--axes", "chw"] * (how == "planes")
    place = tmp_path
    if how == "shard":
        place = tmp_path / "a.tar"
        place.write_bytes(tar({"a.npy": file.read_bytes()}))
    commands.data(["scan", str(place), *options, "--nodata", "7"])
    assert "filled where there is 7 or no number" in capsys.readouterr().out
    source = open_source(place, wanted=Wanted("all"))
    assert source.names[0].endswith("::nodata=7")
    assert counts(source.kinds) == {Kind(4, kind): 1}
    np.testing.assert_array_equal(decoded(source.encoded(0)), expected(array, 7))
    commands.data(["scan", str(place)])
    assert "filled where there is 7 or no number, as the index that is" in capsys.readouterr().out
    if kind == "uint16":
        commands.data(["scan", str(place), "--nodata", "none"])
        assert "; the index that it replaces has " in capsys.readouterr().out
        found = open_source(place, wanted=Wanted("all"))
        np.testing.assert_array_equal(decoded(found.encoded(0)), array)


def test_pages_have_it_too(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    planes = np.stack([margin(values(1, "uint16", i), 9)[..., 0] for i in range(3)])
    planes[2] = values(1, "uint16", 5)[..., 0]
    tifffile.imwrite(tmp_path / "s.tif", planes, photometric="minisblack", metadata=None)
    commands.data(["scan", str(tmp_path), "--pages", "images", "--nodata", "9"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert list(source.names) == [f"s.tif::{k:04}::nodata=9" for k in range(3)]
    for k in range(3):
        np.testing.assert_array_equal(decoded(source.encoded(k)), expected(planes[k][..., None], 9))
    image = read_image(tmp_path / "s.tif", page=1, nodata=9)
    np.testing.assert_array_equal(image[0].numpy(), expected(planes[1][..., None], 9)[..., 0])
    with pytest.raises(ValueError, match="--nodata: expected --pages first or images beside it"):
        commands.data(["scan", str(tmp_path), "--pages", "channels", "--nodata", "9"])


def test_channels_in_pages_that_a_file_says_are_filled(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    array = margin(values(4, "uint16"), 9)
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, planes, photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    found = decoded(pages.read(str(file), FilePart(nodata="9")))
    np.testing.assert_array_equal(found, expected(array, 9))


def test_numbers_are_the_files_own_where_white_is_0(tmp_path):
    array = margin(values(1, "uint16"), 12)
    geotiff(tmp_path / "a.tif", array, "12", photometric="miniswhite")
    found = read_image(tmp_path / "a.tif", nodata="file")[0].numpy()
    missing = array[..., 0] == 12
    upright = 65535 - array[..., 0]
    np.testing.assert_array_equal(found[~missing], upright[~missing])
    assert set(found[missing].tolist()) == {int(upright[~missing].min())}


def test_a_palette_is_left_as_it_is(tmp_path, capsys):
    from PIL import Image

    pixels = Image.fromarray(values(1, "uint8")[..., 0]).convert("P")
    pixels.save(tmp_path / "a.tif")
    pixels.save(tmp_path / "b.png")
    before = read_image(tmp_path / "a.tif", "rgb")
    assert (read_image(tmp_path / "a.tif", "rgb", nodata="0") == before).all()
    commands.data(["scan", str(tmp_path), "--nodata", "0"])
    assert "formats     1 PNG, 1 TIFF\n" in capsys.readouterr().out.replace(
        "1 TIFF, 1 PNG", "1 PNG, 1 TIFF"
    )


def test_images_without_any_data_are_left_out(tmp_path, capsys):
    for i in range(3):
        array = values(2, "float32", i)
        if i == 1:
            array[...] = np.nan
        np.save(tmp_path / f"{i}.npy", array)
    commands.data(["scan", str(tmp_path)])
    said = "a scan with --nodata file fills them"
    assert f"1.npy (1040 of its values are not finite; {said})" in capsys.readouterr().out
    commands.data(["scan", str(tmp_path), "--nodata", "file"])
    assert "1.npy::nodata=file (no pixel has data)" in capsys.readouterr().out
    assert len(open_source(tmp_path, wanted=Wanted("all"), tolerate=0.5)) == 2


def test_a_channel_without_data_becomes_0():
    array = values(3, "float32")
    array[..., 1] = np.nan
    nodata.fill(array, None)
    assert (array[..., 1] == 0).all()
    np.testing.assert_array_equal(array[..., 0], values(3, "float32")[..., 0])


@pytest.mark.parametrize("number", [-1.0, 256.0, 0.5, np.nan, np.inf, 1e300])
def test_numbers_that_a_type_does_not_hold_are_nowhere(number):
    array = values(2, "uint8")
    nodata.fill(array, number)
    np.testing.assert_array_equal(array, values(2, "uint8"))


def test_a_scan_says_that_files_have_it_and_how_it_is_filled(tmp_path, capsys):
    geotiff(tmp_path / "a.tif", margin(values(3, "uint16"), 0), "0")
    commands.data(["scan", str(tmp_path)])
    said = capsys.readouterr().out
    assert (
        "1 name a value that stands for no data (GDAL_NODATA): it is measured and used as" in said
    )
    assert "any other; --nodata file puts the least value of the channel in its place" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("white", "--nodata: expected file, none or a number, got 'white'"),
        ("", "--nodata: expected file, none or a number, got ''"),
        *(
            (text, "got ")
            for text in ("+-5", "\u0663", "0x5", "1_0", "1e400", "1" * 400, "0" * 5000)
        ),
        ("0", "--nodata 0: expected TIFF, .npy or .npz as images, got none in "),
    ],
)
def test_wrong_requests_are_refused(value, said, tmp_path):
    from PIL import Image

    Image.fromarray(values(3, "uint8")).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=said):
        commands.data(["scan", str(tmp_path), "--nodata", value])


@pytest.mark.parametrize(
    ("said", "kept"),
    [("+5", "5"), ("-0", "0"), ("-0.0", "0"), ("5.", "5"), (" 1E20", "1e+20"), ("+inf", "inf")],
)
def test_a_number_has_one_form_which_names_end_with(said, kept):
    part = FilePart(nodata=nodata_of("--nodata", said))
    assert part.nodata == kept
    assert parsed(name_of("a.npy", part)) == ("a.npy", part)


def test_a_file_that_says_nonsense_is_named(tmp_path):
    geotiff(tmp_path / "a.tif", values(3, "uint16"), "black")
    with pytest.raises(OSError, match=r"a\.tif: GDAL_NODATA is 'black', expected a number"):
        read_image(tmp_path / "a.tif", nodata="file")
    for given in ("black", True):
        with pytest.raises(ValueError, match="nodata: expected file, none or a number"):
            read_image(tmp_path / "a.tif", nodata=given)


def test_colours_are_colours_when_they_are_filled(tmp_path):
    rgb = margin(values(3, "uint8"), 0)
    geotiff(tmp_path / "a.tif", rgb, "0", photometric="rgb")
    commands.data(["scan", str(tmp_path), "--nodata", "file"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    assert counts(source.kinds) == {Kind(3, "uint8", rgb=True): 1}


def test_filled_tiff_is_not_taken_for_an_array_with_other_axes(tmp_path, capsys, caplog):
    geotiff(tmp_path / "a.tif", margin(values(30, "uint16"), 0), "0")
    commands.data(["scan", str(tmp_path), "--nodata", "file"])
    open_source(tmp_path, wanted=Wanted("all"))
    assert "30 channels of uint16" in (said := capsys.readouterr().out)
    assert "is it [" not in said + caplog.text


def test_every_page_says_its_own_number(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    pages_of = [margin(values(1, "uint16", i), 5 + i)[..., 0] for i in range(3)]
    with tifffile.TiffWriter(tmp_path / "s.tif") as out:
        for i, page in enumerate(pages_of):
            tag = [(tiff_tags.NODATA, "s", 0, str(5 + i), True)]
            out.write(page, photometric="minisblack", extratags=tag, metadata=None)
    commands.data(["scan", str(tmp_path), "--pages", "images", "--nodata", "file"])
    source = open_source(tmp_path, wanted=Wanted("all"))
    for i, page in enumerate(pages_of):
        np.testing.assert_array_equal(decoded(source.encoded(i)), expected(page[..., None], 5 + i))


def test_a_report_counts_pages_and_what_is_not_filled(tmp_path, capsys):
    from PIL import Image

    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    Image.fromarray(values(1, "uint8")[..., 0]).convert("P").save(tmp_path / "palette.tif")
    stack = np.stack([values(1, "uint16", i)[..., 0] for i in range(2)])
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", metadata=None)
    white = {"photometric": "miniswhite"}
    geotiff(tmp_path / "white.tif", values(1, "uint16"), None, **white)
    commands.data(["scan", str(tmp_path), "--nodata", "0"])
    said = capsys.readouterr().out
    assert "formats     3 TIFF\n" in said
    assert "1 TIFF with a palette, YCbCr, CMYK, L*a*b* or fewer than 8 bits, or no TIFF," in said
    assert "the first page of each" in said
    assert "1 of 3 TIFF files are MINISWHITE" in said
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    said = capsys.readouterr().out
    assert "formats     2 TIFF, page by page, 2 TIFF\n" in said or (
        "formats     2 TIFF, 2 TIFF, page by page\n" in said
    )


def test_another_format_under_a_tiffs_name_is_read_as_it_is(tmp_path, capsys):
    from PIL import Image

    Image.fromarray(values(3, "uint8")).save(tmp_path / "a.tif", "PNG")
    commands.data(["scan", str(tmp_path), "--nodata", "0"])
    assert "1 images, " in capsys.readouterr().out
    source = open_source(tmp_path, wanted=Wanted("all"))
    np.testing.assert_array_equal(decoded(source.encoded(0)), values(3, "uint8"))
    with pytest.raises(ValueError, match=r"nodata: expected a file whose name ends with \.tif"):
        read_image(tmp_path / "b.png", nodata=0)


def test_what_is_not_asked_for_again_is_said_to_be_as_before(tmp_path, capsys):
    np.save(tmp_path / "a.npy", margin(values(2, "uint16"), 7))
    commands.data(["scan", str(tmp_path), "--nodata", "7"])
    capsys.readouterr()
    commands.data(["scan", str(tmp_path), "--axes", "chw"])
    said = capsys.readouterr().out
    assert "axes [C, H, W], filled where there is 7 or no number; the index that it" in said
    commands.data(["scan", str(tmp_path), "--axes", "chw"])
    assert "filled where there is 7 or no number, as the index" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "number", "said"),
    [
        ("float32", -9999, "near -9984 in channel 0 (and in 1 more) stands apart"),
        ("uint16", 65535, "65535 in channel 0 (and in 1 more) stands apart"),
        ("float32", None, ""),
        ("uint16", None, ""),
    ],
)
def test_numbers_that_nobody_named_are_doubted(kind, number, said, tmp_path, capsys):
    for i in range(3):
        array = values(2, kind, i) // 4 if kind == "uint16" else values(2, kind, i)
        np.save(tmp_path / f"{i}.npy", array if number is None else margin(array, number))
    commands.data(["scan", str(tmp_path)])
    out = capsys.readouterr().out
    assert (f"  {said}" in out) if said else ("stands apart" not in out)
    if number is not None:
        commands.data(["scan", str(tmp_path), "--nodata", str(number)])
        assert "stands apart" not in capsys.readouterr().out


def test_whole_numbers_beyond_doubles_are_themselves(tmp_path):
    for kind, number in (
        ("int64", 2**63 - 1),
        ("uint64", 2**64 - 1),
        ("int64", 2**53 + 1),
        ("int64", -(2**63)),
    ):
        array = margin(values(2, "uint16").astype(kind), number)
        geotiff(tmp_path / "a.tif", array, str(number))
        np.save(tmp_path / "a.npy", array)
        for file, said in (("a.tif", "file"), ("a.tif", str(number)), ("a.npy", str(number))):
            found = decoded(pages.read(str(tmp_path / file), FilePart(nodata=said)))
            assert found.max() < 2**17
            assert found.min() >= 0


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("", None),
        (" \0", None),
        (None, None),
        ("1.#QNAN", np.nan),
        ("-1.#IND", np.nan),
        ("-nan(ind)", np.nan),
        ("nan(snan)", np.nan),
        ("-nan", np.nan),
        ("1.#SNAN", np.nan),
        ("1.#INF", np.inf),
        ("-1.#INF00", -np.inf),
        (b"0", 0),
        (" 65535 \n", 65535),
        ("-3.4e38", -3.4e38),
        ("inf", np.inf),
    ],
)
def test_forms_in_which_files_say_it(said, number):
    np.testing.assert_equal(nodata.number_of(said), number)


def test_a_page_that_says_nothing_has_what_the_first_says(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    several = [margin(values(1, "uint16", i), 9)[..., 0] for i in range(3)]
    with tifffile.TiffWriter(tmp_path / "s.tif") as out:
        for i, page in enumerate(several):
            tag = [(tiff_tags.NODATA, "s", 0, "9", True)] * (i == 0)
            out.write(page, photometric="minisblack", extratags=tag, metadata=None)
    for i, page in enumerate(several):
        found = decoded(pages.read(str(tmp_path / "s.tif"), FilePart(i, nodata="file")))
        np.testing.assert_array_equal(found, expected(page[..., None], 9))


def test_what_makes_no_rgb_makes_none_when_it_is_filled(tmp_path):
    """Three bands that are no colours, and L*a*b*, whose values are converted."""
    from PIL import Image

    geotiff(tmp_path / "bands.tif", margin(values(3, "uint8"), 0), "0")
    for part in (FilePart(), FilePart(nodata="file")):
        found = header(name_of(str(tmp_path / "bands.tif"), part))
        assert found.kind & NO_RGB
    Image.fromarray(values(3, "uint8")).convert("RGB").save(tmp_path / "rgb.tif")
    lab = Image.new("LAB", (8, 8), (130, 200, 60))
    lab.save(tmp_path / "lab.tif")
    plain = read_image(tmp_path / "lab.tif", "rgb")
    assert (read_image(tmp_path / "lab.tif", "rgb", nodata=7) == plain).all()


def test_a_library_that_reads_the_tag_too_is_silent(tmp_path, caplog):
    geotiff(tmp_path / "a.tif", values(3, "uint8"), "-9999")
    read_image(tmp_path / "a.tif", nodata="file")
    assert not caplog.text


def test_an_index_that_says_otherwise_than_a_run_is_told(tmp_path, caplog):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", margin(values(2, "uint16", i), 7))
    commands.data(["scan", str(tmp_path)])
    open_source(tmp_path, wanted=Wanted("all", part="nodata=7"))
    said = "read as its index says, files as they are; a run had --axes hwc --array '' --nodata 7"
    assert said in caplog.text
    caplog.clear()
    commands.data(["scan", str(tmp_path), "--nodata", "7"])
    open_source(tmp_path, wanted=Wanted("all", part="nodata=7"))
    assert not caplog.text


def test_shards_behind_urls_need_an_index_that_says_it(tmp_path):
    pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")
    from tests.support.objects import serving

    np.save(tmp_path / "a.npy", margin(values(2, "uint16"), 7))
    with serving({"0.tar": tar({"a.npy": (tmp_path / "a.npy").read_bytes()})}) as objects:
        place, wanted = f"{objects.url}/0.tar", Wanted("all", part="nodata=7")
        said = "expected an index, as the run read of each file what no listing says: fastequi data"
        with pytest.raises(ValueError, match=said):
            open_source(place, wanted=wanted)
        commands.data(["scan", place, "--nodata", "7"])
        source = open_source(place, wanted=wanted)
        whole = expected(np.load(tmp_path / "a.npy"), 7)
        np.testing.assert_array_equal(decoded(source.encoded(0)), whole)


@pytest.mark.parametrize("channels", ["rgb", "all"])
def test_evaluations_beside_truth_fill_as_the_run_did(channels, tmp_path):
    array = margin(values(3, "uint8"), 0)
    geotiff(tmp_path / "a.tif", array, "0", photometric="rgb")
    count = 0 if channels == "rgb" else 3
    reading = Reading(Wanted(channels, count=count, part="nodata=file"), "dtype")
    whole = expected(array, 0)
    assert reading.size_of(tmp_path / "a.tif") == (20, 26)
    found = reading(tmp_path / "a.tif").numpy()
    factor = 1 if channels == "rgb" else 255
    np.testing.assert_allclose(found * factor, np.moveaxis(whole, -1, 0), atol=1e-4)
    resized = reading.at(tmp_path / "a.tif", (20, 26)).numpy()
    np.testing.assert_allclose(resized * factor, np.moveaxis(whole, -1, 0), atol=1e-3)


def test_pictures_of_filled_images(tmp_path):
    for i in range(2):
        array = margin(values(3, "uint8", i, (48, 48)), 0)
        geotiff(tmp_path / f"{i}.tif", array, "0", photometric="rgb")
    commands.data(["scan", str(tmp_path), "--nodata", "file"])
    shown = list(_opened(open_source(tmp_path), 2))
    np.testing.assert_array_equal(np.asarray(shown[1]), expected(array, 0))


def test_photographs_are_not_what_a_run_filled(tmp_path, caplog):
    """Its part of files is one of TIFF and arrays; of others there is nothing to tell."""
    from PIL import Image

    Image.fromarray(values(3, "uint8")).save(tmp_path / "a.png")
    for scanned in (False, True):
        if scanned:
            commands.data(["scan", str(tmp_path)])
        source = open_source(tmp_path, wanted=Wanted(part="nodata=7"))
        assert list(source.names) == ["a.png"]
    assert not caplog.text

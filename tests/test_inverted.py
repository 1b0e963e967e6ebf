"""Files in which 0 is white: a scan counts them, and a run with a range in numbers warns."""

import logging

import numpy as np
import pytest

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from fastequi.data.config import DataConfig
from fastequi.data.pixels import pixels_of
from fastequi.data.settling import settled, wanted
from fastequi.data.sources.image_sets import open_source
from tests.support import science
from tests.support.science import values


def ct(array, photometric):
    tags = {"PhotometricInterpretation": photometric, "BitsStored": 12, "HighBit": 11}
    return science.dicom(array >> 4, RescaleSlope=1, RescaleIntercept=-1024, **tags)


WRITTEN = {
    "dcm": (ct, ("MONOCHROME1", "MONOCHROME2"), "-160:240"),
    "tif": (
        lambda x, p: science.tiff_of(x, photometric=p),
        ("miniswhite", "minisblack"),
        "0:20000",
    ),
}


def written(folder, extension, white=2, black=3):
    write, names, _ = WRITTEN[extension]
    for i in range(white + black):
        content = write(values(1, "uint16", i), names[i >= white])
        (folder / f"{i}.{extension}").write_bytes(content)
    return folder


@pytest.mark.parametrize("extension", WRITTEN)
def test_a_scan_counts_them(extension, tmp_path, capsys):
    commands.data(["scan", str(written(tmp_path, extension))])
    said = capsys.readouterr().out
    assert {
        "dcm": "2 of 5 DICOM files are MONOCHROME1: inverted within the bits stored, so their",
        "tif": "2 of 5 TIFF files are MINISWHITE: inverted within all that their type holds, so",
    }[extension] in said
    commands.data(["scan", str(written(tmp_path, extension, 0, 5))])
    assert "inverted" not in capsys.readouterr().out


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("extension", WRITTEN)
def test_a_run_with_a_range_in_numbers_warns_once(extension, scanned, tmp_path, caplog, capsys):
    ends = WRITTEN[extension][2]
    folder = written(tmp_path, extension)
    if scanned:
        commands.data(["scan", str(folder)])
    cfg = DataConfig(channels="all", value_range=ends, mean=(0.5,), std=(0.2,))
    source = open_source(folder, wanted=wanted(cfg))
    with caplog.at_level(logging.WARNING):
        found = settled(cfg, source)
        settled(found, source)  # as resumed
    warned = [m for m in caplog.messages if "whose values are inverted within" in m]
    assert len(warned) == 1
    assert f"before the range {ends} is taken of them" in warned[0]


def stacks(folder, extension):
    """Two of white, whose pages or frames are images, and one of black."""
    for i, name in enumerate((*[WRITTEN[extension][1][0]] * 2, WRITTEN[extension][1][1])):
        planes = np.stack([values(1, "uint16", 3 * i + k)[..., 0] for k in range(3)])
        if extension == "tif":
            tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
            tifffile.imwrite(folder / f"{i}.tif", planes, photometric=name, metadata=None)
        else:
            frames = {"NumberOfFrames": 3, "Rows": planes.shape[1], "Columns": planes.shape[2]}
            tags = {"PhotometricInterpretation": name, **frames}
            (folder / f"{i}.dcm").write_bytes(science.dicom(planes, **tags))
    return folder


@pytest.mark.parametrize("extension", WRITTEN)
def test_pages_and_frames_are_counted(extension, tmp_path, caplog, capsys):
    commands.data(["scan", str(stacks(tmp_path, extension)), "--pages", "images"])
    said = capsys.readouterr().out
    assert {
        "dcm": "6 frames of DICOM are MONOCHROME1: inverted within the bits stored, so their",
        "tif": "6 pages of TIFF are MINISWHITE: inverted within all that their type holds, so",
    }[extension] in said
    assert (
        f"formats     9 {'DICOM, frame by frame' if extension == 'dcm' else 'TIFF, page'}" in said
    )
    cfg = DataConfig(channels="all", value_range="0:20000", mean=(0.5,), std=(0.2,))
    source = open_source(tmp_path, wanted=wanted(cfg))
    with caplog.at_level(logging.WARNING):
        found = settled(cfg, source)
    assert "whose values are inverted within" in caplog.text
    assert pixels_of(found, source).as_arrays  # as pages are .npy


def test_of_stacks_the_first_pages_are_counted(tmp_path, capsys):
    commands.data(["scan", str(stacks(tmp_path, "tif"))])
    said = capsys.readouterr().out
    assert "2 of 3 TIFF files are MINISWHITE: inverted within all that their type holds" in said
    assert "formats     3 TIFF of several pages" in said

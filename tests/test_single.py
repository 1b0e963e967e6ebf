"""One image read in Python is what runs and evaluations read of the same file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("nvidia.dali")

import fastequi
from fastequi.cli import commands
from fastequi.data import read_image
from tests.support import science
from tests.support.channels import several
from tests.support.configs import config_of, run_folder
from tests.support.science import values

SIDE = 32, 32


def white_is_0(array):
    return science.tiff_of(array, photometric="miniswhite")


def monochrome1(array):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    return science.dicom(array >> 4, RescaleSlope=1, RescaleIntercept=-1024, **tags)


# of a set: channels, depth, how it is written, the value range, the extension
SETS = {
    "white is 0": (1, "uint16", white_is_0, "0:65535", "tif"),
    "MONOCHROME1": (1, "uint16", monochrome1, "-1024:3071", "dcm"),
    "12 channels": (12, "uint16", science.tiff_of, "0:65535", "tif"),
    "12 channels by pixels": (12, "uint16", science.plain_tiff, "0:65535", "tif"),
    "npy": (5, "float32", science.npy, "-4:5", "npy"),
    "8 bits": (2, "uint8", science.npy, "dtype", "npy"),
}


@pytest.mark.parametrize("kind", SETS)
def test_features_of_what_is_read_are_those_of_embed(kind, tmp_path):
    channels, depth, write, value_range, extension = SETS[kind]
    config = several(config_of("vicreg_vits16"), channels, value_range)
    run = run_folder(tmp_path / "run", config)
    data = tmp_path / "data"
    data.mkdir()
    files = [data / f"{i}.{extension}" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(write(values(channels, depth, i, SIDE)))
    out = tmp_path / "e.safetensors"
    commands.embed([str(run), "--data", str(data), "--tokens", "all", "--out", str(out)])
    encoder = fastequi.load(run)
    images = torch.stack([encoder.transform(read_image(file, encoder.channels)) for file in files])
    with torch.no_grad():
        found = encoder.forward_features(images).patch
    expected = load_file(out)["patch"]
    assert (found - expected).abs().max() < 1e-3 * expected.abs().mean()  # images of 16 bits there


def test_both_inversions_are_within_the_bits_stored(tmp_path):
    array = values(1, "uint16", size=SIDE)
    (tmp_path / "a.tif").write_bytes(white_is_0(array))
    (tmp_path / "a.dcm").write_bytes(monochrome1(array))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], 65535 - array[..., 0])
    expected = 4095.0 - (array[..., 0] >> 4) - 1024
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.dcm"))[0], expected)


def test_channels_pages_and_rgb(tmp_path, monkeypatch):
    array = values(5, "uint16")
    (tmp_path / "five.tif").write_bytes(science.tiff_of(array))
    found = read_image(tmp_path / "five.tif", "3,0")
    np.testing.assert_array_equal(found, array.transpose(2, 0, 1)[[3, 0]])
    stack = tmp_path / "stack.tif"
    pages = [Image.fromarray(array[..., k]) for k in range(5)]
    pages[0].save(stack, save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(stack)[0], array[..., 0])
    np.testing.assert_array_equal(read_image(stack, page=3)[0], array[..., 3])
    both = read_image(stack, pages_are_channels=True)
    np.testing.assert_array_equal(both, array.transpose(2, 0, 1))
    colours = values(3, "uint8")
    (tmp_path / "rgb.png").write_bytes(science.png(colours))
    for _ in range(2):  # by DALI and without it
        found = read_image(tmp_path / "rgb.png", "rgb")
        np.testing.assert_array_equal(found, colours.transpose(2, 0, 1))
        np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), found)
        monkeypatch.setattr("fastequi.data.decode._MISSING", ImportError("none"))


def test_what_cannot_be_read_is_said(tmp_path):
    file = tmp_path / "a.npy"
    file.write_bytes(science.npy(values(5, "float32")))
    with pytest.raises(ValueError, match=r"channels: .*a\.npy has 5 channels of float32, of which"):
        read_image(file, "rgb")
    with pytest.raises(ValueError, match=r"channels: expected numbers below 5, as .*, got 5"):
        read_image(file, "0,5")
    (tmp_path / "a.tif").write_bytes(science.plain_tiff(values(5, "uint16")))
    with pytest.raises(OSError, match=r"page 7: the TIFF's pages are 0 \.\. 0"):
        read_image(tmp_path / "a.tif", page=7)
    (tmp_path / "a.dcm").write_bytes(science.dicom(values(1, "uint16")[..., 0]))
    with pytest.raises(OSError, match=r"page 9: the DICOM file's frames are 0 \.\. 0"):
        read_image(tmp_path / "a.dcm", page=9)
    with pytest.raises(ValueError, match="page: expected 0 or more, got -1"):
        read_image(file, page=-1)
    with pytest.raises(ValueError, match="page: expected None beside pages_are_channels, got 1"):
        read_image(file, page=1, pages_are_channels=True)
    array = values(2, "float32")
    array[3, 4, 1] = np.nan
    (tmp_path / "nan.npy").write_bytes(science.npy(array))
    with pytest.raises(ValueError, match=r"path: .*nan\.npy cannot be decoded \(1 of its values"):
        read_image(tmp_path / "nan.npy")
    for wrong, said in (
        ({"channels": (0, 1)}, r'channels: expected a text such as "all" or "0,2", got \(0, 1\)'),
        ({"channels": None}, "channels: expected a text"),
        ({"page": 1.0}, "page: expected a whole number or None, got 1.0"),
        ({"page": True}, "page: expected a whole number or None, got True"),
        ({"path": array}, "path: expected a file's, got ndarray"),
        ({"path": b"a.tif"}, "path: expected a file's, got bytes"),
    ):
        with pytest.raises(TypeError, match=said):
            read_image(**{"path": file, **wrong})
    assert read_image(tmp_path / "a.tif", page=np.int64(0)).shape == (5, 20, 26)
    with pytest.raises(OSError, match=rf"path: {tmp_path}: not a regular file"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        read_image(tmp_path / "none.tif")
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(ValueError, match=r"path: .*no\.png cannot be read"):
        read_image(tmp_path / "no.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.png")


def test_the_settings_of_data_are_imported_without_dali():
    code = "import sys, fastequi.data.config; assert not any('dali' in m for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

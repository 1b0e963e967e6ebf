"""Images with other channels than 8-bit RGB, in the formats that are read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.data.sources import tiff


def values(channels, depth, i=0, size=(20, 26)):
    """[H, W, C], smooth enough to be told apart, with some noise."""
    draw = np.random.default_rng([i, channels])
    y, x = np.mgrid[: size[0], : size[1]] / 20
    each = [np.sin(3 * x + k + i) * np.cos(2 * y - k) for k in range(channels)]
    unit = np.clip(0.5 + 0.4 * np.stack(each, -1) + draw.normal(0, 0.02, (*size, channels)), 0, 1)
    if depth == "float32":
        return (9 * unit - 4).astype(depth)
    return np.round(unit * np.iinfo(depth).max).astype(depth)


def given(content, pixels):
    """The values that a run gets of a file, or why it gets none."""
    from fastequi.data.given import decoded_sizes

    image, seen = np.frombuffer(content, np.uint8), []
    cpu = torch.device("cpu")
    (size,) = decoded_sizes([image], cpu, 1, pixels, lambda found: seen.append(found.copy()))
    if isinstance(size, str):
        return size
    assert seen[0].shape[:2] == size
    return seen[0]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array):
    file = io.BytesIO()
    np.savez_compressed(file, image=array)
    return file.getvalue()


def png(array):
    """Grey of 8 or 16 bits, or 8-bit RGB(A)."""
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def made_two_bands(files):
    """Replaces images by TIFF of 16 bits, of their first two channels alone."""
    for file in files:
        with Image.open(file) as image:
            rgb = np.array(image.convert("RGB"))
        file.unlink()
        file.with_suffix(".tif").write_bytes(plain_tiff(rgb[..., :2].astype(np.uint16) * 257))


def plain_tiff(array):
    """Uncompressed, all channels of a pixel together."""
    return tiff.encoded(array).tobytes()


def tiff_of(array, **options):
    """By tifffile, planar unless options say otherwise."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file = io.BytesIO()
    given = {"photometric": "minisblack", "planarconfig": "separate", **options}
    planar = given["planarconfig"] == "separate" and array.shape[2] > 1
    whole = np.moveaxis(array, -1, 0) if planar else array
    if array.shape[2] == 1:
        whole, given = array[..., 0], {**given, "planarconfig": None}
    tifffile.imwrite(file, np.ascontiguousarray(whole), **given)
    return file.getvalue()


def dicom(array, **tags):
    """One frame [H, W] of 8 or 16 bits."""
    pydicom = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fastequi"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.Rows, made.Columns = array.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * array.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(array.dtype.kind == "i")
    made.PixelData = np.ascontiguousarray(array).tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def write(folder, contents):
    """Files of {name: bytes}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder

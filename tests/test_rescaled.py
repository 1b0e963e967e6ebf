"""DICOM's rescale, which an enhanced file says for all its frames or a frame at a time."""

import numpy as np
import pytest

from fastequi.cli import commands
from fastequi.data.single import read_image
from fastequi.data.sources.encoded import header
from fastequi.data.sources.kinds import Kind
from tests.support import science
from tests.support.science import values

SLOPES = (2.0, 0.5, 1.0), (-1024.0, 10.0, 0.0)
FRAMES = np.stack([values(1, "uint16", i)[..., 0] >> 4 for i in range(3)])


def group(slope, intercept):
    from pydicom.dataset import Dataset

    inside, outside = Dataset(), Dataset()
    inside.RescaleSlope, inside.RescaleIntercept = slope, intercept
    outside.PixelValueTransformationSequence = [inside]
    return outside


def enhanced(shared, **tags):
    pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")
    groups = [group(*pair) for pair in zip(*SLOPES, strict=True)]
    name = "SharedFunctionalGroupsSequence" if shared else "PerFrameFunctionalGroupsSequence"
    tags = {name: groups[:1] if shared else groups, "NumberOfFrames": 3, **tags}
    return science.dicom(FRAMES[0], PixelData=FRAMES.tobytes(), **tags)


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_frames_are_in_their_units(shared, white, tmp_path):
    tags = {"PhotometricInterpretation": "MONOCHROME1"} if white else {}
    file = tmp_path / "enhanced.dcm"
    file.write_bytes(enhanced(shared, BitsStored=12, HighBit=11, **tags))
    for k, frame in enumerate(FRAMES.astype(np.float64)):
        slope, intercept = (each[0 if shared else k] for each in SLOPES)
        stored = 4095 - frame if white else frame
        found = read_image(file, page=k)[0].numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, stored * slope + intercept, rtol=1e-6)


def test_a_scan_measures_them_in_their_units(tmp_path, capsys):
    (tmp_path / "enhanced.dcm").write_bytes(enhanced(shared=True))
    commands.data(["scan", str(tmp_path), "--pages", "images"])
    said = capsys.readouterr().out
    assert "values      1 channel of float32: 3 images" in said
    mean = 2.0 * FRAMES.mean() - 1024
    assert f"{mean:.4g}" in said


def test_one_frame_is_in_its_units():
    Dataset = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed").Dataset
    for one, depth in ((group(1, 0), "uint16"), (group(3, 1), "float32"), (Dataset(), "uint16")):
        content = science.dicom(FRAMES[0], PerFrameFunctionalGroupsSequence=[one])
        found = header(np.frombuffer(content, np.uint8))
        assert Kind.of(found.kind) == Kind(1, depth)


@pytest.mark.parametrize(("groups", "why"), [(2, "2 rescales of 3 frames"), (3, "frame 1 says no")])
def test_frames_of_which_some_say_no_rescale_are_refused(groups, why, tmp_path):
    Dataset = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed").Dataset
    each = [group(2, 5), Dataset(), group(3, 5)][:groups]
    tags = {"NumberOfFrames": 3, "PerFrameFunctionalGroupsSequence": each}
    file = tmp_path / "some.dcm"
    file.write_bytes(science.dicom(FRAMES[0], PixelData=FRAMES.tobytes(), **tags))
    with pytest.raises((OSError, ValueError), match=why):
        read_image(file, page=1)

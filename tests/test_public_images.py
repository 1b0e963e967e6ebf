"""Images that Debian's packages carry for their own tests and examples, read and trained on.

Six bands of Landsat 7, single bands of Landsat 8, 16-bit TIFFs of scikit-image, DICOM of nibabel.
The packages are unpacked, not installed; nothing of them is kept.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from fastequi.data.pixels import Pixels
from fastequi.data.sources.encoded import header
from fastequi.data.sources.kinds import Kind
from tests.support import science
from tests.support.runs import rows, run_once

pytestmark = pytest.mark.slow
tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
pytest.importorskip("imagecodecs", reason="fastequi[tiff] is not installed")
pydicom = pytest.importorskip("pydicom", reason="fastequi[dicom] is not installed")

PACKAGES = "r-cran-stars", "r-cran-satellite", "python3-skimage", "python3-nibabel"


@pytest.fixture(scope="module")
def usr(tmp_path_factory):
    """The folder usr of the packages, all in one."""
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get: the packages are Debian's")
    folder = tmp_path_factory.mktemp("debian")
    for words in (["download", *PACKAGES], ["update"], ["download", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *words], cwd=folder, capture_output=True, text=True
        )
        if done.returncode == 0 and words[0] == "download":
            break
    else:
        pytest.skip(f"apt-get: {(done.stderr.splitlines() or ['no answer'])[-1]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return folder / "usr"


def read(content):
    """(kind, values) as a run that keeps channels gets them; why it gets none, and None."""
    found = header(np.frombuffer(content, np.uint8))
    if isinstance(found, str):
        return found, None
    kind = Kind.of(found.kind)
    return kind, science.given(content, Pixels.whole(kind))


def oracle(path):
    """The first page by tifffile; by Pillow what has a palette."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return np.asarray(Image.open(path).convert("RGB"))
        array = page.asarray()
        return np.moveaxis(array, 0, -1) if page.axes.startswith("S") else array  # planar


def test_tiffs_have_the_values_that_other_libraries_read(usr):
    kinds, refused = {}, {}
    for path in sorted(usr.rglob("*.[tT][iI][fF]")):
        kind, values = read(path.read_bytes())
        kinds[path.name] = kind if isinstance(kind, str) else (kind.channels, kind.depth)
        if values is None or isinstance(values, str):
            refused[path.name] = values or kind
            continue
        expected = oracle(path)
        if expected.ndim == 2:
            expected = expected[..., None]
        np.testing.assert_array_equal(values, expected.astype(values.dtype), err_msg=path.name)
    assert kinds["L7_ETMs.tif"] == (6, "uint8")
    assert kinds["chessboard_GRAY_U16.tif"] == kinds["chessboard_GRAY_U16B.tif"] == (1, "uint16")
    assert refused == {"na.tif": "1 of its values are not finite"}
    assert len(kinds) >= 25


def test_dicom_has_pydicoms_values(usr):
    read_files = 0
    for path in sorted(usr.rglob("*.dcm")):
        _, values = read(path.read_bytes())
        if values is None or isinstance(values, str):
            continue
        stored = pydicom.dcmread(path)
        slope, intercept = stored.get("RescaleSlope", 1), stored.get("RescaleIntercept", 0)
        expected = stored.pixel_array * float(slope) + float(intercept)
        np.testing.assert_allclose(values[..., 0], expected, rtol=1e-6, err_msg=path.name)
        read_files += 1
    assert read_files >= 2


def test_a_run_on_landsats_bands(usr, tmp_path, tmp_path_factory, capsys):
    """From the tiles of one scene to a table of what features know of its geometry."""
    scene = tifffile.imread(usr / "lib/R/site-library/stars/tif/L7_ETMs.tif")
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for i in range(16):
        y, x = 85 * (i // 4), 85 * (i % 4)
        tile = np.ascontiguousarray(scene[y : y + 85, x : x + 85])
        (tiles / f"{i:02}.tif").write_bytes(science.tiff_of(tile))
    commands.data(["scan", str(tiles)])
    assert "6 channels" in capsys.readouterr().out
    asked = "--data.channels", "all", "--data.value-range", "percentiles", "--train.epochs", 8
    folder = run_once(tmp_path_factory, "landsat", "--data", tiles, *asked, "--max-steps", 8)
    losses = [row["loss"] for row in rows(folder)]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    weights = load_file(folder / "model.safetensors")
    assert weights["patch_embed.proj.weight"].shape[1] == 6
    out = tmp_path / "pairs.json"
    few = "--train-pairs", "64", "--test-pairs", "32", "--seeds", "1"
    commands.eval(
        [
            "equivariance",
            str(folder),
            "--data",
            str(tiles),
            *few,
            "--tasks",
            "se2",
            "--out",
            str(out),
        ]
    )
    assert json.loads(out.read_text())

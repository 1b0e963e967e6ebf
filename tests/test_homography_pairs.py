"""Pairs with known homographies in the layouts of HPatches and of OpenCV: reading and judging."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli.main import main
from fastequi.evaluate.geometry.homography_pairs import (
    HomographyPair,
    holds_homographies,
    homography_pairs,
    matrix_of,
    of_places,
    passed_over,
)
from fastequi.evaluate.geometry.homography_sequences import judged, scaling
from fastequi.evaluate.geometry.image_files import fitting, image_of
from fastequi.evaluate.geometry.projective import moved
from tests.support.painted import cut_off
from tests.support.places import painted, through
from tests.support.science import made_two_bands

H13 = """<?xml version="1.0"?>
<opencv_storage>
<H13 type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
\t7.6285898e-01  -2.9922929e-01   2.2567123e+02
\t3.3443473e-01   1.0143901e+00  -7.6999973e+01
\t3.4663091e-04  -1.4364524e-05   1.0000000e+00 </data></H13>
</opencv_storage>
"""
TURN = [[0.97, -0.12, 12.0], [0.10, 1.02, -6.0], [2e-4, -1e-4, 1.0]]
STAY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
FIRST, SECOND = (120, 168), (136, 176)  # height, width
SPEC = "tests.support.places:encoder"


def text(matrix):
    return "\n".join(" ".join(f"{value:.9g}" for value in row) for row in matrix) + "\n"


def sequence(folder, matrices):
    """A folder of HPatches': colours of the first image say their place there, and so do those of
    the others, seen through the inverse of their homography."""
    folder.mkdir(parents=True)
    height, width = FIRST
    painted(height, width, lambda x, y: (x / width, y / height)).save(folder / "1.ppm")
    for number, matrix in enumerate(matrices, 2):
        back = np.linalg.inv(matrix)

        def place(x, y, back=back):
            u, v = through(back, x, y)
            return u / width, v / height

        painted(*SECOND, place).save(folder / f"{number}.ppm")
        (folder / f"H_1_{number}").write_text(text(matrix))
    return folder


@pytest.fixture
def hpatches(tmp_path):
    folder = tmp_path / "hpatches-sequences-release"
    sequence(folder / "v_wall", [TURN] * 5)
    sequence(folder / "i_lamp", [STAY] * 5)
    return folder


def test_a_release_is_read_by_name(hpatches):
    (hpatches / "notes").mkdir()
    assert holds_homographies(hpatches)
    pairs = homography_pairs(hpatches)
    assert [(p.sequence, p.part, p.second.name) for p in pairs] == [
        (name, part, f"{k}.ppm")
        for name, part in (("i_lamp", "illumination"), ("v_wall", "viewpoint"))
        for k in range(2, 7)
    ]
    assert pairs[5].sizes == (FIRST, SECOND)
    assert passed_over(hpatches) == ["notes"]
    assert len(homography_pairs(hpatches / "v_wall")) == 5
    # (0, 0) counted from 0 is the place (.5, .5)
    x, y = through(TURN, np.array([0.0, 100.0]), np.array([0.0, 50.0]))
    places = moved(torch.tensor([[0.5, 0.5], [100.5, 50.5]]).double(), pairs[5].homography)
    np.testing.assert_allclose(places.numpy(), np.stack([x, y], 1) + 0.5, atol=1e-6)


def test_opencv_xml_is_read(tmp_path):
    file = tmp_path / "H1to3p.xml"
    file.write_text(H13)
    expected = [
        [0.76285898, -0.29922929, 225.67123],
        [0.33443473, 1.0143901, -76.999973],
        [3.4663091e-4, -1.4364524e-5, 1.0],
    ]
    assert matrix_of(file).tolist() == expected
    for name in ("graf3.png", "graf1.png"):
        Image.new("RGB", (80, 64)).save(tmp_path / name)
    assert holds_homographies(tmp_path)
    [pair] = homography_pairs(tmp_path)
    assert (pair.first.name, pair.second.name, pair.part) == ("graf1.png", "graf3.png", "")
    torch.testing.assert_close(pair.homography, of_places(torch.tensor(expected).double()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1 0 0\n0 1 0\n", "expected three lines of three numbers, got '1 0 0 0 1 0'"),
        ("1 0 0\n0 1 x\n0 0 1\n", "expected numbers"),
        ("1 0 0\n1 0 0\n0 0 1\n", "expected an invertible matrix"),
        ("1 0 0\n0 nan 0\n0 0 1\n", "expected an invertible matrix"),
    ],
)
def test_malformed_text_is_named(tmp_path, content, said):
    file = tmp_path / "H_1_2"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        matrix_of(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</opencv_storage>", "", "expected XML"),
        ("opencv-matrix", "opencv-image", "expected one opencv-matrix, got 0"),
        ("<rows>3", "<rows>2", "expected a 3x3 opencv-matrix, got 2 x 3 with 9 numbers"),
        ("1.0000000e+00 ", "", "expected a 3x3 opencv-matrix, got 3 x 3 with 8 numbers"),
        ("1.0000000e+00 ", "one", "expected numbers"),
    ],
)
def test_malformed_xml_is_named(tmp_path, old, new, said):
    file = tmp_path / "H1to3p.xml"
    file.write_text(H13.replace(old, new))
    with pytest.raises(ValueError, match=said) as error:
        matrix_of(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("v_wall/H_1_4", "v_wall/H_1_4: expected the homography of 4.ppm"),
        ("v_wall/4.ppm", "v_wall/4.ppm: expected the image of H_1_4"),
        ("i_lamp/1.ppm", "i_lamp/1.ppm: expected the first image"),
    ],
)
def test_missing_files_are_named_before_a_feature_is_computed(hpatches, missing, said, capsys):
    (hpatches / missing).unlink()
    with pytest.raises(SystemExit):
        main(["eval", "homography", SPEC, "--data", str(hpatches), "--cache-gb", "0"])
    assert said in capsys.readouterr().err


def test_a_damaged_image_and_a_folder_of_one_are_named(hpatches, tmp_path):
    (hpatches / "v_wall" / "3.ppm").write_bytes(b"P6 nothing")
    with pytest.raises(ValueError, match=r"3\.ppm: expected an image"):
        homography_pairs(hpatches)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "H1to3p.xml").write_text(H13)
    Image.new("RGB", (80, 64)).save(alone / "graf1.png")
    with pytest.raises(ValueError, match="expected two images and one homography, got 1 images"):
        homography_pairs(alone)


def test_an_image_that_was_cut_off_is_found_before_a_feature_is_computed(hpatches):
    cut_off(hpatches / "v_wall" / "6.ppm")
    with pytest.raises(ValueError, match=r"v_wall/6\.ppm: expected an image"):
        homography_pairs(hpatches)


@pytest.mark.parametrize(("name", "other"), [("2.ppm", "2.png"), ("H_1_2", "H_1_02")])
def test_two_files_of_one_number_are_refused(hpatches, name, other):
    (hpatches / "v_wall" / other).write_bytes((hpatches / "v_wall" / name).read_bytes())
    with pytest.raises(ValueError, match=f"expected one file of number 2, got .*{name[0]}"):
        homography_pairs(hpatches)


def test_suffixes_are_found_in_any_case(hpatches, tmp_path):
    (hpatches / "v_wall" / "2.ppm").rename(hpatches / "v_wall" / "2.PPM")
    assert len(homography_pairs(hpatches)) == 10
    (tmp_path / "H1to3p.XML").write_text(f"\ufeff{H13}")
    for name in ("graf1.PNG", "graf3.png"):
        Image.new("RGB", (80, 64)).save(tmp_path / name)
    assert holds_homographies(tmp_path)
    assert len(homography_pairs(tmp_path)) == 1


def test_a_horizon_inside_the_first_image_is_named(hpatches):
    """Its truth would be no place, and such a pair would be left out silently."""
    (hpatches / "v_wall" / "H_1_3").write_text("1 0 0\n0 1 0\n-0.01 0 1\n")
    with pytest.raises(ValueError, match=r"v_wall/H_1_3: expected .* all corners of 1.ppm"):
        homography_pairs(hpatches)


def test_photographs_are_no_pairs_of_known_homography(tmp_path):
    (tmp_path / "i_phone").mkdir()
    Image.new("RGB", (80, 64)).save(tmp_path / "i_phone" / "photo.jpg")
    (tmp_path / "i_phone" / "photo.xml").write_text("<annotation/>")
    assert not holds_homographies(tmp_path)
    assert not holds_homographies(tmp_path / "i_phone")
    assert not holds_homographies(tmp_path / "nothing")


def test_sizes_are_multiples_of_a_patch_and_scaled_exactly():
    assert fitting((480, 640), 224, 16) == (224, 304)  # 298.7 is nearest to 19 patches
    assert fitting((640, 480), 224, 14) == (294, 224)
    assert fitting((10, 100), 8, 8) == (8, 80)
    places = torch.tensor([[0.0, 0], [640, 480], [320, 120]]).double()
    to = moved(places, scaling((480, 640), (224, 304)))
    assert to.tolist() == [[0, 0], [304, 224], [152, 56]]


def test_images_are_resized_axis_by_axis(tmp_path):
    file = tmp_path / "image.png"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:], pixels[20:, :, 1] = 200, 100
    Image.fromarray(pixels).save(file)
    found = image_of(file, (20, 15))
    assert found.shape == (3, 20, 15)
    assert found[0, 2, 2] == 0
    assert found[0, 2, 12] == 200
    assert found[1, 17, 2] == 100


def test_errors_are_in_pixels_of_a_shorter_side_of_480(tmp_path):
    """An estimate that is 3 and 4 px off in the second image of 240 px: 5 px, of 480 px 10."""
    shift = torch.eye(3).double()
    shift[0, 2], shift[1, 2] = 3, 4
    pair = HomographyPair(
        *(tmp_path, tmp_path), ((100, 200), (240, 320)), torch.eye(3).double(), "v_x", "viewpoint"
    )
    sums = judged([pair, pair], torch.stack([shift, torch.full((3, 3), torch.nan).double()]))
    expected = torch.tensor([[10.0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])  # NaN becomes no motion
    torch.testing.assert_close(sums[:, :5], expected.double())


def test_places_that_tokens_know_give_the_homographies(hpatches, tmp_path, capsys):
    """Through images that are not square, of two sizes, and resized to other shapes."""
    out = tmp_path / "found.json"
    main(["eval", "homography", SPEC, "--data", str(hpatches), "--side", "128", "--out", str(out),
          "--cache-gb", "0"])  # fmt: skip
    found = json.loads(out.read_text())
    assert (found["sequences"], found["pairs"], found["side"]) == (2, 10, 128)
    tables = found["tables"]
    assert list(tables) == [
        f"{method}{part}"
        for method in ("RANSAC", "least squares")
        for part in ("", ", illumination", ", viewpoint")
    ]
    errors = {
        title: {score["features"]: score["values"] for score in each["scores"]}
        for title, each in tables.items()
    }
    assert tables["RANSAC"]["images"] == 10
    assert tables["RANSAC"]["photographs"] == 2
    assert errors["RANSAC, illumination"]["no motion"][0] == pytest.approx(0, abs=1e-9)
    assert errors["RANSAC, viewpoint"]["no motion"][0] > 30
    assert errors["RANSAC, viewpoint"]["patch"][0] < 8  # of 30 px a patch
    assert errors["RANSAC, viewpoint"]["patch"][4] == 0
    printed = capsys.readouterr().out
    assert "not used" not in printed
    assert "…" not in printed  # no cell is cut in a narrow terminal


def test_images_of_two_bands_are_read_as_their_encoder_takes_them(hpatches, tmp_path):
    """The same as of RGB, whose first two channels they are."""
    made_two_bands(hpatches.glob("*/*.ppm"))
    out = tmp_path / "found.json"
    main(["eval", "homography", "tests.support.places:of_two_bands", "--data", str(hpatches),
          "--side", "128", "--out", str(out), "--cache-gb", "0"])  # fmt: skip
    scores = json.loads(out.read_text())["tables"]["RANSAC, viewpoint"]["scores"]
    [patch] = [score["values"] for score in scores if score["features"] == "patch"]
    assert patch[0] < 8  # of 30 px a patch
    assert patch[4] == 0


def test_options_of_photographs_are_refused(hpatches, tmp_path, capsys):
    for option in ("--pairs", "--train-pairs", "--epochs"):
        with pytest.raises(SystemExit):
            main(["eval", "homography", SPEC, "--data", str(hpatches), option, "5"])
        assert f"{option}: for photographs" in capsys.readouterr().err
    other = shutil.copytree(hpatches, tmp_path / "other")
    with pytest.raises(SystemExit):
        main(["eval", "homography", SPEC, "--data", str(hpatches), str(other)])
    assert f"--data: expected {hpatches} alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (10**7, "--side: expected at most"),
        (15, "--side: expected at least 16, 2 times the patch size of raw patches, got 15"),
    ],
)
def test_a_side_that_cannot_be_is_refused(hpatches, tmp_path, capsys, side, said):
    with pytest.raises(SystemExit):
        main(["eval", "homography", "tests.support.painted:colours", "--data", str(hpatches),
              "--side", str(side), "--out", str(tmp_path / "f.json"),
              "--cache-gb", "0"])  # fmt: skip
    assert said in capsys.readouterr().err

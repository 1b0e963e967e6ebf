"""`fastequi eval propagate --data JHMDB`: joints carried through videos, and PCK."""

import builtins
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli.main import main
from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.geometry.jhmdb import is_jhmdb, open_poses
from fastequi.evaluate.geometry.poses import MEASURE, joint_labels, judged, places_of
from tests.support.painted import cut_off
from tests.support.science import made_two_bands

savemat = pytest.importorskip("scipy.io").savemat


def put_pose(root, name, positions, size=64):
    """A square video of noise that moves as the first joint does.

    Args:
        positions: [2, 15, T] from 1.
    """
    folder = root / "joint_positions" / name
    folder.mkdir(parents=True)
    savemat(folder / "joint_positions.mat", {"pos_img": positions, "scale": np.ones((1, 3))})
    frames = root / "Rename_Images" / name
    frames.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    for t in range(positions.shape[2]):
        x, y = np.round(positions[:, 0, t] - positions[:, 0, 0]).astype(int)
        Image.fromarray(np.roll(noise, (y, x), (0, 1))).save(frames / f"{t + 1:05d}.png")


def walking(steps=3, by=8):
    """Joints in tokens of their own that all go to the right."""
    x = np.tile(np.arange(5) * 8 + 4.0, 3)
    y = np.repeat(np.arange(3) * 16 + 12.0, 5)
    first = np.stack([x, y]) + 1
    return np.stack([first + np.array([[by * t], [0]]) for t in range(steps)], -1)


@pytest.fixture
def jhmdb(tmp_path):
    put_pose(tmp_path, "walk/one", walking())
    put_pose(tmp_path, "walk/two", walking(2))
    put_pose(tmp_path, "jump/one", walking())
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "walk_test_split1.txt").write_text("one.avi 2\ntwo.avi 2\n")
    (tmp_path / "splits" / "jump_test_split1.txt").write_text("one.avi 1\n")
    return tmp_path


def test_test_videos_are_read(jhmdb):
    assert is_jhmdb(jhmdb)
    one, two = open_poses(jhmdb)
    assert (one.name, two.name) == ("walk/one", "walk/two")
    assert one.size == (64, 64)
    assert one.joints.shape == (3, 15, 2)
    # counted from 1 in the file, so that the first pixel's middle is 1; here it is 0.5
    assert one.joints[0, 0].tolist() == [4.5, 12.5]
    assert one.joints[2, 14].tolist() == [4.5 + 32 + 16, 44.5]
    assert [clip.name for clip in open_poses(jhmdb, Patterns(include=("two",)))] == ["walk/two"]


def test_frames_are_numbered_from_1(jhmdb):
    frames = jhmdb / "Rename_Images" / "walk" / "two"
    (frames / "00003.png").write_bytes((frames / "00001.png").read_bytes())
    (frames / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match="expected frames numbered from 1, got 00002 first"):
        open_poses(jhmdb)


def test_labels_are_gaussians_about_the_joints_token():
    joints = torch.full((15, 2), 3.7, dtype=torch.float64)
    joints[1] = torch.tensor([0.2, 5.9])  # x, y
    labels = joint_labels(joints, 6)
    for i in range(6):
        for j in range(6):
            near = max(abs(i - 5), abs(j - 0)) <= 2
            value = math.exp(-((i - 5) ** 2 + j**2) / (2 * 0.25)) if near else 0
            assert labels[2, i, j].item() == pytest.approx(value)
    rest = labels[1:].sum(0) == 0
    torch.testing.assert_close(labels[0], rest.float())


def test_places_are_those_of_the_labels():
    joints = torch.rand(15, 2, generator=torch.Generator().manual_seed(0)).double() * 9 + 3
    labels = joint_labels(joints, 16)
    found = places_of(labels)
    assert (found - (joints.floor() + 0.5)).abs().max() < 0.2
    labels[4] = 0
    lost = places_of(labels).isnan().all(-1)
    assert lost.tolist() == [i == 3 for i in range(15)]
    labels[5] = 0
    labels[5, 2, 3], labels[5, 2, 4], labels[5, 8, 8], labels[5, 0, 0] = 0.5, 0.3, 0.2, 0.1
    x, y = 0.5 * 3.5 + 0.3 * 4.5 + 0.2 * 8.5, 0.8 * 2.5 + 0.2 * 8.5
    assert places_of(labels)[4].tolist() == pytest.approx([x, y])


def test_pck_by_loops():
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(5, 15, 2, generator=generator).double() * 100
    found = truth + torch.randn(5, 15, 2, generator=generator).double() * 8
    found[2, 3] = torch.nan
    found[:, 7] = torch.nan
    hits, counts = np.zeros((2, 15)), np.zeros(15)
    for t in range(1, 5):
        seen = [j for j in range(15) if not found[t, j].isnan().any()]
        box = truth[t, seen]
        diagonal = (box.amax(0) - box.amin(0)).norm().item()
        for j in seen:
            counts[j] += 1
            for k, within in enumerate((0.1, 0.2)):
                away = (found[t, j] - truth[t, j]).norm().item()
                hits[k, j] += away <= within * 0.6 * diagonal
    values = MEASURE.of_sums(judged(truth, found))
    kept = counts > 0
    expected = (hits[:, kept] / counts[kept]).mean(1)
    assert 0.2 < expected[0] < expected[1] < 1
    assert values[:2].tolist() == pytest.approx(expected.tolist())
    assert values[2].item() == pytest.approx(5 / 60)


def test_joints_that_move_with_the_picture_are_followed(jhmdb, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["--data", str(jhmdb), "--side", "64", "--cache-gb", "0", "--out", str(out)]
    main(["eval", "propagate", "tests.support.clips:colours", *words, "--device", "cpu"])
    assert "5 frames, split 1; the first frame of each clip is not judged" in (
        capsys.readouterr().out
    )
    table = json.loads(out.read_text())["tables"]["propagate"]
    names = [figure["name"] for figure in table["figures"]]
    assert names == ["PCK@0.1", "PCK@0.2", "joints lost"]
    rows = {row["encoder"] or row["features"]: row["values"] for row in table["scores"]}
    assert rows["raw patches"] == [1.0, 1.0, 0.0]  # each patch of noise is like itself alone
    assert rows["position only"][1] < 0.4


def test_frames_of_two_bands_are_read_as_their_encoder_takes_them(jhmdb, tmp_path):
    made_two_bands(jhmdb.glob("Rename_Images/*/*/*.png"))
    out = tmp_path / "found.json"
    words = ["--data", str(jhmdb), "--side", "64", "--cache-gb", "0", "--out", str(out)]
    main(["eval", "propagate", "tests.support.clips:two_bands", *words, "--device", "cpu"])
    scores = json.loads(out.read_text())["tables"]["propagate"]["scores"]
    rows = {row["encoder"] or row["features"]: row["values"] for row in scores}
    assert rows["raw patches"] == [1.0, 1.0, 0.0]


def test_frames_are_numbered_without_gaps(jhmdb):
    frames = jhmdb / "Rename_Images/walk/one"
    last = frames / "00003.png"
    last.rename(frames / "00004.png")
    with pytest.raises(FileNotFoundError, match=r"walk/one: expected frames .*, 00003 is mis"):
        open_poses(jhmdb)
    (frames / "00004.png").rename(last)
    (frames / "cover.png").write_bytes(last.read_bytes())
    with pytest.raises(ValueError, match=r"cover\.png: expected frames named by their numbers"):
        open_poses(jhmdb)


def test_without_splits_all_videos_are_used(jhmdb):
    for file in (jhmdb / "splits").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected CLASS_test_split1\.txt"):
        open_poses(jhmdb)
    (jhmdb / "splits").rmdir()
    assert [clip.name for clip in open_poses(jhmdb)] == ["jump/one", "walk/one", "walk/two"]


def test_a_split_is_text_in_utf_8_with_or_without_its_mark(jhmdb):
    file = jhmdb / "splits" / "walk_test_split1.txt"
    for frame in sorted((jhmdb / "Rename_Images/walk/one").iterdir()):
        frame.rename(frame.with_suffix(".PNG"))
    file.write_bytes(b"\xef\xbb\xbfone.avi 2\r\ntwo.avi 1\r\n")
    assert [clip.name for clip in open_poses(jhmdb)] == ["walk/one"]
    file.write_text("one.avi 2\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"walk_test_split1\.txt: expected text in UTF-8"):
        open_poses(jhmdb)


def test_what_is_wrong_is_said_by_its_file(jhmdb):
    cut_off(jhmdb / "Rename_Images/walk/one/00003.png")
    with pytest.raises(ValueError, match=r"one/00003\.png: expected an image"):
        open_poses(jhmdb)
    frame = jhmdb / "Rename_Images/walk/one/00001.png"
    (frame.parent / "00003.png").write_bytes(frame.read_bytes())
    (jhmdb / "Rename_Images/walk/two/00002.png").unlink()
    with pytest.raises(ValueError, match=r"walk/two: .* each of the 2 .* got 1"):
        open_poses(jhmdb)
    savemat(jhmdb / "joint_positions/walk/two/joint_positions.mat", {"pos_world": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"two/joint_positions\.mat: expected pos_img .* got none"):
        open_poses(jhmdb)
    (jhmdb / "joint_positions/walk/two/joint_positions.mat").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"two/joint_positions\.mat: expected a MATLAB file"):
        open_poses(jhmdb)
    Image.new("RGB", (8, 8)).save(jhmdb / "Rename_Images/walk/one/00002.png")
    with pytest.raises(ValueError, match=r"00002\.png: expected 64x64 px .*, got 8x8"):
        open_poses(jhmdb)


def test_without_scipy_it_says_what_to_install(jhmdb, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'fastequi\[jhmdb\]'"):
        open_poses(jhmdb)

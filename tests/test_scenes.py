"""`fastequi data scenes`: what is made is exact, the same for a seed, and kept."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from fastequi.cli.main import main
from fastequi.data.scenes import clips, depth, match, segment
from fastequi.data.scenes.homographies import (
    between,
    covered,
    middles,
    moved,
    shift,
    similarity,
    warped,
)
from fastequi.data.scenes.job import make
from fastequi.data.scenes.photographs import Photographs, both
from fastequi.data.scenes.pieces import CLASSES, Piece, piece
from fastequi.data.scenes.settings import Settings
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection

SMALL = Settings(images=4, clips=1, frames=3, size=64)


@pytest.fixture(scope="module")
def photographs():
    return Photographs(embedded_photos())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "out"
    steps = []
    assert make(out, None, SMALL, lambda i, n: steps.append((i, n)))
    assert steps[-1] == (14, 14)  # 4 images twice, 4 pairs, a clip and the list of clips
    return out


def generator(seed=0):
    return np.random.default_rng(seed)


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_every_kind_is_in_its_layout(made):
    images = [f"{i:05d}" for i in range(4)]
    parts = ["train"] * 3 + ["val"]
    expected = {
        *("README.txt", "scenes.json", "clips/ImageSets/2017/val.txt"),
        *(f"segment/{p}/images/{i}.jpg" for p, i in zip(parts, images, strict=True)),
        *(f"segment/{p}/masks/{i}.png" for p, i in zip(parts, images, strict=True)),
        *(f"depth/{p}/images/{i}.jpg" for p, i in zip(parts, images, strict=True)),
        *(f"depth/{p}/depth/{i}.png" for p, i in zip(parts, images, strict=True)),
        *(f"clips/JPEGImages/480p/scene-000/{i}.jpg" for i in images[:3]),
        *(f"clips/Annotations/480p/scene-000/{i}.png" for i in images[:3]),
        *(
            f"match/v_{i}/{name}"
            for i in images
            for name in ("1.png", "2.png", "H_1_2", "mask_1.png", "mask_2.png")
        ),
    }
    assert set(contents(made)) == expected
    assert (made / "clips/ImageSets/2017/val.txt").read_text() == "scene-000\n"
    said = (made / "README.txt").read_text()
    assert "never a benchmark" in said
    assert "0 background, 1 cut-out, 2 text" in said
    with Image.open(made / "depth/val/depth/00003.png") as file:
        assert file.mode == "I;16"
        assert file.size == (64, 64)
        values = np.array(file)
    assert values.min() > 1500  # the floor at the lower border is 2 m away
    assert values.max() < 10_000
    for name in ("clips/Annotations/480p/scene-000/00000.png", "segment/val/masks/00003.png"):
        with Image.open(made / name) as file:
            assert file.mode == "P"
            colours = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]  # VOC's
            assert file.getpalette()[:15] == colours


def test_a_seed_makes_the_same_bytes_and_another_seed_others(made, tmp_path):
    make(tmp_path / "again", None, SMALL, lambda i, n: None)
    first, again = contents(made), contents(tmp_path / "again")
    assert first == again
    other = Settings(images=4, clips=1, frames=3, size=64, seed=1)
    make(tmp_path / "other", None, other, lambda i, n: None)
    names = [n for n in first if n.endswith((".jpg", "H_1_2"))]
    assert all(first[name] != contents(tmp_path / "other")[name] for name in names)


def test_an_image_is_the_same_whatever_else_is_made(made, tmp_path):
    only = Settings(kinds=("depth",), images=8, size=64)
    make(tmp_path / "out", None, only, lambda i, n: None)
    name = "depth/train/images/00002.jpg"
    assert contents(tmp_path / "out")[name] == contents(made)[name]


def test_what_is_there_is_kept_and_nothing_else_is_overwritten(made, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert not make(made, None, SMALL, lambda i, n: None)
    assert before == {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    with pytest.raises(ValueError, match="scenes made with frames 3, seed 0"):
        make(made, None, Settings(images=4, clips=1, frames=4, size=64, seed=2), lambda i, n: None)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected an empty folder .* holds no scenes\.json"):
        make(tmp_path, None, SMALL, lambda i, n: None)
    with pytest.raises(ValueError, match=r"expected a folder, .*mine\.txt is a file"):
        make(tmp_path / "mine.txt", None, SMALL, lambda i, n: None)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_photographs_are_known_by_what_they_are_not_by_how_they_are_named(tmp_path, monkeypatch):
    put(tmp_path / "photos", 5)
    only = Settings(kinds=("match",), images=4, size=64)
    first = Selection((str(tmp_path / "photos"),), option="--photos")
    assert make(tmp_path / "out", first, only, lambda i, n: None)
    monkeypatch.chdir(tmp_path)
    assert not make(tmp_path / "out", Selection(("photos",)), only, lambda i, n: None)
    with pytest.raises(ValueError, match="holds scenes made with photographs"):
        make(tmp_path / "out", None, only, lambda i, n: None)


def test_a_run_that_fails_leaves_nothing(tmp_path):
    put(tmp_path / "photos", 5)
    (tmp_path / "photos" / "4.png").write_bytes((tmp_path / "photos" / "4.png").read_bytes()[:90])
    photos = Selection((str(tmp_path / "photos"),), option="--photos")
    with pytest.raises(ValueError, match=r"--photos: .*4\.png cannot be decoded"):
        make(tmp_path / "out", photos, SMALL, lambda i, n: None)
    assert [file.name for file in tmp_path.iterdir()] == ["photos"]


def put(folder, count):
    """Photographs 0.png, ... whose red is 10 times their number."""
    folder.mkdir()
    noise = generator().integers(0, 256, (40, 60, 3), np.uint8)
    for i in range(count):
        noise[..., 0] = 10 * i
        Image.fromarray(noise).save(folder / f"{i}.png")


def test_photographs_of_validation_are_not_those_of_training(tmp_path):
    put(tmp_path / "photos", 6)
    train, validation = both(Selection((str(tmp_path / "photos"),)))
    for photographs, expected in ((train, {0, 10, 20, 30, 50}), (validation, {40})):
        windows = [photographs.window(generator(seed), 16, 16) for seed in range(40)]
        assert {int(window[0, 0, 0]) for window in windows} == expected
    one = Selection((str(tmp_path / "photos"),), Patterns(include=("0.png",)), "--photos")
    with pytest.raises(ValueError, match="--photos: expected at least 2 photographs"):
        both(one)


def test_warped_is_bilinear_at_the_places_that_a_homography_says():
    image = generator().integers(0, 256, (20, 24, 3), np.uint8)
    np.testing.assert_array_equal(warped(image, np.eye(3), (20, 24)), image)
    moved_by_pixels = warped(image, shift(3, -2), (20, 24))
    np.testing.assert_array_equal(moved_by_pixels[:18, 3:], image[2:, :21])
    matrix = between(
        np.array([[0, 0], [24, 0], [24, 20], [0, 20]], float),
        np.array([[2, 1], [22, 3], [20, 18], [3, 17]], float),
    )
    found = warped(image, matrix, (20, 24)).astype(float)
    back = np.linalg.inv(matrix)
    for y in range(6, 14):
        for x in range(6, 18):
            u, v, w = back @ (x + 0.5, y + 0.5, 1)
            u, v = u / w - 0.5, v / w - 0.5
            i, j = math.floor(v), math.floor(u)
            a, b = v - i, u - j
            values = image[i : i + 2, j : j + 2].astype(float)
            weights = np.outer((1 - a, a), (1 - b, b))[..., None]
            np.testing.assert_allclose(found[y, x], (values * weights).sum((0, 1)), atol=1)


def test_covered_is_where_a_pixels_middle_lies_in_the_shape():
    shape = generator().random((12, 12)) < 0.5
    matrix = similarity(11, 9, 33, 1.3, 12)
    found = covered(shape, matrix, (18, 22))
    back = np.linalg.inv(matrix)
    for y in range(18):
        for x in range(22):
            u, v, _ = back @ (x + 0.5, y + 0.5, 1)
            i, j = math.floor(v), math.floor(u)
            inside = 0 <= i < 12 and 0 <= j < 12
            assert found[y, x] == (inside and shape[i, j]), (y, x)
    assert found.any()


def test_between_takes_places_to_places():
    source = np.array([[0, 0], [9, 1], [8, 7], [1, 8]], float)
    target = np.array([[3, 2], [20, 1], [17, 15], [2, 19]], float)
    np.testing.assert_allclose(moved(source, between(source, target)), target, atol=1e-9)


def test_pasting_changes_what_is_labelled_and_nothing_else(photographs):
    each = piece(generator(), photographs, CLASSES.index("star"), 40)
    before = photographs.window(generator(1), 64, 64)
    image, ids = before.copy(), np.full((64, 64), 7, np.uint8)
    each.paste(image, ids, similarity(30, 34, 20, 1, 40), 3)
    seen = ids == 3
    assert 0.1 < seen.mean() < 0.4
    assert set(np.unique(ids)) == {3, 7}
    np.testing.assert_array_equal(image[~seen], before[~seen])
    assert (image[seen] != before[seen]).any(-1).mean() > 0.9


def test_a_piece_that_lies_beside_the_image_changes_nothing_and_one_across_is_cut(photographs):
    each = piece(generator(), photographs, CLASSES.index("disc"), 40)
    image, ids = np.zeros((64, 50, 3), np.uint8), np.zeros((64, 50), np.uint8)
    each.paste(image, ids, similarity(-40, 30, 0, 1, 40), 3)
    assert not ids.any()
    assert not image.any()
    each.paste(image, ids, similarity(50, 64, 0, 1, 40), 3)
    np.testing.assert_array_equal(ids == 3, np.pad(each.shape[:20, :20], ((44, 0), (30, 0))))


@pytest.mark.parametrize(
    ("name", "share"),  # of a square of 60 px with 2 px left free
    [
        ("disc", math.pi / 4),
        ("ring", math.pi / 4 * 0.75),
        ("square", 0.5),
        ("triangle", 3 * math.sqrt(3) / 16),
        ("star", 5 * 0.45 * math.sin(math.pi / 5) / 4),
    ],
)
def test_shapes_are_as_large_as_they_should_be(photographs, name, share):
    each = piece(generator(), photographs, CLASSES.index(name), 60)
    assert each.shape.sum() == pytest.approx(share * 56**2, rel=0.06)


@pytest.mark.parametrize("name", CLASSES[1:])
def test_outlines_leave_the_border_free_and_are_of_their_kind(photographs, name):
    for side in (16, 61):
        each = piece(generator(3), photographs, CLASSES.index(name), side)
        assert each.id == CLASSES.index(name)
        assert each.side == side
        assert 0.05 < each.shape.mean() < 0.8
        edge = np.ones((side, side), bool)
        edge[1:-1, 1:-1] = False
        assert not each.shape[edge].any()


def test_a_scene_to_segment_has_pieces_on_a_photograph(photographs):
    image, ids = segment.segment_scene(generator(), photographs, 64)
    assert image.shape == (64, 64, 3)
    assert set(np.unique(ids)) <= set(range(len(CLASSES)))
    assert 0.05 < (ids > 0).mean() < 0.95


def test_objects_of_a_clip_move_smoothly_and_hide_those_below(photographs):
    size = clips.frame_size(64)
    assert size == (64, 114)
    frames = clips.clip(generator(5), photographs, size, 9)
    assert len(frames) == 9
    labels = set(np.unique(frames[0][1]).tolist())
    assert labels == set(range(len(labels)))
    assert 3 <= len(labels) <= 5
    for label in labels - {0}:
        places = [np.argwhere(ids == label).mean(0) for _, ids in frames if (ids == label).any()]
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        assert steps.max() < 40  # pixels, of paths of at most 114 + 64 in 8 steps
    below, above = (
        Piece(1, np.full((20, 20, 3), v, np.uint8), np.ones((20, 20), bool)) for v in (50, 200)
    )
    still = np.array([[20.0, 20], [20, 20], [20, 20]])
    objects = [clips.Moving(each, still, (0, 0), (1, 1)) for each in (below, above)]
    black = np.zeros((50, 50, 3), np.uint8)
    image, ids = clips._frame(black, np.zeros(2), objects, 0.5, (40, 40))
    assert set(np.unique(ids)) == {0, 2}
    assert (image[ids == 2] == 200).all()
    assert (ids == 2).sum() == 400


def test_a_path_is_a_bezier_curve(photographs):
    each = piece(generator(), photographs, 1, 20)
    path = clips.Moving(each, np.array([[0.0, 0], [10, 20], [40, 0]]), (0, 90), (1, 2))
    middle = np.array([[10.0, 10.0]])  # of the piece
    for time, place in ((0, (0, 0)), (0.5, (15, 10)), (1, (40, 0))):
        np.testing.assert_allclose(moved(middle, path.at(time))[0], place, atol=1e-9)
    right = moved(np.array([[11.0, 10.0]]), path.at(1))[0]  # a pixel to the right: turned, twice
    np.testing.assert_allclose(right, (40, 2), atol=1e-9)


def test_depths_are_those_of_rays_that_meet_planes(photographs):
    size = 32
    shown = depth.planes(generator(2), photographs, size)
    image, found = depth.rendered(shown, size)
    assert np.isfinite(found).all()
    assert image.any(-1).mean() > 0.95
    wrong = 0
    for y in range(size):
        for x in range(size):
            ray = np.array([(x + 0.5) / size - 0.5, (y + 0.5) / size - 0.5, 1])
            nearest, colour = np.inf, None
            for plane in shown:
                axes = np.stack([plane.right, plane.down, -ray], 1)
                if abs(np.linalg.det(axes)) < 1e-15:
                    continue
                u, v, t = np.linalg.solve(axes, -plane.origin)
                i, j = math.floor(v), math.floor(u)
                height, width = plane.shape.shape
                if 0 <= i < height and 0 <= j < width and plane.shape[i, j] and 0 < t < nearest:
                    nearest, colour = t, plane.colours[i, j].astype(int)
            wrong += abs(nearest - found[y, x]) > 1e-6 or colour is None
    assert wrong == 0


def test_depths_are_written_in_millimetres_and_0_where_nothing_is():
    values = depth.units(np.array([[1.2345, np.inf], [0.0004, 9.9996]]))
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, [[1234, 0], [0, 10000]])


def test_a_floor_is_seen_by_its_horizon():
    """Depth is camera height over the share of the image below the horizon."""
    floor = depth._floor(generator(), Photographs(embedded_photos()), 64, 1.5)
    _, found = depth.rendered([floor], 32)
    assert np.isinf(found[:16]).all()
    row = 28
    assert found[row, 16] == pytest.approx(1.5 / ((row + 0.5) / 32 - 0.5))


@pytest.fixture(scope="module")
def pair(photographs):
    return match.pair(generator(4), photographs, 96)


def test_views_of_a_pair_agree_where_the_masks_say(pair):
    first, second = (view.astype(float) for view in pair.views)
    mask = pair.masks[0]
    assert 0.2 < mask.mean() < 0.95
    seen = warped(pair.views[1], np.linalg.inv(pair.homography), (96, 96)).astype(float)
    inside = mask.copy()  # not where bilinear values mix with what covers a view
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            inside &= np.roll(mask, step, axis)
    assert inside.sum() > 500
    agree = np.corrcoef(first[inside].ravel(), seen[inside].ravel())[0, 1]
    still = np.corrcoef(first[inside].ravel(), second[inside].ravel())[0, 1]
    assert agree > 0.9
    assert still < agree - 0.1


def test_masks_are_of_the_same_part_of_the_plane(pair):
    """Each pixel of a mask lies on one of the other mask."""
    for (a, b), matrix in (
        (pair.masks, pair.homography),
        (pair.masks[::-1], np.linalg.inv(pair.homography)),
    ):
        places = moved(middles((96, 96))[a], matrix)
        j, i = np.floor(places).astype(int).T
        assert ((i >= 0) & (i < 96) & (j >= 0) & (j < 96)).all()
        assert b[i, j].mean() > 0.9  # the other mask's own pixels may be covered at the borders


def test_homographies_are_written_between_pixels_counted_from_0(made, pair):
    of_pixels = match.of_pixels(pair.homography)
    place = moved(np.array([[10.5, 20.5]]), pair.homography)
    np.testing.assert_allclose(moved(np.array([[10.0, 20.0]]), of_pixels), place - 0.5)
    written = np.loadtxt(made / "match/v_00001/H_1_2")
    again = match.pair(SMALL.generator("match", 1), both(None)[1], 64)
    np.testing.assert_array_equal(written, match.of_pixels(again.homography))
    with Image.open(made / "match/v_00001/mask_2.png") as file:
        np.testing.assert_array_equal(np.array(file) > 0, again.masks[1])


def test_the_command_makes_them_once(tmp_path, capsys):
    words = ["data", "scenes", str(tmp_path / "out"), "--kinds", "match", "--images", "4"]
    main([*words, "--size", "64"])
    assert str(tmp_path / "out") in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "scenes.json").read_text())
    assert about["kinds"] == ["match"]
    assert about["photos"] == "embedded"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("README.txt", "match", "scenes.json"),
    ]
    main([*words, "--size", "64"])
    assert "holds them already" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["data", "scenes", str(tmp_path / "file" / "out"), "--kinds", "match"])
    said = capsys.readouterr().err
    assert f"OUT: {tmp_path / 'file' / 'out'} cannot be made (Not a directory)" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "3"], "--images: expected >= 4, got 3"),
        (["--frames", "2"], "--frames: expected >= 3, got 2"),
        (["--clips", "0"], "--clips: expected >= 1, got 0"),
        (["--size", "8"], "--size: expected >= 64, got 8"),
        (["--size", "10000000"], "--size: expected at most"),
        (["--images", str(10**12)], "--images: expected at most"),
        (["--clips", str(10**12)], "--clips: expected at most"),
        (["--frames", str(10**12)], "--frames: expected at most"),
        (["--seed", "-1"], "--seed: expected 0 to 2^63 - 1, got -1"),
        (["--kinds", "depht"], "--kinds: expected one of segment, clips, depth, match"),
        (["--photos", "nowhere"], "nowhere does not exist"),
        (["--photo", "x"], "--photo, did you mean --photos?"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit):
        main(["data", "scenes", str(tmp_path / "out"), *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

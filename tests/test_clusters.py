"""`fastequi eval clusters`: k-means, the assignment, classes of clusters; and perfect features."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from fastequi.cli.main import main
from fastequi.evaluate.geometry.assignment import assignment
from fastequi.evaluate.geometry.clusters import (
    Cells,
    areas_of,
    clusters_by_class,
    majority,
    matched,
)
from fastequi.evaluate.geometry.iou import areas, class_iou
from fastequi.evaluate.geometry.kmeans import assigned, kmeans, lloyd, spread
from fastequi.evaluate.geometry.masks import IGNORED
from fastequi.evaluate.geometry.retrieval import class_counts
from tests.support.painted import save, striped_folder


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 7), (40, 40), (60, 150)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_assignment_costs_what_scipys_costs(shape, whole):
    """Whole numbers have many ties."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        cost = rng.integers(-4, 5, shape).astype(float) if whole else rng.normal(size=shape)
        found = assignment(cost)
        assert len(set(found.tolist())) == shape[0]
        best = cost[linear_sum_assignment(cost)].sum()
        assert cost[np.arange(shape[0]), found].sum() == pytest.approx(best)


def test_an_assignment_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"n <= m, got \[3, 2\]"):
        assignment(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="expected finite"):
        assignment(np.array([[np.nan, 1.0]]))


def test_iterations_are_those_of_scikit_learn():
    points = torch.cat([drawn(60, 4, seed=i) + 3 * drawn(1, 4, seed=10 + i) for i in range(4)])
    start = points[[0, 1, 100, 200]]
    centres, away = lloyd(points, start, 100)
    theirs = KMeans(4, init=start.numpy(), n_init=1, tol=0, max_iter=100).fit(points.numpy())
    assert np.allclose(centres, theirs.cluster_centers_, atol=1e-4)
    assert away == pytest.approx(theirs.inertia_, rel=1e-5)
    assert torch.equal(assigned(points, centres)[0], torch.from_numpy(theirs.labels_).long())


def test_the_first_centres_are_drawn_by_squared_distance():
    """Four sites of equal points: never one twice, and the others by their squared distance."""
    sites = torch.tensor([[0.0], [1.0], [2.0]])
    points = sites.repeat_interleave(5, 0)
    pairs = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        assert sorted(spread(points, 3, generator).flatten().tolist()) == [0, 1, 2]
        generator = torch.Generator().manual_seed(seed)
        first, second = spread(points, 2, generator).flatten().tolist()
        if first == 0:
            pairs.append(second)
    assert len(pairs) == pytest.approx(100, abs=25)
    assert np.mean(np.array(pairs) == 2) == pytest.approx(4 / 5, abs=0.12)  # 4 : 1


def test_clusters_that_lose_their_points_start_again():
    points = torch.cat([torch.zeros(5, 2), torch.ones(5, 2), torch.tensor([[9.0, 9.0]])])
    centres, away = lloyd(points, torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, -50.0]]), 20)
    assert away == pytest.approx(0)
    assert sorted(centres[:, 0].tolist()) == [0, 1, 9]


def test_the_best_start_is_kept_and_seeds_repeat():
    points = torch.cat([drawn(30, 3, seed=i) + 6 * drawn(1, 3, seed=20 + i) for i in range(6)])
    one, many = (assigned(points, kmeans(points, 6, starts=starts))[1].sum() for starts in (1, 8))
    assert many <= one
    assert torch.equal(kmeans(points, 6, seed=3), kmeans(points, 6, seed=3))
    with pytest.raises(ValueError, match=r"expected 1 .. 180, the points, got 181"):
        kmeans(points, 181)


def test_classes_are_matched_for_the_largest_iou():
    joint = torch.randint(50, (4, 4), generator=torch.Generator().manual_seed(1)).double()
    found = class_iou(areas_of(joint, matched(joint))).sum()
    every = (class_iou(areas_of(joint, torch.tensor(p))).sum() for p in permutations(range(4)))
    assert found == pytest.approx(max(every))


def test_a_cluster_has_the_class_of_most_of_its_pixels():
    joint = torch.tensor([[1.0, 5.0, 0.0], [0.0, 0.0, 0.0], [9.0, 2.0, 8.0]])
    assert majority(joint).tolist() == [1, 0, 0]  # of nothing: 0 has most pixels in all


def test_areas_are_those_of_the_pixels():
    """Clusters of cells, painted onto the pixels, then compared pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(3, (10, 14), generator=generator).byte()
    mask[2:4] = 255
    tokens = drawn(3, 4, 5)
    counts = class_counts(mask, (3, 4), 3)
    centres, meaning = drawn(6, 5, seed=1), torch.tensor([0, 1, 2, 2, 1, 0])
    cells = Cells(tokens.flatten(0, 1), counts.flatten(0, 1))
    found = areas_of(clusters_by_class(cells, centres), meaning)
    label = torch.cdist(tokens.flatten(0, 1), centres).argmin(1).view(3, 4)
    rows = [int((y + 0.5) * 3 / 10) for y in range(10)]
    columns = [int((x + 0.5) * 4 / 14) for x in range(14)]
    painted = torch.tensor([[int(label[y, x]) for x in columns] for y in rows])
    assert torch.equal(found, areas(meaning[painted], mask, 3))


@pytest.mark.parametrize("fit_on", ["test", "train"])
def test_features_that_tell_the_classes_are_perfect(tmp_path, capsys, fit_on):
    out = tmp_path / "found.json"
    striped_folder(tmp_path / "data", 20, size=(32, 64))
    main(["eval", "clusters", "tests.support.painted:colours", "--data", str(tmp_path / "data"),
          "--fit-on", fit_on, "--clusters", "5", "--out", str(out),
          "--cache", str(tmp_path)])  # fmt: skip
    saved = json.loads(out.read_text())
    titles = ["3 clusters, matched to classes", "5 clusters, majority of their pixels"]
    assert list(saved["tables"]) == titles
    for title in titles:
        scores = {row["features"]: row["values"] for row in saved["tables"][title]["scores"]}
        assert scores["patch"] == [1.0, 1.0]
        assert scores["raw patches"] == [1.0, 1.0]
        assert max(scores["position only"]) < 0.8
        assert scores["most frequent class"][0] == pytest.approx(
            scores["most frequent class"][1] / 3
        )
    assert saved["test_used_for_fitting"] == (4 if fit_on == "test" else 0)
    assert ("fitted and tested on the same images" in capsys.readouterr().out) == (fit_on == "test")


def test_clusters_of_images_without_a_label_are_refused(tmp_path, capsys):
    root = striped_folder(tmp_path / "data", 5)
    for i in range(4):
        save(np.full((32, 32), IGNORED, np.uint8), root / "masks" / f"{i:02d}.png")
    words = ["eval", "clusters", "tests.support.painted:colours", "--data", str(root),
             "--clusters", "4", "--out", str(tmp_path / "f.json"),
             "--cache", str(tmp_path)]  # fmt: skip
    with pytest.raises(SystemExit):
        main([*words, "--fit-on", "train"])
    assert "labelled pixels in masks for training, all are ignored" in capsys.readouterr().err
    main(words)  # on the test images nothing is asked of those for training


def test_more_clusters_than_tokens_are_refused(tmp_path, capsys):
    striped_folder(tmp_path / "data", 5)
    with pytest.raises(SystemExit):
        main(["eval", "clusters", "tests.support.painted:colours", "--data",
              str(tmp_path / "data"), "--clusters", "17",
              "--out", str(tmp_path / "f.json"), "--cache", str(tmp_path)])  # fmt: skip
    assert "--clusters: expected at most 16 clusters, as many as tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (1, "--tokens: expected at least 2, one of each image, got 1"),
        (
            2,
            "--tokens: expected enough for 3 clusters, one for each class, got 2, which gives 2 to",
        ),
    ],
)
def test_too_few_tokens_are_said_by_their_option(tmp_path, capsys, tokens, said):
    striped_folder(tmp_path / "data", 10)
    with pytest.raises(SystemExit):
        main(["eval", "clusters", "tests.support.painted:colours", "--data",
              str(tmp_path / "data"), "--tokens", str(tokens),
              "--out", str(tmp_path / "f.json"), "--cache", str(tmp_path)])  # fmt: skip
    assert said in capsys.readouterr().err

"""`fastequi eval segment`: areas, retrieval, the linear head, windows; and perfect features."""

import json
import math
import re
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.cli.main import main
from fastequi.evaluate.geometry.dense_maps import Sizing, by_windows, resized, upsampled
from fastequi.evaluate.geometry.grids import raw_patches
from fastequi.evaluate.geometry.iou import MEASURE, areas, class_iou
from fastequi.evaluate.geometry.linear_head import POINTS, Fit, Known, fitted, interpolated
from fastequi.evaluate.geometry.masks import IGNORED, open_masks
from fastequi.evaluate.geometry.published_figures import of_depths, of_homographies, of_segments
from fastequi.evaluate.geometry.retrieval import Memory, class_counts, memory_of
from fastequi.evaluate.geometry.segment import (
    Segmentation,
    classes_of,
    evaluate_segments,
)
from fastequi.runtime import devices
from tests.support.painted import colour_grids, save, striped_folder

CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masked(*shape, classes, seed=0):
    """Class ids, a fifth of them ignored."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, classes, shape)
    return torch.from_numpy(np.where(rng.random(shape) < 0.2, IGNORED, ids).astype(np.uint8))


def confusion(found, truth, classes):
    """[true, found] pixel by pixel."""
    counts = np.zeros((classes, classes))
    for f, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if t != IGNORED:
            counts[t, f] += 1
    return counts


def test_figures_are_those_of_the_confusion_matrix():
    truths = [masked(7, 9, classes=4, seed=i) for i in range(3)]
    founds = [masked(7, 9, classes=4, seed=i).clamp(max=3) for i in (3, 4, 5)]
    sums = sum(areas(f, t, 4) for f, t in zip(founds, truths, strict=True))
    whole = sum(confusion(f, t, 4) for f, t in zip(founds, truths, strict=True))
    iou = [whole[c, c] / (whole[c].sum() + whole[:, c].sum() - whole[c, c]) for c in range(4)]
    assert class_iou(sums).tolist() == pytest.approx(iou)
    accuracy = np.trace(whole) / whole.sum()
    assert MEASURE.of_sums(sums).tolist() == pytest.approx([np.mean(iou), accuracy])


def test_classes_that_are_nowhere_do_not_count():
    truth = torch.tensor([[0, 0, 1, IGNORED]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 3]])
    sums = areas(found, truth, 5)
    iou = class_iou(sums)
    assert iou[:2].tolist() == [0.5, 0.5]
    assert iou[2:].isnan().all()  # 3 was found where nothing is known
    assert MEASURE.of_sums(sums).tolist() == pytest.approx([0.5, 2 / 3])


@pytest.mark.parametrize(("size", "grid"), [((8, 12), (2, 3)), ((7, 11), (3, 2)), ((3, 3), (5, 5))])
def test_pixels_are_counted_in_the_cell_of_their_middle(size, grid):
    mask = masked(*size, classes=3)
    expected = torch.zeros(*grid, 3)
    for y in range(size[0]):
        for x in range(size[1]):
            if mask[y, x] != IGNORED:
                row, column = int((y + 0.5) * grid[0] / size[0]), int((x + 0.5) * grid[1] / size[1])
                expected[row, column, int(mask[y, x])] += 1
    assert torch.equal(class_counts(mask, grid, 3), expected)


def test_retrieval_is_the_papers_formula():
    keys, shares = F.normalize(drawn(50, 6), dim=1), drawn(50, 3, seed=1).softmax(1)
    tokens = drawn(2, 3, 6, seed=2)
    found = Memory(keys, shares, neighbours=4, temperature=0.1)(tokens)
    for y in range(2):
        for x in range(3):
            q = tokens[y, x] / tokens[y, x].norm()
            cosine = [float(q @ key) for key in keys]
            best = sorted(range(50), key=lambda i: -cosine[i])[:4]
            weight = np.array([math.exp(cosine[i] / 0.1) for i in best])
            expected = (weight / weight.sum()) @ shares[best].numpy()
            assert found[y, x].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_faiss_finds_the_same_neighbours():
    pytest.importorskip("faiss")
    maps = [drawn(20, 30, 16, seed=i) for i in range(3)]
    counts = [drawn(20, 30, 4, seed=9 + i).exp() for i in range(3)]
    memories = [memory_of(maps, counts, 900, CPU, search=search) for search in ("torch", "faiss")]
    assert (memories[0].index, len(memories[1].keys)) == (None, 900)
    tokens = drawn(2, 7, 16, seed=20)
    ours, theirs = (memory(tokens) for memory in memories)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_faiss_that_is_not_there_is_said_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["eval", "segment", "none:encoder", "--data", str(tmp_path), "--search", "faiss"]
    with pytest.raises(SystemExit):
        main(words)
    assert (
        "--search: faiss is not installed: pip install 'fastequi[faiss]'" in capsys.readouterr().err
    )


def test_published_figures_stand_beside_their_own_sets_alone():
    """TIR's are of its table 6."""
    assert "TIR on iBOT .524" in " ".join(of_segments("ADE20K"))
    assert of_segments("folders") == []
    nyu, kitti = " ".join(of_depths("eigen")), " ".join(of_depths("garg"))
    assert "TIR on DINOv2 0.341 0.094" in nyu
    assert "ViT-S/14 .417" in nyu
    assert "iBOT 2.747 0.067, TIR on iBOT 2.755 0.067" in kitti
    assert of_depths("none") == []
    coco = ["val2017/000000000139.jpg", "COCO_val2014_000000000042.jpg"]
    assert (
        "iBOT 1.76, TIR on iBOT 1.53, DINOv2 1.68, TIR on DINOv2 1.42" in of_homographies(coco)[0]
    )
    assert of_homographies([*coco, "chelsea.jpg"]) == []


def test_the_memory_is_limited_and_holds_labelled_patches_alone():
    maps = [drawn(3, 4, 5, seed=i) for i in range(2)]
    counts = [torch.ones(3, 4, 2) * torch.tensor([3.0, 1.0]) for _ in range(2)]
    counts[0].view(12, 2)[:10] = 0  # two patches are labelled
    memory = memory_of(maps, counts, 10, CPU)
    assert len(memory.keys) == 2 + 5  # 5 of each image, as far as there are so many
    labelled = F.normalize(maps[0].view(12, 5)[10:], dim=1)
    assert torch.allclose(memory.keys[:2].sum(0), labelled.sum(0))
    assert torch.equal(memory.shares, torch.tensor([[0.75, 0.25]]).expand(7, 2))
    assert torch.allclose(memory.keys.norm(dim=1), torch.ones(7))
    assert len(memory_of(maps, counts, 10**6, CPU).keys) == 2 + 12


def test_rare_classes_are_remembered_first():
    """Of 99 patches of one class and one of another the latter is taken first in 63 % of draws:
    u < min(99 u_i), a minimum that is nearly exponential with mean 1, has probability 1 - 1/e."""
    counts = torch.zeros(10, 10, 2)
    counts[..., 0] = 1
    counts[3, 7] = torch.tensor([0.0, 1.0])
    rare = [
        float(memory_of([torch.ones(10, 10, 1)], [counts], 1, CPU, seed=i).shares[0, 1])
        for i in range(400)
    ]
    assert sum(rare) / 400 == pytest.approx(1 - math.exp(-1), abs=0.08)


def test_images_are_resized_to_multiples_of_the_patch():
    image = torch.arange(3 * 30 * 50, dtype=torch.float32).view(3, 30, 50).byte()
    assert resized(image, 16, 8).shape == (3, 16, 24)  # 26.7 px of width are 3.3 patches
    assert resized(image, 3, 8).shape == (3, 8, 8)
    same = torch.randint(256, (3, 24, 40), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.allclose(resized(same, 24, 8), same / 255)


def test_windows_average_tokens_where_they_overlap():
    """Of tokens that see their own patch alone, windows give what the whole image gives; of tokens
    that tell their window's mean, the mean of the windows that cover them."""
    grids = colour_grids()
    image = drawn(3, 56, 88).sigmoid()
    whole, windows = grids(image[None])["patch"], by_windows(grids, image)["patch"]
    assert torch.allclose(windows, whole, atol=1e-6)

    def means(images):
        level = images.mean((1, 2, 3))[:, None, None, None]
        return {"patch": level.expand(-1, images.shape[2] // 8, images.shape[3] // 8, 1)}

    found = by_windows(replace(grids, of=means), image)["patch"][0, ..., 0]
    tops, lefts = [0, 16, 24], [0, 16, 32, 48, 56]  # windows of 32 px, by 2/3 of 4 patches: 16 px
    expected = torch.zeros(7, 11)
    for y in range(7):
        for x in range(11):
            covering = [
                image[:, t : t + 32, s : s + 32].mean()
                for t in tops
                for s in lefts
                if t <= 8 * y < t + 32 and s <= 8 * x < s + 32
            ]
            expected[y, x] = torch.stack(covering).mean()
    assert torch.allclose(found, expected, atol=1e-6)


def test_each_scale_has_a_map_and_pixels_see_the_image_whole():
    grids = colour_grids()
    image = (drawn(3, 64, 96).sigmoid() * 255).byte()
    maps = Sizing(side=32, windows=True, scales=(1.0, 2.0)).maps(grids, image)
    assert [tuple(part["patch"].shape) for part in maps] == [(4, 6, 3), (8, 12, 3)]
    raw = raw_patches(grids)
    (found,) = Sizing(side=64, windows=True).maps(raw, image)
    expected = raw(resized(image, 64, 8)[None])["raw patches"][0]
    assert torch.equal(found["raw patches"], expected)


def test_what_is_known_is_taken_at_the_middles_of_a_lattice():
    target = masked(9, 13, classes=3)
    found = Known.of(target, (2, 3), lambda x: x != IGNORED)
    expected = {}
    for i in range(2 * POINTS):
        for j in range(3 * POINTS):
            value = int(
                target[int((i + 0.5) * 9 / (2 * POINTS)), int((j + 0.5) * 13 / (3 * POINTS))]
            )
            if value != IGNORED:
                expected[i * 3 * POINTS + j] = value
    pairs = zip(found.places.tolist(), found.values.tolist(), strict=True)
    assert dict(pairs) == expected
    assert len(found.places) == len(expected)


def test_features_at_places_are_those_of_the_upsampled_map():
    """Every place of three maps of different sizes, in any order."""
    maps = [drawn(3, 5, 6), drawn(1, 15, 6, seed=1), drawn(15, 1, 6, seed=2)]
    whole = [upsampled(x, (x.shape[0] * POINTS, x.shape[1] * POINTS)).flatten(1).mT for x in maps]
    places = torch.stack(
        [torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) for x in whole]
    )
    found = interpolated(maps, torch.tensor([x.shape[:2] for x in maps]), places)
    expected = torch.cat([x[at] for x, at in zip(whole, places, strict=True)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_linear_head_finds_a_linear_truth_through_the_upsampling():
    """Features of very different scales and means, images of two sizes."""
    scale, offset = torch.tensor([100.0, 0.01, 1.0, 5.0]), torch.tensor([-50.0, 3.0, 0.0, 900.0])
    sizes = [(3, 4), (5, 2)] * 6
    maps = [drawn(*size, 4, seed=i) * scale + offset for i, size in enumerate(sizes)]
    weight = torch.tensor([0.02, 150.0, -1.0, 0.3])
    bias = 2.5 - offset @ weight
    known = []
    for x, size in zip(maps, sizes, strict=True):
        points = POINTS * x.shape[0], POINTS * x.shape[1]
        truth = upsampled((x @ weight + bias)[..., None], points)[0]
        known.append(Known.of(truth, size, lambda value: value < 4))  # larger ones are not
    known[3] = Known(*[x[:0] for x in vars(known[3]).values()])  # nor this image

    def squares(found, wanted):
        return (found[:, 0] - wanted).square().mean()

    fit = Fit(steps=300, batch=4, pixels=64, lr=0.2, weight_decay=0.0)
    head = fitted(maps, known, 1, squares, CPU, fit)
    errors = [(head(x)[..., 0] - (x @ weight + bias)).abs().max() for x in maps]
    assert max(errors) < 0.02  # of values with a deviation of 3
    said = []
    again = fitted(maps, known, 1, squares, CPU, fit, said.append)
    assert torch.equal(again.weight, head.weight)
    assert said[-1] == "linear head, step 300 of 300 (--steps)"


def test_scales_are_averaged_as_probabilities():
    """One scale is sure by little, another by much: logits alone would go with the larger."""
    small = torch.tensor([0.0, 3.0]).view(1, 1, 2)
    large = torch.tensor([0.4, 0.0]).view(1, 1, 2)
    both = (small[0, 0].softmax(0) + large[0, 0].softmax(0)).argmax()
    assert classes_of([small, large], (2, 2), is_logits=True).tolist() == [[both] * 2] * 2
    assert classes_of([large], (1, 1), is_logits=True).tolist() == [[0]]
    shares = [torch.tensor([0.6, 0.4]).view(1, 1, 2), torch.tensor([0.3, 0.7]).view(1, 1, 2)]
    assert classes_of(shares, (1, 1), is_logits=False).tolist() == [[1]]


def test_features_that_tell_the_classes_are_perfect(tmp_path):
    out = tmp_path / "found.json"
    striped_folder(tmp_path / "data", 20, size=(32, 48))
    main(["eval", "segment", "tests.support.painted:colours", "--data", str(tmp_path / "data"),
          "--out", str(out), "--cache", str(tmp_path), "--steps", "100",
          "--lr", "0.03"])  # fmt: skip
    saved = json.loads(out.read_text())
    assert list(saved["tables"]) == ["linear head, 100 steps", "retrieval, k = 30, T = 0.02"]
    for title, least in zip(saved["tables"], (0.97, 1.0), strict=True):
        scores = {row["features"]: row["values"] for row in saved["tables"][title]["scores"]}
        assert list(scores) == ["most frequent class", "raw patches", "position only", "patch"]
        assert min(scores["patch"]) >= least
        assert max(scores["position only"]) < 0.8
        iou = saved["class_iou"][title]["colours, patch"]
        assert sum(iou) / 3 == pytest.approx(scores["patch"][0])
    masks = open_masks(tmp_path / "data")
    train, truth = (
        np.bincount(np.stack([masks.mask(pair) for pair in pairs]).flatten(), minlength=3)
        for pairs in (masks.pairs.train, masks.pairs.test)
    )
    share = truth[train.argmax()] / truth.sum()
    assert scores["most frequent class"] == pytest.approx([share / 3, share])


def test_masks_without_a_label_for_training_are_refused(tmp_path):
    for split, value in (("train", IGNORED), ("val", np.arange(32) % 2)):
        for i in range(2):
            save(np.zeros((32, 32, 3), np.uint8), tmp_path / split / "images" / f"{i}.png")
            save(np.full((32, 32), value, np.uint8), tmp_path / split / "masks" / f"{i}.png")
    with pytest.raises(ValueError, match="labelled pixels in masks for training"):
        evaluate_segments(
            partial(open_masks, tmp_path), Segmentation(), [colour_grids()], {}, lambda _: None
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "--steps: expected >= 1, got 0"),
        (["--temperature", "0"], "--temperature: expected >= 1e-06, got 0.0"),
        (["--lr", "1e38"], "--lr: expected > 0 and at most 1e+09, got 1e+38"),
        (["--lr", "inf"], "--lr: expected a finite number, got inf"),
        (["--classes", "1"], "--classes: expected 0 or 2 .. 255, got 1"),
        (["--methods"], "--methods: expected linear, retrieval or both, got none"),
        (["--scales", "1", "-2"], "--scales: expected one or more, all > 0, got 1 -2"),
        (["--scales", "0"], "fastequi: --scales: expected one or more, all > 0, got 0"),
        (["--scales"], "--scales: expected one or more, all > 0, got none"),
        (["--scales", "1", "1"], "--scales: expected different ones, got 1 1"),
        (["--scales", "inf"], "--scales: expected a finite number, got inf"),
        (["--scales", "1", "nan"], "--scales: expected a finite number, got nan"),
        (["--seed", str(10**22)], f"--seed: expected 0 to 2^63 - 1, got {10**22}"),
        (["--side", "-1"], "--side: expected 0 or more"),
        ([], "--data: expected a folder"),
    ],
)
def test_wrong_options_are_named(capsys, options, said):
    with pytest.raises(SystemExit):
        main(["eval", "segment", "tests.support.painted:colours", *options])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cache-gb", "-1"], "--cache-gb: expected 0 or more, got -1"),
        (["--cache-gb", "nan"], "--cache-gb: expected a finite number, got nan"),
        (["--cache", "FILE"], "--cache: .*file cannot be made"),
        (["--cache", "FILE/in"], "--cache: .*file/in cannot be made"),
        (["--against", "nothere"], "--against: nothere does not exist"),
        (["--side", "7"], "--side: expected at least 8, the patch size of raw patches, got 7"),
        (["--side", "100000"], r"--side: expected at most 4564 .*\(1.0 GB free\), got 100000"),
        (["--scales", "1e300"], r"--scales: expected at most 143 .*, got 1e\+300"),
        (["--scales", "1", "1000"], r"--scales: expected at most 143 .*, got 1000"),
        (
            ["--scales", "1", "0.2"],
            r"--scales: expected at least 0\.25, .* patch size of .*got 0\.2",
        ),
        (["--memory", "7"], "--memory: expected at least 8, one patch of each training image"),
        (["--memory", "12"], "--neighbours: expected at most 12, as --memory, got 30"),
        (["--neighbours", "129"], "--neighbours: expected at most 128, as many patches as are"),
        (
            ["--lr", "1e9"],
            r"--lr: expected a rate at which .* converges, got 1e\+09: after 9 steps",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.setattr(devices, "free_memory", lambda _: 10**9)
    (tmp_path / "file").write_text("")
    kept = save(np.zeros((2, 2), np.uint8), tmp_path / "maps" / "x" / "kept.png")
    kept = kept.rename(kept.with_suffix(".safetensors"))
    words = [word.replace("FILE", str(tmp_path / "file")) for word in options]
    if "--cache" not in options:
        words += ["--cache", str(tmp_path / "maps")]
    with pytest.raises(SystemExit):
        main(["eval", "segment", "tests.support.painted:colours", *words, "--steps", "9",
              "--data", str(striped_folder(tmp_path / "data")),
              "--out", str(tmp_path / "f.json")])  # fmt: skip
    found = capsys.readouterr().err
    assert re.search(said, found)
    assert found.count("\n") == 1
    assert kept.exists()
    assert not (tmp_path / "f.json").exists()


def test_as_many_neighbours_as_patches_are_taken(tmp_path):
    out = tmp_path / "found.json"
    main(["eval", "segment", "tests.support.painted:colours", "--neighbours", "128", "--out",
          str(out), "--cache", str(tmp_path), "--methods", "retrieval",
          "--data", str(striped_folder(tmp_path / "data"))])  # fmt: skip
    assert list(json.loads(out.read_text())["tables"]) == ["retrieval, k = 128, T = 0.02"]

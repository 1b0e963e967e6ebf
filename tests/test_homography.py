"""`fastequi eval homography` on views that are made: its figures, its head, its command."""

import json

import pytest
import torch

from fastequi.cli.main import main
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.splits import TEST_REGION
from fastequi.evaluate.geometry import corner_head, homography
from fastequi.evaluate.geometry.corner_head import HeadFit, MapPairs, fitted_head, predicted
from fastequi.evaluate.geometry.figures import Measured, table
from fastequi.evaluate.geometry.projective import between_corners, corners, moved, token_centres
from fastequi.evaluate.geometry.warped_pairs import WarpedPairs, warped_pairs
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.results import Row, read
from tests.support.places import small_vit

CPU = torch.device("cpu")


def relations(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.rand(count, 4, 2, generator=generator, dtype=torch.float64)
    offsets = (2 * offsets - 1) * size / 4
    return offsets, between_corners(offsets, (size, size))


def flow_maps(truth, size, grid):
    """Tokens that hold how far each centre moves, beside tokens that hold nothing of it."""
    patch = size // grid[0]
    centres = token_centres(grid, patch)
    flow = (moved(centres, truth) - centres).float().unflatten(1, grid)
    noise = torch.randn(flow.shape, generator=torch.Generator().manual_seed(9))
    return MapPairs(noise, flow)


def test_the_head_reads_offsets_that_tokens_hold():
    size, grid = 64, (4, 4)
    offsets, truth = relations(256, size, 0)
    test_offsets, test_truth = relations(64, size, 1)
    train, test = (flow_maps(each, size, grid) for each in (truth, test_truth))
    state = torch.random.get_rng_state()
    fits = [HeadFit(epochs=epochs, batch=16) for epochs in (12, 1, 1)]
    heads = [fitted_head(train, offsets / 16, CPU, fit) for fit in fits]
    assert torch.equal(torch.random.get_rng_state(), state)
    found, *short = (predicted(head, test, CPU) * 16 for head in heads)
    error = (found - test_offsets).norm(dim=-1).mean()
    assert error < test_offsets.norm(dim=-1).mean() / 3
    assert torch.equal(*short)  # the same seed, the same head


def test_the_head_is_three_convolutions_on_both_views():
    head = corner_head.CornerHead(torch.zeros(20), torch.ones(20), (3, 5))
    convolutions = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 3
    assert convolutions[0].in_channels == 20
    assert head(torch.zeros(2, 20, 3, 5)).shape == (2, 4, 2)
    flat = corner_head.CornerHead(torch.ones(20), torch.zeros(20), (3, 5))
    assert torch.equal(flat.scale, torch.ones(20, 1, 1))  # a constant channel is only centred


def test_figures_are_those_by_hand():
    errors = torch.tensor([0.5, 1.0, 2.0, 4.0, 12.5]).double()
    lost = torch.tensor([False, False, False, False, True])
    row = Row(encoder=None, features="x", is_baseline=False)
    sums = homography.sums_of_errors(errors, lost)
    [score] = table(homography.OF_MATCHES, [Measured(row, sums)]).scores
    assert score.values == pytest.approx((4.0, 2 / 5, 3 / 5, 4 / 5, 1 / 5))
    [score] = table(homography.OF_HEAD, [Measured(row, homography.sums_of_errors(errors))]).scores
    assert score.values == pytest.approx((4.0, 2 / 5, 3 / 5, 4 / 5))


def test_offsets_of_the_head_are_where_corners_go():
    offsets, truth = relations(3, 32, 0)
    images = torch.zeros(3, 3, 32, 32, dtype=torch.float16)
    pairs = WarpedPairs(images, images, truth, torch.arange(3))
    torch.testing.assert_close(homography.corner_offsets(pairs), offsets)
    assert torch.equal(corners(32, 32)[2], torch.tensor([32.0, 32.0]).double())


def test_pairs_are_the_same_with_photometric_change():
    """Over more than one batch of windows."""
    pytest.importorskip("nvidia.dali")
    encoder, source = small_vit(CPU), embedded_photos(TEST_REGION)
    clean, changed = (
        warped_pairs(source, encoder, "homography", 150, photometric=change)
        for change in (None, Photometric())
    )
    assert torch.equal(clean.to_first, changed.to_first)
    assert torch.equal(clean.photographs, changed.photographs)
    assert not torch.equal(clean.first, changed.first)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    pytest.importorskip("nvidia.dali")
    folder = tmp_path_factory.mktemp("homography")
    out = folder / "found.json"
    main(["eval", "homography", "tests.support.places:small_vit", "--pairs", "24", "--train-pairs",
          "32", "--epochs", "1", "--cache", str(folder / "maps"), "--out", str(out)])  # fmt: skip
    return json.loads(out.read_text())


def test_the_command_judges_every_row_by_every_method(saved):
    assert read(saved).kind == "homography"
    methods = ("RANSAC", "least squares", "head")
    assert list(saved["tables"]) == [*methods, *(f"{name}, photometric" for name in methods)]
    for title, found in saved["tables"].items():
        rows = [(score["encoder"], score["features"]) for score in found["scores"]]
        assert rows == [
            *((None, name) for name in ("no motion", "raw patches", "position only")),
            *((name, "patch") for name in ("random init", "small")),
        ]
        names = [figure["name"] for figure in found["figures"]]
        ending = [] if title.startswith("head") else ["no fit"]
        shares = ["within 1 px", "within 3 px", "within 5 px"]
        assert names == ["MCE, px", *shares, *ending]
        assert found["images"] == 24
        for score in found["scores"]:
            assert score["values"][1] <= score["values"][2] <= score["values"][3]


def test_no_motion_costs_what_corners_move_by(saved):
    """By up to a quarter of the side each: a mean of 24.5 of 128 px (32 times .7652)."""
    costs = [
        next(s for s in found["scores"] if s["features"] == "no motion")["values"][0]
        for found in saved["tables"].values()
    ]
    assert costs == pytest.approx([costs[0]] * 6)
    assert costs[0] == pytest.approx(24.5, abs=3)


def test_without_training_pairs_there_is_no_head(tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    out = tmp_path / "found.json"
    main(["eval", "homography", "tests.support.places:small_vit", "--pairs", "8", "--train-pairs",
          "0", "--cache-gb", "0", "--out", str(out)])  # fmt: skip
    found = json.loads(out.read_text())
    assert not any("head" in title for title in found["tables"])
    assert "no fit: fewer than four mutual matches" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "1"], "--pairs: expected >= 2, got 1"),
        (["--train-pairs", "-1"], "--train-pairs: expected 0 (no head) or more, got -1"),
        (["--epochs", "0"], "--epochs: expected >= 1, got 0"),
        (["--side", "480"], "--side: expected --data to be a folder of pairs of known homography"),
    ],
)
def test_options_that_cannot_be_are_errors(words, said, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "homography", "tests.support.places:small_vit", *words])
    assert said in capsys.readouterr().err


def test_pairs_that_do_not_fit_into_memory_are_refused_at_once(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "homography", "tests.support.places:small_vit", "--cache-gb", "0",
              "--train-pairs", "1000000000"])  # fmt: skip
    assert "--train-pairs" in capsys.readouterr().err

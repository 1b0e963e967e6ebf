"""`eval layers`: exact on encoders whose equivariance is known, and as a user types it."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.blocks import block_grids, place, unknown_blocks
from fastequi.evaluate.geometry.grids import Grids, position_only
from fastequi.evaluate.geometry.layers import FIGURES, action_cosines, actions, cosines, shift_of
from fastequi.models import vit

SIDE, PATCH = 48, 8  # a grid of 6x6
EQUI, INV, POOLED, RAW_EQUI, RAW_INV, RAW_POOLED = range(6)
TURNS, FLIPS = ("90°", "180°", "270°"), ("left to right", "upside down")
SHIFTS = ("up", "to the left")


def grids_from(of, side=SIDE):
    return Grids(
        encoder="toy",
        names=("map",),
        patch_size=PATCH,
        image_size=side,
        is_baseline=False,
        device=torch.device("cpu"),
        of=lambda images: {"map": of(images.double() / 255)},
    )


def patches(images):
    """[B, h, w, 3] mean colour of each patch."""
    return F.avg_pool2d(images, PATCH).permute(0, 2, 3, 1)


def convolved(images):
    """A 3x3 kernel that turns and flips leave alone, channels mixed, zeros beyond the border."""
    kernel = torch.tensor([[1.0, 2, 1], [2, -5, 2], [1, 2, 1]]).double()
    weight = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(1)).double() * kernel
    maps = F.conv2d(patches(images).permute(0, 3, 1, 2), weight, padding=1)
    return maps.permute(0, 2, 3, 1).tanh()


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(0)
    larger = SIDE + shift_of(SIDE, PATCH) * PATCH
    return torch.randint(256, (5, 3, larger, larger), generator=generator, dtype=torch.uint8)


def test_an_equivariant_encoder_has_equivariance_one_and_a_mean_that_turns_leave(windows):
    found = action_cosines(grids_from(convolved), windows, SIDE)
    assert list(found) == [*TURNS, *FLIPS, *SHIFTS]
    for name, by_features in found.items():
        values = by_features["map"]
        assert values.shape == (5, len(FIGURES))
        torch.testing.assert_close(values[:, [EQUI, RAW_EQUI]], torch.ones(5, 2).double())
        assert values[:, INV].mean() < 0.8, name
        if name not in SHIFTS:
            torch.testing.assert_close(values[:, [POOLED, RAW_POOLED]], torch.ones(5, 2).double())
        else:  # other patches come in
            assert values[:, POOLED].max() < 0.999


def test_a_pooled_encoder_is_invariant_and_its_tokens_say_nothing_of_place(windows):
    def pooled(images):
        mean = images.mean((2, 3))
        return mean[:, None, None].expand(-1, SIDE // PATCH, SIDE // PATCH, -1)

    found = action_cosines(grids_from(pooled), windows, SIDE)
    for name in (*TURNS, *FLIPS):
        torch.testing.assert_close(found[name]["map"], torch.ones(5, 6).double())


def test_what_says_only_the_place_is_invariant_and_not_equivariant(windows):
    found = action_cosines(position_only(grids_from(patches)), windows, SIDE)
    for name, by_features in found.items():
        values = by_features["position only"]
        torch.testing.assert_close(values[:, [INV, RAW_INV]], torch.ones(5, 2))
        assert values[:, EQUI].max() < (0.9 if name in SHIFTS else 0.2)
        # its mean token is the set's, of which nothing is left when that is taken off
        assert values[:, POOLED].isnan().all()
        torch.testing.assert_close(values[:, RAW_POOLED], torch.ones(5))


def test_a_common_part_makes_raw_cosines_one_and_leaves_centred_ones(windows):
    plain = action_cosines(grids_from(convolved), windows, SIDE)
    shared = action_cosines(grids_from(lambda x: convolved(x) + 1000), windows, SIDE)
    for name in (*TURNS, *FLIPS, *SHIFTS):
        old, new = plain[name]["map"], shared[name]["map"]
        assert new[:, RAW_INV].min() > 0.9999
        torch.testing.assert_close(new[:, :POOLED], old[:, :POOLED], rtol=1e-3, atol=1e-3)


def where(name, i, j, n, k):
    """Row and column of f(x) that g takes to (i, j) of an n x n grid, written out by hand."""
    return {
        "90°": (j, n - 1 - i),  # counterclockwise
        "180°": (n - 1 - i, n - 1 - j),
        "270°": (n - 1 - j, i),
        "left to right": (i, n - 1 - j),
        "upside down": (n - 1 - i, j),
        "up": (i + k, j),
        "to the left": (i, j + k),
    }[name]


@pytest.mark.parametrize("n", [4, 6, 9])
def test_cosines_are_those_of_a_loop_over_interior_tokens(n):
    generator = torch.Generator().manual_seed(n)
    changed, plain = torch.randn(2, 3, n, n, 7, generator=generator).double()
    mean, k = torch.randn(7, generator=generator).double(), max(n // 4, 1)
    for action in (a for group in actions(n * PATCH, PATCH).values() for a in group):
        found = cosines(changed, plain, action, mean)
        for b in range(3):
            expected = {column: [] for column in (EQUI, INV, RAW_EQUI, RAW_INV)}
            for i in range(1, n - 1):
                for j in range(1, n - 1):
                    y, x = where(action.name, i, j, n, k)
                    if not (1 <= y < n - 1 and 1 <= x < n - 1):
                        continue
                    token = changed[b, i, j]
                    for column, other, off in (
                        (EQUI, plain[b, y, x], mean),
                        (INV, plain[b, i, j], mean),
                        (RAW_EQUI, plain[b, y, x], 0),
                        (RAW_INV, plain[b, i, j], 0),
                    ):
                        one, two = token - off, other - off
                        dot = sum(float(p * q) for p, q in zip(one, two, strict=True))
                        norms = math.sqrt(float((one**2).sum()) * float((two**2).sum()))
                        expected[column].append(dot / norms)
            for column, values in expected.items():
                assert float(found[b, column]) == pytest.approx(sum(values) / len(values))
            means = changed[b].flatten(0, 1).mean(0), plain[b].flatten(0, 1).mean(0)
            raw = F.cosine_similarity(*means, dim=0)
            assert float(found[b, RAW_POOLED]) == pytest.approx(float(raw))
            off = F.cosine_similarity(means[0] - mean, means[1] - mean, dim=0)
            assert float(found[b, POOLED]) == pytest.approx(float(off))


def test_images_change_as_their_tokens_do():
    """A pixel's own row and column, as a token of patches of one pixel."""
    n, k = 8, 2
    rows, columns = torch.meshgrid(torch.arange(n + k), torch.arange(n + k), indexing="ij")
    window = torch.stack([rows, columns, rows])[None].float()
    for action in (a for group in actions(n, 1).values() for a in group):
        image = action.of_windows(window)
        assert image.shape == (1, 3, n, n)
        for i in range(n):
            for j in range(n):
                assert tuple(image[0, :2, i, j].tolist()) == where(action.name, i, j, n, k)


def test_grids_that_have_no_interior_are_refused():
    assert [shift_of(side, 8) for side in (32, 48, 64, 224)] == [1, 1, 2, 7]
    with pytest.raises(ValueError, match=r"at least 4x4 tokens, of which some are .*, got 3x3"):
        shift_of(24, 8)
    with pytest.raises(ValueError, match="expected a multiple of the patch size 14, got 32 px"):
        shift_of(32, 14)


def small(**options):
    torch.manual_seed(0)
    network = vit.vit_tiny(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2).eval()

    def features(x):
        patch = network.forward_features(x).patch
        return {"patch": patch, "z_equi": patch[..., :3] * 2}

    about = {"image_size": 32, "patch_size": 8, "network": network, **options}
    return Encoder(name="small", features=features, names=("patch", "z_equi"), **about), network


def test_maps_of_every_block_end_with_the_encoders_own():
    encoder, network = small(mean=(0.0, 0.1, 0.2), std=(1.0, 0.5, 0.25))
    grids, images = block_grids(encoder), torch.rand(3, 3, 32, 40)
    assert grids.names == ("embedding", "block1", "block2", "z_equi")
    assert [place(name) for name in grids.names] == [0, 1, 2, None]
    maps = grids(images)
    x = (images - torch.tensor([0.0, 0.1, 0.2])[:, None, None]) / torch.tensor([1.0, 0.5, 0.25])[
        :, None, None
    ]
    with torch.no_grad():
        own = network.forward_features(x).patch
        embedded = network.embed(x)
        first = network.norm(network.encode_both([embedded], 1)[1][0])[:, 1:]
    assert maps["block2"].shape == (3, 4, 5, 32)
    torch.testing.assert_close(maps["block2"].flatten(1, 2), own)
    torch.testing.assert_close(maps["block1"].flatten(1, 2), first)
    zero = network.norm(embedded.tokens)[:, 1:]
    torch.testing.assert_close(maps["embedding"].flatten(1, 2), zero)
    torch.testing.assert_close(maps["z_equi"], maps["block2"][..., :3] * 2)


def test_of_another_network_only_the_last_tokens_are_known():
    encoder, _ = small()
    foreign = replace(encoder, network=torch.nn.Identity())
    (remark,) = unknown_blocks({"ours": encoder, "theirs": foreign})
    assert remark.startswith("theirs: no ViT of this library")
    assert block_grids(foreign).names == ("patch", "z_equi")
    assert [place(name) for name in ("patch", "block", "blocks1")] == [None] * 3


def test_the_command_leaves_tables_and_a_plot(tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    from fastequi.cli.main import main
    from tests.support.configs import run_folder, small_demo

    run = run_folder(tmp_path / "run", small_demo())
    main(["eval", "layers", str(run), "--windows", "6"])
    saved = json.loads((run / "eval_layers.json").read_text())
    assert (saved["kind"], saved["windows"], saved["shift_px"]) == ("layers", 6, 8)
    assert list(saved["tables"]) == ["turns", "flips", "shifts"]
    depth = small_demo().model.depth
    for found in saved["tables"].values():
        assert [figure["name"] for figure in found["figures"]] == list(FIGURES)
        assert [row["features"] for row in found["scores"] if row["encoder"] == "run"] == [
            *("embedding", *(f"block{i}" for i in range(1, depth + 1)), "z_equi")
        ]
        ours, fresh = (
            {row["features"]: row["values"] for row in found["scores"] if row["encoder"] == who}
            for who in ("run", "random init")
        )
        assert ours == fresh  # nothing was trained
        for row in found["scores"]:
            assert all(abs(v) < 1 + 1e-6 for v in row["values"] if v == v)
    printed = capsys.readouterr().out
    assert "turns: of its blocks run is most equivariant at " in printed
    assert f"{run / 'eval_layers.svg'}" in printed
    drawing = ElementTree.parse(run / "eval_layers.svg").getroot()
    assert len(drawing.findall(".//{*}polyline")) == 3 * 4 * 2  # E, I, P and e of each group
    main(["eval", "layers", str(run), "--windows", "2", "--each", "--out", f"{tmp_path}/each.json"])
    saved = json.loads((tmp_path / "each.json").read_text())
    assert "turns, 90°" in saved["tables"]
    assert len(saved["tables"]) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layers", "x", "--windows", "1"], "--windows: expected >= 2, got 1"),
        (["position", "x", "--windows", "9"], "--windows: expected >= 10, got 9"),
        (["position", "x", "--test-windows", "1"], "--test-windows: expected >= 2, got 1"),
    ],
)
def test_too_few_windows_are_refused(words, said, capsys):
    from fastequi.cli.main import main

    with pytest.raises(SystemExit):
        main(["eval", *words])
    assert said in capsys.readouterr().err

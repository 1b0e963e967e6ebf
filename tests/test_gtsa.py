"""GTSA as a whole: its losses written out, its schedules, its teacher, a run through DALI."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench import recipes
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.cli.main import main
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.kernels import backend as backends
from fastequi.kernels import correspondence, crop_align, rot90_batch
from fastequi.methods.gtsa import Weights
from fastequi.models.maps import MapProjector, RotationHead
from fastequi.recipes import RECIPES
from fastequi.train import pretrain
from tests.support.allocations import sizes_of
from tests.support.configs import gtsa as small
from tests.support.correspondence import by_hand as matched_by_hand
from tests.support.crop_align import aligned

CPU = torch.device("cpu")


def built(config, n=2, dtype=torch.float64):
    torch.manual_seed(0)
    model = build(config).to(dtype)
    with torch.no_grad():  # a student that has moved
        for p in model.student.parameters():
            p += 0.1 * torch.randn_like(p)
    model.before_step(0.5)
    batch = synthetic(config, n, CPU)
    crops = None if batch.local_crops is None else batch.local_crops.to(dtype)
    return model.train(), replace(batch, v1=batch.v1.to(dtype), local_crops=crops)


def losses_by_hand(model, batch):
    """One image and one pair at a time, the paper's order of things: no boxes in rotated pixels."""
    scale = model.views.mean, model.views.std
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in scale)
    crops = [batch.v1, (batch.u.double() / 255 - mean) / std]
    crops += list(batch.local_crops) if batch.local_crops is not None else []

    def patches(encoder, image):
        side = image.shape[-1] // encoder.patch_size
        return encoder(image[None])[0, 1:].unflatten(0, (side, side))  # no class token

    def chain(maps):
        return model.predictor(model.student.projector(maps[None]))[0]

    student = [[patches(model.student.encoder, x) for x in crop] for crop in crops]
    teacher = [
        [model.teacher.projector(patches(model.teacher.encoder, x)[None])[0].detach() for x in crop]
        for crop in crops[:2]
    ]
    found = batch.overlaps
    pairs = [(0, 1, found.of_globals, 0), (1, 0, found.of_globals, 1)]
    for i in range(len(crops) - 2):
        pairs += [(2 + i, t, found.of_local_crops, 2 * i + t) for t in (0, 1)]
    crop_losses, matches = [], []
    for s, t, shared, place in pairs:
        bins = model.bins[s >= 2]
        for b in range(len(batch)):
            ours, theirs = chain(student[s][b]), teacher[t][b]
            patch = model.backbone.patch_size
            one = aligned(ours, shared.own[place, b].double() / patch, bins)
            other = aligned(theirs, shared.other[place, b].double() / patch, bins)
            angle = int(found.rotations[s, b] - found.rotations[t, b])
            other = torch.rot90(other, angle % 4, (0, 1))
            crop_losses.append(-F.cosine_similarity(one, other, dim=-1).mean())
            rows = ours.flatten(0, 1)[None], theirs.flatten(0, 1)[None]
            matches.append(matched_by_hand(*rows, max(rows[0].shape[1] // 2, 1)))
    turns = []
    for crop, of_crop in zip(student, found.rotations, strict=True):
        for maps, turn in zip(crop, of_crop, strict=True):
            logits = model.rotation_head(maps.mean((0, 1))[None])[0]
            turns.append(-torch.log_softmax(logits, 0)[turn])
    return {
        "crop": torch.stack(crop_losses).mean(),
        "correspondence": torch.stack(matches).mean(),
        "rotation": torch.stack(turns).mean(),
    }


@pytest.mark.parametrize("crops", [0, 2])
def test_losses_and_all_gradients_are_those_of_the_loops(crops):
    model, batch = built(small(local_crops=crops))
    parts = model(batch)
    expected = losses_by_hand(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name].double(), value, rtol=1e-6, atol=1e-6)
    total = expected["crop"] + 0.5 * expected["correspondence"] + 0.5 * expected["rotation"]
    # the rotations' logits pass float32
    torch.testing.assert_close(parts["loss"].double(), total, rtol=1e-6, atol=1e-6)
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(total, learnt.values())
    got = torch.autograd.grad(parts["loss"], learnt.values())
    for name, mine, theirs in zip(learnt, got, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9, name
    assert not any(name.startswith("teacher") for name in learnt)


def test_correspondence_sets_in_after_its_share_of_the_training():
    model, batch = built(small())
    assert Weights().correspondence_from == pytest.approx(0.1)
    model.before_step(0.099)
    early = model(batch)
    assert "correspondence" not in early
    torch.testing.assert_close(early["loss"], early["crop"] + 0.5 * early["rotation"])
    model.before_step(0.1)
    late = model(batch)
    torch.testing.assert_close(late["loss"], early["loss"] + 0.5 * late["correspondence"])


def test_the_teacher_is_the_moving_average_and_drops_no_path():
    model, _ = built(small())
    assert not model.teacher.training
    before = copy.deepcopy(model.teacher.state_dict())
    model.after_step(0.5)
    momentum = 1 - (1 - model.weights.momentum) / 2
    student = model.student.state_dict()
    for name, value in model.teacher.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * student[name]
        torch.testing.assert_close(value, expected)
    assert model.encoder is model.teacher.encoder
    assert model.backbone is model.student.encoder


def test_networks_have_the_papers_shapes():
    projector = MapProjector(384, 768)
    convs = [m for m in projector.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (384, 384, (3, 3))
    ] * 2
    maps = torch.randn(2, 5, 4, 384)
    assert projector(maps).shape == (2, 5, 4, 768)
    x = maps
    for conv in convs:  # channel by channel, in the layout of images
        y = conv(x.permute(0, 3, 1, 2))
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = x + F.gelu(y).permute(0, 2, 3, 1)
    torch.testing.assert_close(projector(maps), projector.last(x), rtol=1e-4, atol=1e-4)
    head = RotationHead(384)
    linear, norms = (
        [m for m in head if isinstance(m, kind)] for kind in (torch.nn.Linear, torch.nn.LayerNorm)
    )
    assert [m.out_features for m in linear] == [768, 768, 128, 4]
    x = tokens = torch.randn(2, 384)
    for layer, norm in zip(linear[:2], norms[:2], strict=True):
        x = F.gelu(norm(layer(x)))
    # nothing between the last norm and the last layer, as in the authors' code
    torch.testing.assert_close(head(tokens), linear[3](norms[2](linear[2](x))))


def test_the_class_token_takes_part_in_attention_and_its_output_is_dropped():
    assert RECIPES["gtsa_vits16"]().model.class_token
    model, batch = built(small())
    model(batch)["loss"].backward()
    assert model.student.encoder.cls_token.grad.norm() > 1e-6
    assert set(model.features(batch.v1)) == {"patch", "projected"}
    assert model.features(batch.v1)["patch"].shape[1] == 36


class Counting:
    """A kernel that counts its launches."""

    def __init__(self, kernel, seen):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid):
        self.seen.append(self.kernel.fn.__name__)
        return self.kernel[grid]


@pytest.mark.slow
def test_launches_of_a_step_do_not_depend_on_the_batch(monkeypatch):
    """Operators and kernels of forward and backward, all 18 pairs' like those of one."""
    seen = []
    for module, name in (
        (crop_align, "crop_align_kernel"),
        (crop_align, "spread_kernel"),
        (correspondence, "best_matches_kernel"),
        (correspondence, "matched_kernel"),
        (rot90_batch, "rot90_batch_kernel"),
    ):
        monkeypatch.setattr(module, name, Counting(getattr(module, name), seen))
    counts = []
    for n, crops in ((1, 2), (3, 2), (1, 8)):
        model, batch = built(small(local_crops=crops, batch_size=8), n, torch.float32)
        with backends.force("triton"):
            model(batch)  # constants go to the device once
            seen.clear()
            operators = sizes_of(lambda m=model, b=batch: m(b)["loss"].backward())
            counts.append((len(operators), sorted(seen)))
    assert counts[0] == counts[1]
    assert counts[0] == counts[2]  # nor on the number of local crops
    # two sizes of crops: pooling for the norms and for the loss, its gradient; matches there and
    # back, their gradient
    assert len(counts[0][1]) == 2 * (3 + 3) + 1
    print(f"{counts[0][0]} operators, {len(counts[0][1])} kernels a step")


@pytest.mark.slow  # 160 steps; its losses and gradients are checked above
def test_it_learns_on_photographs_and_does_not_collapse():
    """160 steps of 16 images, scaled down; `python -m bench.recipes gtsa_vits16` shows more."""
    found = recipes.run("gtsa_vits16", 160, 16)
    first, last = found["first"], found["last"]
    for name in ("crop", "correspondence", "rotation"):
        assert last[name] < first[name], name
    assert last["std"] > 0.2


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    config = small()
    config = replace(config, train=replace(config.train, epochs=1, log_every=2, checkpoint_every=3))
    source = embedded_photos()
    whole = pretrain(config, source, tmp_path / "whole", max_steps=6)
    pretrain(config, source, tmp_path / "parts", max_steps=3)
    torch.rand(7)
    parts = pretrain(config, source, tmp_path / "parts", resume=True, max_steps=6)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert not torch.equal(whole.teacher.encoder.pos_embed, whole.student.encoder.pos_embed)


def test_the_command_line_trains_it(tmp_path, capsys):
    photos = embedded_photos().paths[0].rsplit("/", 1)[0]
    options = [
        *("--data", photos, "--run-dir", str(tmp_path / "run"), "--max-steps", "2"),
        *("--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "1"),
        *("--data.image-size", "64", "--data.source-size", "64", "--data.local-crop-size", "32"),
        *("--data.local-crops", "2", "--data.batch-size", "4", "--gtsa.dim", "16"),
        *("--gtsa.correspondence-from", "0"),
    ]
    main(["pretrain", "gtsa_vits16", *options])
    (*_, last) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(last)
    for name in ("crop", "correspondence", "rotation", "accuracy", "std"):
        assert math.isfinite(row[name])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    encoder = load_encoder(str(tmp_path / "run"), "cpu")  # what every evaluation takes
    assert encoder.names == ("patch", "projected")
    assert encoder.features(torch.zeros(2, 3, 64, 64))["patch"].shape == (2, 16, 32)


def test_features_are_the_teachers():
    config = small()
    model, _ = built(config, dtype=torch.float32)
    images = torch.randn(2, 3, 48, 48)
    features = model.eval().features(images)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "patch": (2, 36, 16),
        "projected": (2, 36, 12),
    }
    torch.testing.assert_close(features["patch"], model.teacher.encoder(images)[:, 1:])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("data", {"rotations": False}, "data.rotations: expected true for method=gtsa, got False"),
        ("data", {"source_size": 256}, "data.source_size: expected data.image_size=224"),
        ("data", {"mask_share": 0.5}, "data.mask_share: expected 0 for method=gtsa"),
        (
            "data",
            {"local_crop_size": 90},
            "model.patch_size: expected a divisor of data.local_crop_size=90",
        ),
        ("gtsa", {"bins": 0}, "gtsa.bins: expected >= 1, got 0"),
        ("gtsa", {"momentum": 1.5}, "gtsa.momentum: expected 0 .. 1, got 1.5"),
        ("gtsa", {"rotation_weight": -1.0}, "gtsa.rotation_weight: expected >= 0"),
    ],
)
def test_bad_settings_name_the_field(section, changes, message):
    config = RECIPES["gtsa_vits16"]()
    with pytest.raises(ValueError, match=message):
        replace(config, **{section: replace(getattr(config, section), **changes)})


def test_rotations_are_for_gtsa_and_a_batch_without_overlaps_is_refused():
    config = small()
    with pytest.raises(
        ValueError, match=r"data\.rotations: expected false, and data\.overlap 0, for method=tir"
    ):
        replace(RECIPES["dino_vits16"](), data=config.data)
    model, batch = built(config)
    with pytest.raises(ValueError, match="batch: expected one with overlaps"):
        model(replace(batch, overlaps=None))

"""The method: DINO, iBOT and DINOv2 with and without TIR, by the official losses written out."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.recipes import scaled
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.methods.dino import Schedule
from fastequi.methods.teacher import momentum_at
from fastequi.recipes import RECIPES
from tests.support.dino import official_dino, official_sinkhorn

CPU = torch.device("cpu")
BASES = {"dino": "dino_vits16", "ibot": "ibot_vits16", "dinov2": "dinov2_vitl16"}


def small(base: str, tir: bool = True, chunked: bool = False, **method) -> Config:
    config = scaled(RECIPES[("tir_" if tir else "") + BASES[base]]())
    return replace(
        config,
        model=replace(config.model, embed_dim=32, depth=2, num_heads=2, drop_path=0.0),
        tir=replace(
            config.tir,
            **{"dim": 24 if tir else 16, "equi_dim": 8 * tir, "decoder_width": 8, **method},
        ),
        distill=replace(
            config.distill, prototypes=16, hidden_dim=32, bottleneck_dim=8, chunked=chunked
        ),
    )


def built(config: Config, n: int = 6):
    torch.manual_seed(0)
    model = build(config).double()
    with torch.no_grad():  # a student that has moved, tokens that differ
        for p in model.base.student.parameters():
            p += 0.05 * torch.randn_like(p)
        if model.base.mask_token is not None:
            model.base.mask_token.normal_()
    model.before_step(0.5)
    batch = synthetic(config, n, CPU)
    crops = batch.local_crops.double() if batch.local_crops is not None else None
    return model.train(), replace(batch, v1=batch.v1.double(), local_crops=crops)


def parts_by_hand(model, batch, koleo_weight):
    """One image, one crop, one token at a time; no packed forward, no fused loss."""
    base = model.base
    _, end = model._points(batch.path)
    v2 = model._view(batch.u, end, torch.float64)
    views = torch.stack([batch.v1, v2])  # [2, B, ...]
    count, images = views.shape[:2]
    mask = batch.masks.mask if batch.masks is not None else None

    def tokens(encoder, image, hidden=None):
        hidden = None if hidden is None else hidden[None]
        return encoder.encode([encoder.embed(image[None], hidden, base.mask_token)])[0][0]

    student = [
        [tokens(base.student.encoder, views[v, b], None if mask is None else mask[v, b])
         for b in range(images)] for v in range(count)
    ]  # fmt: skip
    teacher = [
        [tokens(base.teacher.encoder, views[v, b]) for b in range(images)] for v in range(count)
    ]
    local = [[tokens(base.student.encoder, image) for image in crop] for crop in batch.local_crops]

    def head(which, token):
        hidden = which.mlp(token)
        if which.split == "hidden" and which.equi_dim:
            hidden = hidden[: len(hidden) - which.equi_dim]
        unit = which.bottleneck(hidden)
        unit = unit / unit.norm()
        rows = which.last.weight[: which.prototypes]
        return unit @ (rows / rows.norm(dim=1, keepdim=True)).T

    classes = torch.stack(
        [torch.stack([head(base.student.head, t[0]) for t in view]) for view in student + local]
    )
    told = torch.stack(
        [torch.stack([head(base.teacher.head, t[0]) for t in view]) for view in teacher]
    ).detach()
    temp = base.temp
    sinkhorn = base.class_loss.targets == "sinkhorn"
    q = official_sinkhorn(told.flatten(0, 1), temp, 3).view(told.shape) if sinkhorn else None
    out = {"class": official_dino(classes, told, 0.1, temp, q=q)}
    if mask is not None:
        pairs = [
            (v, b, i) for v in range(count) for b in range(images) for i in range(mask.shape[2])
            if mask[v, b, i]
        ]  # fmt: skip
        s = torch.stack([head(base.student.patch_head, student[v][b][1 + i]) for v, b, i in pairs])
        t = torch.stack([head(base.teacher.patch_head, teacher[v][b][1 + i]) for v, b, i in pairs])
        t = t.detach()
        q = official_sinkhorn(t, temp, 3) if sinkhorn else F.softmax(t / temp, -1)
        each = -(q * F.log_softmax(s / 0.1, -1)).sum(-1)
        total = 0.0
        for v in range(count):
            for b in range(images):
                mine = [k for k, (w, c, _) in enumerate(pairs) if (w, c) == (v, b)]
                if mine:
                    total = total + each[mine].mean()
        out["patch"] = total / (count * images)
    if koleo_weight:
        out["koleo"] = 0.0
        for view in student:
            z = F.normalize(torch.stack([t[0] for t in view]), dim=-1)
            dots = (z @ z.T).fill_diagonal_(-1)
            near = dots.argmax(1)
            out["koleo"] = out["koleo"] - torch.log((z - z[near]).norm(dim=1)).mean()
    return out


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("tir", "chunked"), [(True, False), (False, False), (True, True)])
def test_the_losses_are_the_papers(base, tir, chunked):
    config = small(base, tir, chunked)
    model, batch = built(config)
    koleo = config.distill.koleo_weight if base == "dinov2" else 0.0
    out = model(batch)
    expected = parts_by_hand(model, batch, koleo)
    for name, value in expected.items():
        torch.testing.assert_close(out[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
    assert ("patch" in out) == (base != "dino")
    assert ("koleo" in out) == (base == "dinov2")
    ssl = out["class"] + out.get("patch", 0.0) + koleo * out.get("koleo", 0.0)
    torch.testing.assert_close(out["ssl"].double(), ssl.double())
    params = [p for p in model.base.parameters() if p.requires_grad]
    ours = torch.autograd.grad(out["ssl"], params, allow_unused=True)
    total = sum({"koleo": koleo}.get(name, 1.0) * value for name, value in expected.items())
    theirs = torch.autograd.grad(total, params, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        b = torch.zeros_like(a) if b is None and a is not None else b
        if a is None:
            assert b is None or b.abs().max() == 0
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_masked_tokens_and_local_crops_never_reach_the_decoders(base):
    model, batch = built(small(base))
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = replace(batch, local_crops=batch.local_crops.requires_grad_())
    out = model(batch)
    (of_crops,) = torch.autograd.grad(
        out["recon"], batch.local_crops, allow_unused=True, retain_graph=True
    )
    assert of_crops is None or of_crops.abs().max() == 0
    (z,) = seen
    assert z.shape == (6, 16, 16)
    z1, z2 = z.split(8, -1)
    if base == "dino":
        assert (z1.abs().sum(-1) > 0).all()
        return
    for view, mask in ((z1, batch.masks.mask[0]), (z2, batch.masks.mask[1])):
        assert mask.any()
        assert not mask.all()
        assert (view[mask] == 0).all()
        assert (view[~mask].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("base", BASES)
def test_the_channels_are_split_where_the_paper_splits_them(base):
    """SSL sees nothing of z_equi's weights, the reconstruction nothing of the prototypes'."""
    model, batch = built(small(base))
    head = model.base.student.patch_head
    assert head.split == ("hidden" if base == "dinov2" else "prototypes")
    last, hidden = head.last.weight, head.mlp[2].weight
    rows = last if base != "dinov2" else hidden
    inv = len(rows) - 8
    out = model(batch)
    (ssl,) = torch.autograd.grad(out["ssl"], rows, retain_graph=True)
    (recon,) = torch.autograd.grad(out["recon"], rows)
    assert ssl[:inv].abs().sum() > 0
    assert recon[inv:].abs().sum() > 0
    assert (ssl[inv:] == 0).all()
    assert (recon[:inv] == 0).all()
    assert model.base.student.head.last.weight.shape[0] == (16 if base == "dinov2" else 24)


@pytest.mark.parametrize("base", BASES)
def test_without_equivariant_channels_it_is_the_base_bit_for_bit(base):
    """Whatever TIR was asked to do; and its parts are those of the base alone."""
    gradients = []
    for method in ({"num_steps": 2}, {"num_steps": 0}, {"num_steps": 2, "recon_weight": 0.0}):
        model, batch = built(small(base, tir=False, **method))
        out = model(batch)
        assert "recon" not in out
        out["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    model, batch = built(small(base, tir=False))
    alone = model.base(
        batch.v1, model._view(batch.u, model._points(batch.path)[1], torch.float64), batch
    )
    alone.parts["loss"].backward()
    gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert alone.z_equi is None
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_the_teacher_follows_the_student_and_learns_nothing_itself():
    model, batch = built(small("ibot"))
    base = model.base
    before = copy.deepcopy(base.teacher.state_dict())
    model(batch)["loss"].backward()
    assert all(p.grad is None for p in base.teacher.parameters())
    model.after_step(0.25)
    momentum = 1 - (1 - 0.99) * (math.cos(math.pi * 0.25) + 1) / 2
    for name, value in base.teacher.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * base.student.state_dict()[name]
        torch.testing.assert_close(value, expected)
    assert model.train().base.teacher.training is False
    assert model.encoder is base.teacher.encoder
    assert model.backbone is base.student.encoder


def test_schedules():
    times = Schedule(0.996, 0.07, 0.04, temp_warmup=0.2, freeze=0.1)
    assert momentum_at(times.momentum, 0) == pytest.approx(0.996)
    assert momentum_at(times.momentum, 0.5) == pytest.approx(0.998)
    assert momentum_at(times.momentum, 1) == 1
    assert [times.temp_at(t) for t in (0, 0.1, 0.2, 1)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    model, batch = built(small("dino"))
    for progress, frozen in ((0.0, True), (0.5, False)):
        model.zero_grad()
        model.before_step(progress)
        model(batch)["ssl"].backward()
        assert (model.base.student.head.last.weight.grad is None) == frozen
        assert model.base.student.head.bottleneck.weight.grad is not None
    still = Schedule(temp_warmup=0.0)
    assert still.temp_at(0) == still.teacher_temp


@pytest.mark.parametrize("base", BASES)
def test_centres_move_alike_in_chunks(base):
    centres = []
    for chunked in (False, True):
        model, batch = built(small(base, chunked=chunked))
        model(batch)
        model.after_step(0.5)
        losses = model.base.class_loss, model.base.patch_loss
        centres.append([loss.center.value for loss in losses if loss and loss.center is not None])
    assert len(centres[0]) == {"dino": 1, "ibot": 2, "dinov2": 0}[base]
    for stored, never in zip(*centres, strict=True):
        assert stored.abs().max() > 0
        torch.testing.assert_close(never, stored, rtol=1e-5, atol=1e-7)


def test_statistics_tell_a_collapse():
    model, batch = built(small("dino", tir=False))
    out = model(batch)
    assert 0 < out["teacher_entropy"] <= math.log(16) + 1e-6
    assert 1 <= out["prototypes"] <= 16
    assert out["std"] > 1e-3
    with torch.no_grad():
        model.base.student.head.bottleneck.weight.zero_()
        model.base.teacher.head.bottleneck.weight.zero_()
        for branch in (model.base.student, model.base.teacher):
            branch.head.bottleneck.bias.fill_(1.0)
    out = model(batch)
    assert out["std"] < 1e-6
    spread = out["teacher_entropy"].exp()  # every row alike: no more are used than one row uses
    torch.testing.assert_close(out["prototypes"], spread)


def test_features_are_the_teachers():
    model, batch = built(small("ibot"))
    features = model.eval().features(batch.v1)
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {"patch": (16, 32), "cls": (1, 32), "z_inv": (16, 8), "z_equi": (16, 8)}
    with torch.no_grad():
        model.base.student.encoder.cls_token += 1
    assert torch.equal(model.features(batch.v1)["cls"], features["cls"])


def test_masks_that_do_not_belong_are_refused():
    model, batch = built(small("dino"))
    _, other = built(small("ibot"))
    with pytest.raises(ValueError, match="expected no masks"):
        model(replace(batch, masks=other.masks))
    model, batch = built(small("ibot"))
    with pytest.raises(ValueError, match="expected masks"):
        model(replace(batch, masks=None))


@pytest.mark.parametrize("base", BASES)
def test_under_autocast_losses_stay_finite_and_float32(base):
    config = small(base)
    torch.manual_seed(0)
    model = build(config)
    batch = synthetic(config, 4, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    [pytest.param("dino", marks=pytest.mark.slow), "ibot", "dinov2"],  # iBOT contains DINO's loss
)
def test_compiled_it_is_the_same_and_schedules_make_no_new_graphs(base):
    torch._dynamo.reset()
    model, batch = built(small(base))
    compiled = torch.compile(model, backend="aot_eager")
    graphs = []
    for step in range(6):
        model.base.temp = 0.04 + 0.001 * step
        torch.testing.assert_close(compiled(batch)["loss"], model(batch)["loss"])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1]

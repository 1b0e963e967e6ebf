"""Distillation: a student's tokens regress a frozen teacher's, of any size and normalisation."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.methods.distillation import Distillation, FrozenTeacher, TermWeights
from fastequi.models.vit import VisionTransformer
from fastequi.weights.teachers import attach, with_teacher
from tests.support.configs import config_of, tensors

CPU = torch.device("cpu")
SIZE = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def vit(**options):
    torch.manual_seed(3)
    return VisionTransformer(**{"img_size": 32, "patch_size": 8, **SIZE, **options})


def saved(folder, **options):
    """A teacher as somebody publishes it: timm's names, a config.json beside."""
    network = vit(**options)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    said = {"num_heads": 2, "img_size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
    (folder / "config.json").write_text(json.dumps(said))
    return network


def distilled(path, recipe="tir_distill_vits16", **teacher):
    config = config_of(recipe)
    return replace(config, teacher=replace(config.teacher, path=str(path), **teacher))


def test_the_loss_is_the_cosine_and_smooth_l1_distance_of_mapped_tokens():
    student, teacher = vit(embed_dim=16).double(), vit().double()
    weights = TermWeights(cosine=0.7, smooth_l1=0.2, cls=0.5, patch=2.0)
    base = Distillation(student, 24, True, weights).double()
    half = (0.5, 0.5, 0.5)
    base.attach(FrozenTeacher(teacher, half, half, half, half).double())
    views = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    found, patch, z_equi = base(*views, None)
    assert z_equi is None
    images = views.flatten(0, 1)
    torch.testing.assert_close(patch, student.forward_features(images).patch)
    expected = 0
    for which, weight, layer in (("cls", 0.5, base.cls_map), ("patch", 2.0, base.patch_map)):
        s = layer(getattr(student.forward_features(images), which))
        t = getattr(teacher.forward_features(images), which).detach()
        cosine = (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1))
        scaled = s - t / t.std()
        smooth = torch.where(scaled.abs() < 1, scaled.square() / 2, scaled.abs() - 0.5)
        expected = expected + weight * (0.7 * (1 - cosine.mean()) + 0.2 * smooth.mean())
        torch.testing.assert_close(found[f"{which}_cosine"], cosine.mean().detach())
    torch.testing.assert_close(found["loss"].double(), expected, rtol=1e-6, atol=0)
    found["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in base.parameters())


def test_the_teacher_sees_images_in_its_own_normalisation_and_grid():
    teacher = vit(img_size=16, patch_size=4)  # as many patches at 16 px as the student's at 32
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    own = (0.1, 0.2, 0.3), (1.0, 0.5, 0.25)
    frozen = FrozenTeacher(teacher, mean, std, *own)
    pixels = torch.rand(2, 3, 32, 32)
    shape = [torch.tensor(v)[:, None, None] for v in (*own, mean, std)]
    found = frozen((pixels - shape[0]) / shape[1], (4, 4))
    small = F.interpolate((pixels - shape[2]) / shape[3], (16, 16), mode="bicubic", antialias=True)
    expected = teacher.forward_features(small)
    torch.testing.assert_close(found.patch, expected.patch, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cls, expected.cls, rtol=1e-4, atol=1e-4)
    assert not frozen.train().encoder.training
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_student_comes_to_its_teachers_tokens(tmp_path):
    saved(tmp_path / "teacher", img_size=32, patch_size=16)
    config, teacher = with_teacher(distilled(tmp_path / "teacher", "distill_vits16"))
    assert config.teacher.embed_dim == 24
    assert config.teacher.class_token
    torch.manual_seed(0)
    method = build(config)
    attach(method, teacher, CPU)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    batch = synthetic(config, 16, CPU)
    parts = []
    for _ in range(60):
        parts.append(method(batch))
        parts[-1]["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    first, last = parts[0], parts[-1]
    for name in ("patch_cosine", "cls_cosine"):
        assert last[name] > 0.8 > first[name] + 0.3
    assert last["loss"] < 0.4 * first["loss"]
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("recipe", ["tir_distill_vits16", "distill_vits16"])
def test_a_run_resumes_exactly_with_its_teacher_and_is_read_without_it(tmp_path, recipe):
    pytest.importorskip("nvidia.dali")
    from fastequi.train import pretrain

    saved(tmp_path / "teacher")
    config, photos = distilled(tmp_path / "teacher", recipe), embedded_photos()
    pretrain(config, photos, tmp_path / "whole", max_steps=2)
    pretrain(config, photos, tmp_path / "parts", max_steps=1)
    begun = Config.from_json((tmp_path / "parts/config.json").read_text())
    assert len(begun.teacher.sha256) == 64
    pretrain(begun, photos, tmp_path / "parts", max_steps=2, resume=True)
    whole, parts = (
        tensors(tmp_path / name / "checkpoints/step_00000002", "model")
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert not any("teacher" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    saved(tmp_path / "other", patch_size=16)
    (tmp_path / "teacher/model.safetensors").write_bytes(
        (tmp_path / "other/model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"--teacher\.path: expected the file of teacher\.sha256"):
        pretrain(begun, photos, tmp_path / "parts", max_steps=3, resume=True)
    (tmp_path / "teacher/model.safetensors").unlink()
    encoder = load_encoder(str(tmp_path / "whole"), "cpu")
    assert ("z_equi" in encoder.names) == recipe.startswith("tir_")
    assert encoder.features(torch.rand(1, 3, 32, 32))["z_inv"].shape == (1, 16, 24)


def test_what_is_missing_or_wrong_is_said_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"--teacher\.path: expected a file or folder"):
        with_teacher(config_of("distill_vits16"))
    with pytest.raises(FileNotFoundError, match=r"--teacher\.path: .*nothing"):
        with_teacher(distilled(tmp_path / "nothing"))
    config = config_of("distill_vits16")
    with pytest.raises(ValueError, match=r"teacher\.cosine: expected > 0, or teacher\.smooth_l1"):
        replace(config, teacher=replace(config.teacher, cosine=0.0, smooth_l1=0.0))
    with pytest.raises(ValueError, match=r"teacher\.patch_weight: expected >= 0"):
        replace(config, teacher=replace(config.teacher, patch_weight=-1.0))
    with pytest.raises(ValueError, match=r"teacher\.embed_dim: expected the teacher's channels"):
        build(config)
    base = Distillation(vit(), 24, False, TermWeights())
    views = torch.zeros(2, 1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="attach: the teacher has not been given"):
        base(*views, None)


def test_a_class_token_is_regressed_where_both_have_one(tmp_path):
    saved(tmp_path / "teacher", class_token=False)
    config, teacher = with_teacher(distilled(tmp_path / "teacher"))
    assert config.teacher.class_token is False
    method = build(config)
    assert method.base.cls_map is None
    attach(method, teacher, CPU)
    out = method(synthetic(config, 4, CPU))
    assert "cls_cosine" not in out
    assert out["recon"] > 0

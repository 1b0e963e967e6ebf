"""The anchor: its value for every method, whose gradient it has, what it holds and what is kept."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("nvidia.dali")

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.config import AnchorConfig, Config, InitConfig
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.methods.anchor import KINDS, Anchor
from fastequi.train import pretrain
from tests.support.configs import config_of, tensors
from tests.support.runs import FSDP, SGD, expect_close, run, same, whole_and_parts

NAMES = ["tir_vicreg_vits16", "simclr_vits16", "dino_vits16", "ibot_vits16"]
NAMES += ["dinov2_vitl16", "gtsa_vits16"]


def anchored(name, kind="cosine", weight=2.0, **optim) -> Config:
    config = config_of(name, precision="fp32")
    optim = replace(config.optim, lr=0.01, **optim)
    return replace(config, anchor=AnchorConfig(kind, weight), optim=optim)


def moved(config):
    """A method whose learning encoder has left its anchor, and a batch, in float64."""
    torch.manual_seed(0)
    method = build(config).double()
    with torch.no_grad():
        for p in method.backbone.parameters():
            p += 0.1 * torch.randn_like(p)
    batch = synthetic(config, 3, torch.device("cpu"))
    crops = None if batch.local_crops is None else batch.local_crops.double()
    return method.eval(), replace(batch, v1=batch.v1.double(), local_crops=crops)


def views_of(method, batch):
    """Both global views as the method makes them: v1, and u normalised or transformed."""
    if hasattr(method, "student"):
        return batch.v1, method._normalised(batch.u, torch.float64)
    return batch.v1, method._view(batch.u, method._points(batch.path)[1], torch.float64)


def mean_distance(kind, ours, theirs, hidden):
    """Patch by patch, or pair by pair; of masked ones the student saw none."""

    def cosine(a, b):
        return (a @ b) / (a.norm() * b.norm())

    distances = []
    for a, b, gone in zip(ours, theirs, hidden.tolist(), strict=True):
        seen = [place for place, is_gone in enumerate(gone) if not is_gone]
        if kind == "cosine":
            distances += [1 - cosine(a[i], b[i]) for i in seen]
        else:
            pairs = [(i, j) for i in seen for j in seen]
            distances += [(cosine(a[i], a[j]) - cosine(b[i], b[j])) ** 2 for i, j in pairs]
    return sum(distances) / len(distances)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "cosine") for name in NAMES), ("ibot_vits16", "gram"), ("gtsa_vits16", "gram")],
)
def test_the_loss_is_what_its_formula_says_of_what_was_seen(name, kind):
    method, batch = moved(anchored(name, kind))
    out = method(batch)
    encoder, frozen = method.backbone, method.anchor.frozen
    prefix, views = encoder.num_prefix_tokens, torch.cat(views_of(method, batch))
    hidden = torch.zeros(6, len(encoder(views)[0]) - prefix, dtype=torch.bool)
    token = None
    if batch.masks is not None:
        hidden, token = batch.masks.mask.flatten(0, 1), method.base.mask_token
        assert hidden.any()
    with torch.no_grad():
        ours = encoder.encode([encoder.embed(views, hidden, token)])[0]
        theirs = frozen(views)
    expected = mean_distance(kind, ours[:, prefix:], theirs[:, prefix:], hidden)
    assert expected > (1e-3 if kind == "cosine" else 1e-5)
    torch.testing.assert_close(out["anchor"].double(), expected, rtol=1e-5, atol=0)
    method.anchor, rest = None, method.anchor
    without = method(batch)
    torch.testing.assert_close(out["loss"], without["loss"] + rest.weight * out["anchor"])
    assert without.keys() == out.keys() - {"anchor"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_reaches_the_learning_encoder_alone(kind):
    method, batch = moved(anchored("ibot_vits16", kind))
    method(batch)["anchor"].backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None}
    assert "base.student.encoder.blocks.0.attn.qkv.weight" in with_gradient
    # what stands for masked patches is seen by the others
    allowed = ("base.student.encoder.", "base.mask_token")
    assert all(name.startswith(allowed) for name in with_gradient)
    assert not any(p.requires_grad for p in method.anchor.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_at_its_anchor_has_no_loss_and_training_drops_no_path_of_the_copy(kind):
    config = anchored("tir_vicreg_vits16", kind)
    config = replace(config, model=replace(config.model, drop_path=0.9, depth=2))
    method = build(config)
    batch = synthetic(config, 2, torch.device("cpu"))
    with torch.no_grad():
        next(method.backbone.parameters()).add_(1.0)
    method.begin()
    assert method.eval()(batch)["anchor"].abs() < 1e-6
    method.train()
    assert not method.anchor.frozen.training
    assert method.backbone.training


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_by_a_batch_of_hidden_patches_alone(kind):
    method, batch = moved(anchored("tir_vicreg_vits16", kind))
    patches = torch.randn(6, 16, method.backbone.embed_dim, requires_grad=True)
    everything = torch.ones(6, 16, dtype=torch.bool)
    loss = method.anchor(views_of(method, batch), patches, everything)
    loss.backward()
    assert loss == 0
    assert not patches.grad.any()


def encoder_of(folder, prefix):
    state = tensors(folder, "model")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", ["tir_ibot_vits16", "gtsa_vits16"])
def test_it_is_where_the_run_began_to_its_end_and_resumes_without_the_file(tmp_path, name):
    """From weights of others, whose file is gone when the run goes on."""
    config, source = anchored(name, lora_rank=2), embedded_photos()
    torch.manual_seed(7)
    first = build(replace(config, anchor=AnchorConfig(), optim=replace(config.optim, lora_rank=0)))
    file = tmp_path / "public.safetensors"
    about = {"fastequi": config.to_json()}
    save_file(first.encoder.state_dict(), file, about)
    for parts in (False, True):
        folder = tmp_path / f"run{parts}"
        begun = replace(config, init=InitConfig(str(file)))
        pretrain(begun, source, folder, max_steps=2 if parts else 4)
        if parts:
            again = Config.from_json((folder / "config.json").read_text())
            file.rename(tmp_path / "gone")
            pretrain(again, source, folder, resume=True, max_steps=4)
    whole, resumed = (tmp_path / f"run{parts}" for parts in (False, True))
    last = "checkpoints/step_00000004"
    ends = [tensors(folder / last, "model") for folder in (whole, resumed)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    held = encoder_of(resumed / last, "anchor.frozen.")
    for key, value in first.encoder.state_dict().items():
        assert torch.equal(held[key], value), key
    assert not any(held[key].any() for key in held if key.endswith("lora_b"))
    assert load_encoder(str(resumed), "cpu").names
    rows = [json.loads(r) for r in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["anchor"] > 0


@pytest.mark.slow("gram")
@pytest.mark.parametrize(("kind", "most"), [("cosine", 20.0), ("gram", 200.0)])
def test_it_holds_the_features(tmp_path, kind, most):
    """Thirty steps at a high rate: with it the features end nearer to where they were."""
    drifts = []
    for weight in (1e-9, most):
        config = anchored("vicreg_vits16", kind, weight)
        method = pretrain(config, embedded_photos(), tmp_path / f"run{weight}", max_steps=30)
        rows = (tmp_path / f"run{weight}" / "metrics.jsonl").read_text().splitlines()
        drifts.append(json.loads(rows[-1])["anchor"])
        assert method.anchor is not None
    assert drifts[1] < 0.5 * drifts[0]


ANCHOR = ["--anchor.kind", "cosine", "--anchor.weight", 3]


@pytest.mark.slow  # test_post_training resumes on two processes, with all else
@pytest.mark.parametrize("options", [SGD, FSDP])
def test_two_processes_hold_as_one_and_resume_to_the_same_bits(tmp_path, options):
    one = [word if word != "fsdp" else "ddp" for word in options]
    done = run("--run-dir", tmp_path / "one", *one, *ANCHOR, "--max-steps", 8)
    assert done.returncode == 0, done.stderr
    whole, parts = whole_and_parts(tmp_path, *options, *ANCHOR)
    expect_close(whole, tmp_path / "one")
    assert same(whole, parts)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "whole")]
    assert files[0].keys() == files[1].keys()


def test_what_cannot_be_is_refused():
    config = config_of("rotnet_vits16")
    with pytest.raises(ValueError, match=r"anchor.kind: expected none for method=rotnet, got cos"):
        replace(config, anchor=AnchorConfig("cosine"))
    with pytest.raises(ValueError, match=r"anchor.kind: expected one of none, .*, gram, got l2"):
        Config(anchor=AnchorConfig("l2"))
    with pytest.raises(ValueError, match=r"anchor.weight: expected > 0, got 0"):
        Config(anchor=AnchorConfig("cosine", 0.0))
    with pytest.raises(ValueError, match=r"kind: expected one of cosine, gram, got 'l2'"):
        Anchor(build(Config()).backbone, "l2", 1.0)

"""Networks of other packages as encoders; those of timm, ...: test_foreign_packages.py."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.cli.main import main
from fastequi.cli.network_options import for_network
from fastequi.cli.parsing import parse
from fastequi.cli.pretraining import PretrainOptions
from fastequi.config import Config, ModelConfig
from fastequi.evaluate.encoders import load_encoder, random_init
from fastequi.limits import NETWORKS
from fastequi.methods.dino import Branch, SelfDistillation
from fastequi.methods.joint import JointEmbedding
from fastequi.methods.teacher import follow, quieten
from fastequi.models import foreign_names, vit
from fastequi.models.foreign_names import create
from fastequi.models.heads import EquiHead, SplitHead
from fastequi.optim import param_groups
from fastequi.recipes import RECIPES
from fastequi.resuming import changes
from fastequi.runtime import checkpoint
from fastequi.weights.architecture import Stated
from tests.support import networks
from tests.support.configs import config_of
from tests.support.runs import PHOTOS, ROOT, environment

NAME = "tests.support.networks:"
CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def foreign(config, name):
    return replace(config, model=ModelConfig(NAME + name))


def scaled(recipe):
    """A recipe at 32 px with narrow heads; crops of 16 px where it has some."""
    config = config_of(recipe)
    tir = {"dim": 24, "equi_dim": 8, "decoder_width": 8, "expander": (16, 16), "projector": (16, 8)}
    return replace(
        config,
        data=replace(config.data, image_size=32, source_size=32, local_crop_size=16),
        tir=replace(config.tir, **tir),
        distill=replace(config.distill, hidden_dim=32, bottleneck_dim=8),
    )


def test_a_map_becomes_tokens_row_by_row():
    encoder = create(NAME + "maps", 32).eval()
    maps = encoder.network(IMAGES)
    tokens = encoder.forward_features(IMAGES)
    assert (encoder.embed_dim, encoder.patch_size, encoder.num_prefix_tokens) == (12, 8, 0)
    assert (encoder.has_class_token, tokens.cls, tokens.registers) == (False, None, None)
    for row in range(4):
        for column in range(4):
            assert torch.equal(tokens.patch[:, 4 * row + column], maps[:, :, row, column])
    torch.testing.assert_close(tokens.summary(), maps.mean((2, 3)))
    crops = torch.randn(3, 3, 16, 24)
    both = encoder.forward_groups([IMAGES, crops])
    assert torch.equal(both[0].patch, tokens.patch)
    assert torch.equal(both[1].patch, encoder.network(crops).flatten(2).transpose(1, 2))
    assert encoder.grid_size(16, 24) == (2, 3)


def test_tokens_are_split_as_the_network_counts_them():
    encoder = create(NAME + "tokens", 32).eval()
    found = encoder.network(IMAGES)
    tokens = encoder.forward_features(IMAGES)
    assert (encoder.embed_dim, encoder.patch_size, encoder.grid_size(32, 32)) == (12, 8, (4, 4))
    for part, expected in zip(tokens, (found[:, :1], found[:, 1:2], found[:, 2:]), strict=True):
        assert torch.equal(part, expected)
    assert torch.equal(tokens.summary(), found[:, 0])


def test_a_network_is_asked_without_a_trace():
    torch.manual_seed(0)
    plain = networks.maps()
    after = torch.rand(3)
    torch.manual_seed(0)
    encoder = create(NAME + "maps", 32)
    assert torch.equal(torch.rand(3), after)
    assert encoder.training
    assert all(part.training for part in encoder.modules())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, encoder.network.state_dict()[name]), name
    assert encoder.unused == ["fc.weight", "fc.bias"]
    needs = {n for n, p in encoder.network.named_parameters() if p.requires_grad}
    assert needs == set(dict(plain.named_parameters())) - set(encoder.unused)
    with pytest.raises(ValueError, match=r"sides divisible by 8, the stride of .*maps, got 20x32"):
        encoder.grid_size(20, 32)
    said = "tokens of 12 channels, 8 px apart; grid of 32x32 px 4x4; 0 prefix tokens; no token dep"
    assert said in encoder.described()
    assert create(NAME + "one_size", 32).grid_size(32, 32) == (4, 4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("nothing", 32, r"model.name: .*:nothing cannot be imported \(AttributeError: .*'nothing'"),
        ("no_module", 32, "model.name: .* returned str, expected a torch.nn.Module"),
        ("fails", 32, r"model.name: .*:fails\(\) failed \(RuntimeError: no weights"),
        ("empty", 32, "model.name: .*: expected a network with parameters, got none"),
        ("frozen", 32, "model.name: .*:frozen has no parameter that needs a gradient"),
        ("gray", 32, r"model.name: .*:gray does not take images \[1, 3, 32, 32\] \(RuntimeError"),
        ("several", 32, r"expected a map \[B, D, h, w\] or tokens \[B, N, D\] of floats, got list"),
        ("named", 32, r"of floats, got dict for .*; a module of yours that calls it and returns"),
        ("logits", 32, r"expected a map .* or tokens .*, got \[1, 12\] for \[1, 3, 32, 32\]"),
        ("channels_last", 32, r"gives \[1, 4, 4, 12\] .*, expected a map .* channels second"),
        ("odd_tokens", 32, r"gives 15 tokens for 32x32 px, .* the module's attribute num_prefix"),
        ("maps", 30, "data.image_size: .* 4x4 tokens for 30x30 px, expected whole pixels .* 7.5"),
        # padded: four cells of 8 px on 28 px, not of 7
        ("maps", 28, "data.image_size: .* gives 4x4 tokens for 28x28 px but .* multiple of its st"),
        ("one_size_cut", 18, "data.image_size: .* 2x2 tokens .* does not see all of them"),
        (
            "one_size",
            64,
            r"model.name: .*:one_size does not take images \[1, 3, 64, 64\] .*another",
        ),
    ],
)
def test_what_is_no_encoder_is_refused_with_the_reason(name, size, message):
    with pytest.raises(ValueError, match=message):
        create(NAME + name, size)


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_a_missing_package_is_named_with_what_to_install(package, tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(foreign_names, "import_module", absent)
    (tmp_path / "config.json").write_text("{}")
    spec = f"hf:{tmp_path}" if package == "transformers" else f"{package}:resnet18"
    message = f"model.name: {spec} needs {package}: pip install {package} (ModuleNotFoundError"
    with pytest.raises(ImportError, match=re.escape(message)):
        create(spec, 64)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"model.name: hf:.*: expected a folder with a config.json"
    ):
        create(f"hf:{tmp_path}", 64)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("ibot_vits16", {}, "tir.base: expected vicreg, simclr or dino for .*maps: masked patches"),
        ("dinov2_vitl16", {}, "optim.layer_decay: expected 1 for model.name=.*maps, whose blocks"),
        ("vicreg_vits16", {"tir": {"equi_layer": 0.5}}, "tir.equi_layer: expected 1 for .*maps"),
        ("vicreg_vits16", {"optim": {"patch_embed_lr": 0.2}}, "optim.patch_embed_lr: expected 1 "),
        ("vicreg_vits16", {"optim": {"kind": "muon"}}, "optim.muon_encoder: expected false for .*"),
        ("vicreg_vits16", {"model": {"embed_dim": 64}}, "model.embed_dim: expected None for .*, w"),
        ("vicreg_vits16", {"model": {"patch_size": 8}}, "model.patch_size: expected 16 for .*maps"),
        ("vicreg_vits16", {"model": {"class_token": False}}, "model.class_token: expected True"),
        ("vicreg_vits16", {"model": {"drop_path": 0.1}}, "model.drop_path: expected 0.0 for .*"),
        ("vicreg_vits16", {"model": {"name": "timm:"}}, "model.name: expected one of .*timm:NAME"),
        (
            "vicreg_vits16",
            {"model": {"name": "resnet50"}},
            "model.name: .*torchvision:NAME.*got re",
        ),
        (
            "vicreg_vits16",
            {"model": {"name": "vit_smal"}},
            "model.name: .*did you mean 'vit_small'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_built(recipe, changes, message):
    config = RECIPES[recipe]()
    changes = {**changes, "model": {"name": NAME + "maps", **changes.get("model", {})}}
    sections = {
        name: replace(ModelConfig() if name == "model" else getattr(config, name), **values)
        for name, values in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        replace(config, **sections)


def test_crops_without_a_grid_are_refused():
    config = foreign(scaled("tir_dino_vits16"), "maps")
    other = replace(config, data=replace(config.data, local_crop_size=20))
    with pytest.raises(ValueError, match=r"data.local_crop_size: .*divisible by 8.*local_crops 0"):
        build(other)
    build(replace(other, data=replace(other.data, local_crops=0)))
    config = foreign(scaled("gtsa_vits16"), "maps")
    other = replace(config, data=replace(config.data, local_crop_size=8))
    with pytest.raises(
        ValueError, match=r"data.local_crop_size: expected at least 16 for method=gt"
    ):
        build(other)


RECIPES_OF = ("tir_vicreg", "tir_simclr", "tir_dino", "gtsa", "rotnet")


def step(method, config):
    """One training step's loss and gradients, by name."""
    method.train()
    method.before_step(0.5)
    torch.manual_seed(1)
    loss = method(synthetic(config, 6, CPU))["loss"]
    loss.backward()
    return loss, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", RECIPES_OF)
def test_a_vit_behind_the_contract_trains_as_itself(recipe):
    """The same weights, loss and gradients, whether a method knows that it is a ViT or not."""
    config = scaled(f"{recipe}_vits16")
    own = replace(config, model=ModelConfig("vit_tiny", **networks.VIT))
    other = foreign(config, "vit")
    torch.manual_seed(0)
    plain = build(own)
    torch.manual_seed(0)
    wrapped = build(other)
    for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert list(wrapped.saved.state_dict()) == list(plain.saved.state_dict())
    loss, grads = step(plain, own)
    found, others = step(wrapped, other)
    torch.testing.assert_close(found, loss)
    names = [name.replace(".wrapped.", ".") for name in others]
    assert names == list(grads)
    for name, theirs in zip(names, others.values(), strict=True):
        most = float(grads[name].abs().max())
        assert (theirs - grads[name]).abs().max() <= 1e-4 * most + 1e-6, name


@pytest.mark.parametrize("name", ["maps", "tokens"])
@pytest.mark.parametrize("recipe", RECIPES_OF)
def test_every_method_trains_the_whole_network(recipe, name):
    config = foreign(scaled(f"{recipe}_vits16"), name)
    torch.manual_seed(0)
    method = build(config)
    loss, _ = step(method, config)
    assert loss.isfinite()
    for param_name, param in method.backbone.named_parameters():
        assert not param.requires_grad or param.grad.abs().max() > 0, param_name
    method.after_step(0.5)
    method.eval()
    with torch.no_grad():
        features = method.features(IMAGES)
        tokens = method.encoder.forward_features(IMAGES)
    torch.testing.assert_close(features["patch"], tokens.patch)
    assert ("cls" in features) == (name == "tokens" and recipe != "gtsa")


def test_a_base_that_needs_more_of_an_encoder_says_so():
    config = foreign(scaled("tir_dino_vits16"), "maps")
    student = build(config).base.student
    with pytest.raises(ValueError, match="student: expected a ViT for masks"):
        SelfDistillation(student, masked=True)
    early = EquiHead(12, 4, 1)
    for make in (
        lambda: Branch(student.encoder, student.head, student.head, early),
        lambda: JointEmbedding(student.encoder, SplitHead(12, 8, 0), nn.Identity(), early),
    ):
        with pytest.raises(ValueError, match="encoder: expected a ViT beside equi_head"):
            make()


@pytest.mark.parametrize("recipe", ["dino", "gtsa"])
def test_a_teacher_normalises_by_its_own_batch_and_keeps_its_own_averages(recipe):
    config = foreign(scaled(f"{recipe}_vits16"), "maps")
    torch.manual_seed(0)
    method = build(config).train()
    teacher = (method.base if recipe == "dino" else method).teacher.encoder
    with torch.no_grad():
        teacher.wrapped.layers[0].weight.mul_(2)  # other weights, other statistics
    seen = []
    hook = teacher.wrapped.layers[1].register_forward_hook(
        lambda m, x, out: seen.append((x[0], out.clone()))
    )
    method.before_step(0.5)
    method(synthetic(config, 6, CPU))
    hook.remove()
    ((given, out),) = seen
    mean, var = given.mean((0, 2, 3)), given.var((0, 2, 3), unbiased=False)
    expected = (given - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    norm = teacher.wrapped.layers[1]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    kept = norm.running_mean.clone()
    method.after_step(0.5)
    assert torch.equal(norm.running_mean, kept)  # not the student's
    assert not torch.equal(kept, method.backbone.wrapped.layers[1].running_mean)
    assert not any(part.training for part in method.eval().modules())


def test_other_buffers_and_drops_of_a_teacher():
    def network():
        made = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
        made.register_buffer("count", torch.zeros(()))
        return made

    teacher, student = network(), network()
    student.count += 3
    student[2].running_mean += 5
    follow(teacher, student, 0.9)
    assert (teacher.count, teacher[2].running_mean.tolist()) == (3, [0, 0])
    quieten(teacher, True)
    assert [part.training for part in (teacher, *teacher)] == [False, False, False, True]
    quieten(teacher, False)
    assert not any(part.training for part in teacher.modules())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps on maps, from the command line, and one that was stopped and resumed."""
    pytest.importorskip("nvidia.dali")
    folder = tmp_path_factory.mktemp("runs")
    words = [
        *("pretrain", "demo", "--data", PHOTOS, "--model.name", f"{NAME}maps"),
        *("--train.minutes", "0", "--train.epochs", "1", "--train.no-tensorboard"),
        *("--data.batch-size", "8", "--data.samples-per-decode", "4", "--tir.expander", "16", "16"),
        *("--tir.dim", "24", "--tir.equi-dim", "16", "--train.log-every", "1"),
    ]
    main([*words, "--run-dir", str(folder / "whole"), "--max-steps", "3"])
    main([*words, "--run-dir", str(folder / "parts"), "--max-steps", "1"])
    torch.rand(7)
    main([*words, "--run-dir", str(folder / "parts"), "--max-steps", "3", "--resume"])
    return folder


def test_a_run_learns_and_resumes_with_the_same_bits(run):
    rows = (run / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    assert all(json.loads(row)["recon"] > 0 for row in rows)
    steps = [checkpoint.latest(run / one / "checkpoints") for one in ("whole", "parts")]
    whole, parts = (load_file(step / "model.safetensors") for step in steps)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_run_leaves_the_networks_own_names_and_is_evaluated(run):
    file = run / "whole" / "model.safetensors"
    network = networks.maps()
    network.load_state_dict(load_file(file), strict=True)
    expected = network.eval()(IMAGES).flatten(2).transpose(1, 2)
    for spec in (run / "whole", file):
        encoder = load_encoder(str(spec), "cpu")
        assert (encoder.image_size, encoder.patch_size) == (32, 8)
        torch.testing.assert_close(encoder.features(IMAGES)["patch"], expected)
        larger = encoder.features(torch.zeros(1, 3, 64, 40))
        assert larger["patch"].shape == (1, 40, 12)
        with pytest.raises(ValueError, match="multiples of the patch size 8, got 36x32"):
            encoder.features(torch.zeros(1, 3, 36, 32))
    with pytest.raises(ValueError, match=r"--num-heads.*: only for a ViT, .* is of .*maps"):
        load_encoder(str(file), "cpu", Stated(num_heads=2))
    assert not torch.equal(random_init(encoder).features(IMAGES)["patch"], expected)


def test_another_network_cannot_go_on_with_a_run(run):
    config = Config.from_json((run / "whole" / "config.json").read_text())
    assert config.model == ModelConfig(f"{NAME}maps")
    with pytest.raises(ValueError, match=f"model.name: expected {NAME}maps, which --resume cannot"):
        changes(config, replace(config, model=ModelConfig(f"{NAME}tokens")))


def test_a_recipes_settings_of_its_vit_do_not_apply_to_another_network(caplog):
    recipe = RECIPES["demo"]()
    words = ["--model.name", f"{NAME}maps", "--optim.lr", "1"]
    with caplog.at_level(logging.INFO):
        options = for_network(words, recipe)
    assert (
        "do not apply to model.name=tests.support.networks:maps: patch_size 8, emb" in caplog.text
    )
    config = parse(PretrainOptions, "pretrain", options, PretrainOptions(recipe)).config
    assert config == replace(
        recipe, model=ModelConfig(f"{NAME}maps"), optim=replace(recipe.optim, lr=1.0)
    )
    for same in (["--model.name=vit_small"], ["--model.depth", "2"], []):
        assert for_network(same, recipe) == same
    given = for_network([*words, "--model.depth", "2"], recipe)
    with pytest.raises(ValueError, match=r"model.depth: expected None for .*maps, whose .*, got 2"):
        parse(PretrainOptions, "pretrain", given, PretrainOptions(recipe))


def test_the_readmes_own_module_is_found_from_the_current_folder(tmp_path, monkeypatch):
    text = (ROOT / "fastequi/models/README.md").read_text()
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "def make" in block
    )
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    encoder = create("my_networks:make", 64)
    assert (encoder.embed_dim, encoder.patch_size, encoder.grid_size(64, 64)) == (64, 16, (4, 4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{NAME}logits"], "model.name: tests.support.networks:logits: expected a map"),
        (["hf:/nowhere"], "model.name: hf:/nowhere: expected a folder with a config.json"),
        ([f"{NAME}maps", "--data.image-size", "28"], "data.image_size: tests.support"),
        (["vit_huge"], "model.name: expected one of vit_tiny, "),
    ],
)
def test_the_command_line_refuses_before_there_is_a_run(words, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = ["pretrain", "demo", "--data", PHOTOS, "--run-dir", str(run_dir), "--model.name"]
    with pytest.raises(SystemExit) as ended:
        main([*command, *words])
    assert (ended.value.code, run_dir.exists()) == (2, False)
    assert f"fastequi: {message}" in capsys.readouterr().err


def test_the_networks_of_this_library_have_one_list():
    assert set(NETWORKS) == {*vit._MODELS, "nin", "alexnet"}


def test_a_dry_run_says_what_was_found_out(capsys):
    main(["pretrain", "demo", "--dry-run", "--model.name", f"{NAME}maps", "--tir.expander", "16"])
    out = capsys.readouterr().out
    assert f"model: name={NAME}maps, attention=auto\n" in out
    assert "12 channels, 8 px apart; grid of 32x32 px 4x4" in out


def test_gains_of_any_shape_do_not_decay():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(4, 1, 1))
    model.class_token = nn.Parameter(torch.ones(1, 1, 4))
    model.filter = nn.Parameter(torch.ones(4, 1, 3, 3))
    groups = param_groups(model, 0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in model.named_parameters()}
    assert found == {"scale": 0.0, "class_token": 0.0, "filter": 0.1}


@pytest.mark.slow  # processes of their own; that ViTs agree with one process is tested always
def test_two_processes_train_as_one(tmp_path):
    """Batch statistics of student and teacher are of all processes' rows; sharded or not."""
    pytest.importorskip("nvidia.dali")
    options = [
        *("dino_vits16", "--data", PHOTOS, "--model.name", f"{NAME}maps", "--train.epochs", "1"),
        *("--data.image-size", "32", "--data.source-size", "32", "--data.local-crop-size", "16"),
        *("--data.local-crops", "2", "--data.batch-size", "16", "--data.repeat", "64"),
        *("--tir.dim", "64", "--distill.hidden-dim", "32", "--distill.bottleneck-dim", "8"),
        *("--train.no-tensorboard", "--max-steps", "3", "--data.num-threads", "1"),
    ]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    found = []
    for name, start, more in (
        ("one", [], []),
        ("ddp", torchrun, []),
        ("fsdp", torchrun, ["--train.parallel", "fsdp"]),
    ):
        words = ["-m", "fastequi.cli", "pretrain", *options, *more, "--run-dir", tmp_path / name]
        command = [sys.executable, *start, *map(str, words)]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=300)
        found.append(load_file(tmp_path / name / "model.safetensors"))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)

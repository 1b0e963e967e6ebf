"""Runs that start from weights: `pretrain --init`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastequi.build import build, build_encoder
from fastequi.cli.main import main
from fastequi.config import Config, InitConfig, ModelConfig
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder, random_init
from fastequi.models.vit import VisionTransformer
from fastequi.recipes import RECIPES
from fastequi.train import pretrain
from fastequi.weights import huggingface, meta
from fastequi.weights.architecture import options_of
from fastequi.weights.reader import load_weights
from fastequi.weights.start import settings_of, start
from tests.support.configs import gtsa
from tests.support.runs import FSDP, PHOTOS, SGD, rows, run

SIZE = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.5}
MEAN = [0.5, 0.25, 0.5]


def vit(**options):
    torch.manual_seed(1)
    network = VisionTransformer(**{"img_size": 32, **SIZE, **options})
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return network


@pytest.fixture
def weights(tmp_path):
    """A folder as timm writes it, of images of 48 px and a normalisation of its own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(vit(img_size=48, init_values=0.1).state_dict(), folder / "model.safetensors")
    config = {"num_heads": 4, "img_size": 48, "mean": MEAN, "std": [0.5, 0.5, 0.25]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tiny(*options):
    """The words of a tiny run of the demo's recipe, without those that say the encoder's size."""
    small = "--data.batch-size 12 --data.samples-per-decode 2 --data.num-threads 1 --tir.dim 24"
    more = "--tir.equi-dim 16 --tir.expander 16 16 --train.log-every 1 --train.minutes 0"
    words = f"{small} {more} --train.epochs 1 --train.no-tensorboard".split()
    return ["pretrain", "demo", "--data", PHOTOS, *words, *map(str, options)]


def of(name, weights, **changes):
    """A small config of a method whose model is that of weights."""
    found = load_weights(weights)
    small = RECIPES["demo"]() if name == "demo" else RECIPES[name]()
    config = gtsa() if name == "gtsa_vits16" else small
    model = replace(config.model, **settings_of(found))
    tir = replace(config.tir, dim=24, equi_dim=16, expander=(16,))
    distill = replace(config.distill, hidden_dim=8, bottleneck_dim=4, prototypes=16)
    data = replace(config.data, image_size=32, source_size=32, local_crop_size=16, **changes)
    init = InitConfig(path=str(weights))
    if name == "gtsa_vits16":
        return replace(config, model=model, init=init, data=data)
    if name == "rotnet_vits16":
        return replace(config, model=model, data=data, init=init)
    return replace(config, model=model, tir=tir, distill=distill, data=data, init=init)


@pytest.mark.parametrize(
    "name", ["demo", "dino_vits16", "dinov2_vitl16", "gtsa_vits16", "rotnet_vits16"]
)
def test_the_encoder_and_its_teacher_start_from_the_weights(weights, name):
    config = of(name, weights)
    torch.manual_seed(0)
    method = build(config)
    other = {n: t.clone() for n, t in method.state_dict().items() if "encoder." not in n}
    _, report = start(method, config)
    expected = load_file(weights / "model.safetensors")
    for network in (method.backbone, method.encoder):
        state = network.state_dict()
        assert state.keys() == expected.keys()
        for key in expected.keys() - {"pos_embed"}:
            assert torch.equal(state[key], expected[key]), key
        assert torch.equal(state["pos_embed"][:, 0], expected["pos_embed"][:, 0])
    assert report.resized == ["positions of 6x6 patches to 4x4"]
    for key, value in other.items():  # heads and decoders are drawn as without weights
        if not key.startswith("network."):  # RotNet's encoder
            assert torch.equal(method.state_dict()[key], value), key


def test_settings_are_those_of_the_weights_and_of_them_again():
    """What settings_of says builds the same architecture; published sizes have their names."""
    cases = [
        ({"embed_dim": 384, "num_heads": 6, "depth": 12}, "vit_small"),
        ({"embed_dim": 384, "num_heads": 12, "depth": 12}, "vit_small"),
        ({"embed_dim": 1536, "num_heads": 24, "depth": 40, "mlp": "swiglu"}, "vit_giant"),
        (
            {"embed_dim": 32, "num_heads": 2, "depth": 2, "reg_tokens": 3, "pos": "rope"},
            "vit_small",
        ),
        ({"class_token": False, "norm_eps": 1e-12, "final_norm": False}, "vit_base"),
        ({"no_embed_class": True, "init_values": 1e-5, "qkv_bias": False}, "vit_base"),
        ({"mlp": "swiglu", "mlp_hidden": 100, "rope_theta": 7.0, "pos": "rope"}, "vit_small"),
    ]
    for options, name in cases:
        with torch.device("meta"):
            network = VisionTransformer(**options)
        found = type("Found", (), {"options": options_of(network)})
        settings = settings_of(found)
        assert settings["name"] == name
        with torch.device("meta"):
            again = build_encoder(ModelConfig(**settings), 224)
        assert options_of(again) == options_of(network)


def test_a_run_takes_model_and_normalisation_from_the_weights(tmp_path, weights, caplog):
    caplog.set_level("INFO")
    main(tiny("--init", weights, "--run-dir", tmp_path / "run", "--max-steps", 1))
    config = Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert (config.model.patch_size, config.model.embed_dim, config.model.depth) == (8, 32, 2)
    assert (config.model.mlp_hidden, config.model.layer_scale) == (80, 1e-5)
    assert config.data.mean == tuple(MEAN)
    assert config.init.path == str(weights)
    assert config.init.sha256 == load_weights(weights).sha256()
    for words in ("timm's ViT", "positions of 6x6 patches to 4x4", "the weights' own"):
        assert words in caplog.text
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    near = load_file(weights / "model.safetensors")
    taken = encoder.method.encoder.state_dict()["blocks.0.attn.qkv.weight"]
    assert (taken - near["blocks.0.attn.qkv.weight"]).abs().max() < 1e-3  # one step away
    # the baseline has drawn weights, not these
    fresh = random_init(encoder).method.encoder.state_dict()
    torch.manual_seed(config.train.seed)
    drawn = build(config).encoder.state_dict()
    assert all(torch.equal(fresh[name], drawn[name]) for name in drawn)
    assert (fresh["blocks.0.attn.qkv.weight"] - taken).abs().max() > 0.1


def test_the_callers_mean_goes_before_and_is_told(tmp_path, weights, caplog):
    caplog.set_level("INFO")
    mean = ("--data.mean", 0.1, 0.1, 0.1)
    main(tiny("--init", weights, "--run-dir", tmp_path / "run", "--max-steps", 1, *mean))
    config = Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert config.data.mean == (0.1, 0.1, 0.1)
    assert config.data.std == (0.5, 0.5, 0.25)
    assert f"the weights are made for ({tuple(MEAN)}" in caplog.text


def test_a_resumed_run_needs_no_file(tmp_path, weights):
    run_dir = tmp_path / "run"
    first = ("--init", weights, "--run-dir", run_dir, "--max-steps", 1)
    main(tiny(*first))
    (weights / "model.safetensors").rename(tmp_path / "moved")
    main(tiny("--run-dir", run_dir, "--resume", "--max-steps", 2))
    main(tiny(*first[:4], "--resume", "--max-steps", 3))  # as SLURM requeues it
    assert [row["step"] for row in rows(run_dir)] == [1, 2, 3]
    with pytest.raises(SystemExit):
        main(tiny("--init", tmp_path / "other", "--run-dir", run_dir, "--resume"))


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, weights):
    for name, stops in {"whole": [4], "parts": [2, 4]}.items():
        for steps in stops:
            resume = ["--resume"] if steps != stops[0] else []
            options = ("--init", weights, "--run-dir", tmp_path / name, "--max-steps", steps)
            main(tiny(*options, *resume))
    whole, parts = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


# slow: of the other way to share the work
@pytest.mark.slow  # test_post_training starts two from weights
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_start_from_the_same_weights(tmp_path, weights, parallel):
    same = FSDP[:2] if parallel == "fsdp" else SGD
    encoder = ("--model.embed-dim", 32, "--model.depth", 2, "--model.num-heads", 4)
    options = ("--init", weights, *encoder, "--max-steps", 1, *same, "--train.precision", "fp32")
    losses = {}
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        done = run("--run-dir", folder, *options, processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("positions of 6x6 patches to 4x4") == 1
        losses[processes] = rows(folder)[0]["loss"]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.depth", 3), "model.depth: expected 2, as in the weights .*, got 3"),
        (("--model.name", "vit_base"), ""),
        (("--model.patch-size", 16), "model.patch_size: expected 8, as in the weights .*, got 16"),
        (("--model.num-heads", 8), "model.num_heads: expected 4, as in the weights .*, got 8"),
        (("--model.reg-tokens", 2), "model.reg_tokens: expected 0, as in the weights .*, got 2"),
        (("--model.norm-eps", 1e-5), "model.norm_eps: expected 1e-06, as in .*, got 1e-05"),
        (("--model.layer-scale", "None"), "model.layer_scale: expected a value, .*, got None"),
        (("--model.layer-scale", 0.1), ""),
        (("--model.no-embed-class",), "model.embed_class: expected True, .* got False"),
        (("--model.no-class-token",), "model.class_token: expected True, .* got False"),
        (("--model.mlp-ratio", 3), "model.mlp_ratio: .* the 80 hidden channels of the weights"),
        (("--model.mlp-ratio", 2.5), ""),
        (
            ("--init.sha256", "abc"),
            "the file of init.sha256 abc, got .*weights of [0-9a-f]",
        ),
        (("--init.network", "student"), r"expected one student \(--init.network\), got 1 networks"),
        (("--init.img-size", 32), "--init.img-size: expected 48 48, as .* says, got 32 32"),
        (("--init.path", "elsewhere"), "--init: expected elsewhere, as --init.path says, got"),
        (("--init.patch-size", "x"), "--init.patch-size: expected an integer, got x"),
        (("--init.patch-size", 4), ""),
        (
            ("--init.patch-size", 4, "--model.patch-size", 8),
            r"init.patch_size: expected model.patch_size=8, got 4",
        ),
        (("--init.channels", 0, 1), "--init.channels: expected 3, as images have, got 0 1"),
        (("--model.num-heads", 0), "--model.num-heads: expected >= 1, got 0"),
        (
            ("--model.name", "timm:resnet18"),
            "--init: it fills ViTs of this library, and --model.na",
        ),
    ],
)
def test_what_contradicts_the_weights_is_named_before_any_work(weights, capsys, words, message):
    command = tiny("--init", weights, *words, "--dry-run")
    if not message:
        main(command)
        assert "layout      timm's ViT" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def test_the_recipes_own_number_of_heads_does_not_count_beside_weights(tmp_path, capsys):
    file = tmp_path / "vit.safetensors"
    save_file(vit(embed_dim=128).state_dict(), file)
    with pytest.raises(SystemExit):
        main(tiny("--init", file, "--run-dir", tmp_path / "run"))
    message = (
        "num_heads: unknown for 128 channels; expected --model.num-heads (the recipe's own number "
        "does not count beside --init), or num_heads in a config.json beside the file"
    )
    assert message in capsys.readouterr().err


def test_nothing_is_left_behind_by_weights_that_do_not_fit(tmp_path, weights, capsys):
    (weights / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit):
        main(tiny("--init", weights, "--run-dir", tmp_path / "run"))
    assert "--init: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main(["pretrain", "rotnet_nin_32", "--data", PHOTOS, "--init", str(weights)])


def test_a_config_that_says_other_settings_than_its_weights_is_refused(tmp_path, weights):
    config = of("demo", weights)
    wrong = replace(config, model=replace(config.model, depth=3))
    with pytest.raises(ValueError, match="depth: expected 2, as in the weights"):
        pretrain(wrong, embedded_photos(), tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("kind", ["dinov2 registers", "vit", "dinov3", "own run"])
def test_a_run_starts_from_other_layouts_as_well(tmp_path, kind):
    options = {
        "dinov2 registers": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
        "vit": {"norm_eps": 1e-12},
        "dinov3": {"reg_tokens": 2, "pos": "rope", "init_values": 0.1, "norm_eps": 1e-5},
        "own run": {},
    }[kind]
    network = vit(**options)
    state, known = network.state_dict(), options_of(network)
    if kind == "own run":
        folder = tmp_path / "first"
        size = ("--model.embed-dim", 32, "--model.depth", 2, "--model.num-heads", 4)
        main(tiny(*size, "--run-dir", folder, "--max-steps", 1))
        place, state = folder, load_file(folder / "model.safetensors")
        network = vit(class_token=False, mlp_ratio=2.0)
        network.load_state_dict(state)
    elif kind == "vit":
        place = tmp_path / "vit"
        place.mkdir()
        written = huggingface.VIT.theirs(state, known)
        save_file({n: t.contiguous() for n, t in written.items()}, place / "model.safetensors")
        said = {"model_type": "vit", "num_attention_heads": 4, "layer_norm_eps": 1e-12}
        (place / "config.json").write_text(json.dumps(said))
    else:
        place = tmp_path / "weights.pth"
        layout = meta.DINOV3 if kind == "dinov3" else meta.DINOV2
        torch.save(
            {"teacher": {f"backbone.{n}": t for n, t in layout.theirs(state, known).items()}}, place
        )
    heads = ("--model.num-heads", 4) if kind == "dinov2 registers" else ()
    run_dir = tmp_path / "run"
    main(tiny("--init", place, "--run-dir", run_dir, "--max-steps", 1, "--optim.lr", 1e-12, *heads))
    encoder = load_encoder(str(run_dir), "cpu")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval().forward_features(images).patch
    torch.testing.assert_close(encoder.features(images)["patch"], expected, rtol=1e-4, atol=1e-4)


def test_submitted_words_are_checked_with_the_weights(tmp_path, weights, capsys):
    words = [*tiny("--init", weights, "--run-dir", tmp_path / "run", "--model.depth", 5)[1:]]
    with pytest.raises(SystemExit):
        main(["submit", "--cluster", "local", "--", *words])
    assert "model.depth: expected 2" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()

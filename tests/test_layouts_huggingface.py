"""Folders that transformers writes, read by us, and ours read by transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastequi.weights import huggingface
from fastequi.weights.reader import load_weights
from tests.support.peers import close, drawn, package, read

pytestmark = pytest.mark.peers

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56}
_VIT = {**_SMALL, "intermediate_size": 80, "patch_size": 8}
_DINOV2 = {**_SMALL, "patch_size": 14, "layerscale_value": 0.5}
_DINOV3 = {**_SMALL, "intermediate_size": 72, "patch_size": 8, "layerscale_value": 0.5}
MODELS = {
    "vit": ("ViT", _VIT),
    "vit without biases": ("ViT", {**_VIT, "qkv_bias": False}),
    "dinov2": ("Dinov2", _DINOV2),
    "dinov2 swiglu": ("Dinov2", {**_DINOV2, "use_swiglu_ffn": True}),
    "dinov2 registers": ("Dinov2WithRegisters", {**_DINOV2, "num_register_tokens": 3}),
    "dinov2 registers swiglu": (
        "Dinov2WithRegisters",
        {**_DINOV2, "num_register_tokens": 3, "use_swiglu_ffn": True},
    ),
    "dinov3": ("DINOv3ViT", {**_DINOV3, "num_register_tokens": 4}),
    "dinov3 key bias": ("DINOv3ViT", {**_DINOV3, "num_register_tokens": 4, "key_bias": True}),
    "dinov3 swiglu": (
        "DINOv3ViT",
        {
            **_DINOV3,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            "hidden_act": "silu",
            "rope_theta": 50.0,
        },
    ),
}


def model(name):
    """transformers' network of a name above, and its class."""
    transformers = package("transformers")
    kind, options = MODELS[name]
    torch.manual_seed(0)
    own = getattr(transformers, f"{kind}Model")
    return drawn(own(getattr(transformers, f"{kind}Config")(**options))), own


def tokens(network, images):
    with torch.no_grad():
        return network(images).last_hidden_state


IMAGES = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saves_gives_its_tokens(tmp_path, name):
    theirs, _ = model(name)
    theirs.save_pretrained(tmp_path)
    ours, weights = read(tmp_path)
    with torch.no_grad():
        close(ours(IMAGES), tokens(theirs, IMAGES))
    eps = theirs.config.layer_norm_eps
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}
    assert weights.report.assumed == ["ImageNet's mean and std"]
    zeros = [f"{', '.join(f'layer.{i}.attention.k_proj.bias' for i in range(3))}: zeros"]
    without = name.startswith("dinov3") and "key bias" not in name
    assert weights.report.missing == (zeros if without else [])


@pytest.mark.parametrize("name", MODELS)
def test_what_we_write_gives_our_tokens_in_transformers(tmp_path, name):
    theirs, own = model(name)
    theirs.save_pretrained(tmp_path)
    ours, weights = read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    written = weights.layout.theirs(ours.state_dict(), weights.options)
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    again, told = own.from_pretrained(tmp_path, output_loading_info=True)
    lost = {key for key in told["missing_keys"] if not key.startswith("pooler.")}
    assert not lost
    assert not told["unexpected_keys"]
    with torch.no_grad():
        close(tokens(again.eval(), IMAGES), ours(IMAGES))


@pytest.mark.parametrize("name", MODELS)
def test_modules_in_memory_are_read_from_a_plain_torch_save_and_written(tmp_path, name):
    theirs, _ = model(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    theirs.config.save_pretrained(tmp_path)
    ours, weights = read(tmp_path)
    expected = tokens(theirs, IMAGES)
    with torch.no_grad():
        close(ours(IMAGES), expected)
    written = weights.layout.theirs(ours.state_dict(), weights.options)
    told = drawn(theirs).load_state_dict(written, strict=False)
    assert not [key for key in told.missing_keys if not key.startswith("pooler.")]
    assert not told.unexpected_keys
    close(tokens(theirs, IMAGES), expected)


def test_shards_are_one_network(tmp_path):
    theirs, _ = model("dinov2 registers")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours, weights = read(tmp_path)
    with torch.no_grad():
        close(ours(IMAGES), tokens(theirs, IMAGES))
    assert len(weights.sha256()) == 64
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing, a shard that .*index"):
        load_weights(tmp_path)


def test_of_whole_models_the_encoder_is_taken(tmp_path):
    transformers = package("transformers")
    config = transformers.ViTMAEConfig(
        **_VIT,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=0.0,
    )
    mae = drawn(transformers.ViTMAEForPreTraining(config))
    mae.save_pretrained(tmp_path / "mae")
    ours, weights = read(tmp_path / "mae")
    ordered = torch.arange(49.0).expand(2, -1)  # without noise no patch is moved
    with torch.no_grad():
        close(ours(IMAGES), mae.vit(IMAGES, noise=ordered).last_hidden_state)
    assert "decoder." in weights.report.unexpected[0]
    classifier = drawn(transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT)))
    classifier.save_pretrained(tmp_path / "classes")
    ours, weights = read(tmp_path / "classes")
    with torch.no_grad():
        close(ours(IMAGES), tokens(classifier.vit, IMAGES))
    assert weights.report.chosen == "read below the prefix 'vit.'"
    deit = transformers.DeiTModel(transformers.DeiTConfig(**_VIT))
    drawn(deit).save_pretrained(tmp_path / "deit")
    ours, _ = read(tmp_path / "deit")
    with torch.no_grad():
        close(ours(IMAGES), tokens(deit, IMAGES))


def test_normalisation_is_the_preprocessors(tmp_path):
    transformers = package("transformers")
    theirs, _ = model("vit")
    theirs.save_pretrained(tmp_path)
    half = {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25]}
    processor = transformers.ViTImageProcessor(**half)
    processor.save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    assert (weights.mean, weights.std) == ((0.5, 0.25, 0.5), (0.5, 0.5, 0.25))
    assert weights.says_normalisation
    pixels = torch.randint(256, (3, 56, 56), dtype=torch.uint8)
    for factor in (1 / 255, 1 / 127.5):
        processor.rescale_factor = factor
        processor.save_pretrained(tmp_path)
        weights = load_weights(tmp_path)
        seen = processor(pixels, return_tensors="pt", do_resize=False)["pixel_values"][0]
        mean, std = (torch.tensor(v)[:, None, None] for v in (weights.mean, weights.std))
        torch.testing.assert_close((pixels / 255 - mean) / std, seen)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for wrong, message in (
        ({"image_std": None}, "image_std: expected beside image_mean, got none"),
        ({"image_mean": [127.0] * 3}, r"image_mean: expected numbers of values in 0..1, got \[127"),
    ):
        changed = {k: v for k, v in {**said, "rescale_factor": 1 / 255, **wrong}.items() if v}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            load_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, r"config\.json says hidden_size 48, the tensors have 32"),
        ({"num_hidden_layers": 2}, "says num_hidden_layers 2, the tensors have 3"),
        ({"intermediate_size": 64}, "says intermediate_size 64, the tensors have 80"),
        ({"patch_size": 16}, "says patch_size 16, the tensors have 8"),
        ({"num_channels": 1}, "says num_channels 1, the tensors have 3"),
        ({"qkv_bias": False}, "says qkv_bias False, the tensors have True"),
        ({"qkv_bias": 1}, "qkv_bias: expected true or false, got 1"),
        ({"image_size": 64}, "64x64 px .* are 8x8 patches of 8 px, but pos_embed has 50 pos"),
        ({"num_attention_heads": 5}, "num_heads: expected a divisor of its 32 channels, got 5"),
        ({"hidden_act": "gelu_new"}, "hidden_act: expected silu for a gated MLP, else gelu, got"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: expected a number > 0, got 0"),
        ({"model_type": "beit"}, 'model_type: expected one of vit, deit, .*, got "beit"'),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_named(tmp_path, change, message):
    theirs, _ = model("vit")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as told:
        load_weights(tmp_path)
    assert str(told.value).startswith(f"CHECKPOINT: {tmp_path}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2s_mlp_ratio_has_to_be_the_tensors(tmp_path, gated):
    theirs, _ = model("dinov2 swiglu" if gated else "dinov2")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mlp_ratio": 2}))
    own, wanted = (88, 48) if gated else (128, 64)  # two thirds, to a multiple of 8
    message = f"says mlp_ratio 2, hidden channels {wanted}, the tensors have {own}"
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path)


def test_what_is_missing_is_named_as_transformers_names_it(tmp_path):
    theirs, _ = model("dinov2")
    theirs.save_pretrained(tmp_path)
    state = {name: t.clone() for name, t in load_file(tmp_path / "model.safetensors").items()}
    for lost, message in {
        "encoder.layer.1.norm2.bias": "no encoder.layer.1.norm2.bias",
        "encoder.layer.2.attention.attention.key.weight": "no encoder.layer.2.*key.weight, which b",
    }.items():
        save_file({n: t for n, t in state.items() if n != lost}, tmp_path / "model.safetensors")
        with pytest.raises(
            ValueError, match=rf"Hugging Face Dinov2 \(the nearest layout\): {message}"
        ):
            load_weights(tmp_path)
    narrow = {**state, "encoder.layer.1.mlp.fc2.weight": torch.zeros(32, 100)}
    save_file(narrow, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer.1.mlp.fc2.weight \(32, 100\), not \(32, 128\)"):
        load_weights(tmp_path)


def test_every_layout_of_transformers_is_tested_here(tmp_path):
    found = []
    for name in MODELS:
        theirs, _ = model(name)
        theirs.save_pretrained(tmp_path / name)
        torch.save(theirs.state_dict(), tmp_path / name / "weights.pth")
        found += [
            load_weights(path).layout for path in (tmp_path / name, tmp_path / name / "weights.pth")
        ]
    untested = [each for each in huggingface.LAYOUTS if not any(each is one for one in found)]
    assert untested == [huggingface.DEIT]  # see above

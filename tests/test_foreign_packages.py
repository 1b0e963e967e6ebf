"""Networks of timm, torchvision and transformers as encoders, against those packages' own code."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastequi.atomic import save_tensors
from fastequi.build import build, build_optimizer
from fastequi.cli.dryrun import synthetic
from fastequi.config import ModelConfig
from fastequi.evaluate.encoders import load_encoder
from fastequi.models.batchnorm import SharedBatchNorm
from fastequi.models.foreign_names import create
from fastequi.runtime import checkpoint
from tests.support.configs import config_of, run_folder

pytestmark = pytest.mark.peers

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = {"hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 64, "embed_dim": 8, "window_size": 2}
VIT = {**SIZE, "intermediate_size": 64, "image_size": 64}
FOLDERS = {  # of transformers: the config's class, its options, prefix tokens, stride
    "resnet": ("ResNetConfig", {**STAGES, "embedding_size": 8, "layer_type": "basic"}, 0, 32),
    "convnext": ("ConvNextConfig", STAGES, 0, 32),
    "swin": ("SwinConfig", {**SWIN, "depths": [1] * 4, "num_heads": [1] * 4}, 0, 32),
    "vit": ("ViTConfig", {**VIT, "patch_size": 16}, 1, 16),
    "deit": ("DeiTConfig", {**VIT, "patch_size": 16}, 2, 16),
    "dinov2": ("Dinov2WithRegistersConfig", {**VIT, "patch_size": 16}, 5, 16),
    "dinov3": ("DINOv3ViTConfig", {**VIT, "num_register_tokens": 4}, 5, 16),
    "siglip": ("SiglipVisionConfig", {**VIT, "patch_size": 16}, 0, 16),
}


def package(name):
    try:
        return __import__(name)
    except Exception as error:  # a broken installation raises more than ImportError
        pytest.skip(f"{name} cannot be imported: {error}")


def folder(kind, where):
    """Writes a folder of transformers; its name, and the model's class."""
    transformers = package("transformers")
    config, options, _, _ = FOLDERS[kind]
    made = getattr(transformers, config)(**options)
    made.save_pretrained(where)
    return f"hf:{where}", lambda: transformers.AutoModel.from_config(made)


def images(side, n=2):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def moved(encoder):
    """In eval mode, weights and averages moved at random: gains start at 1, layer scales near 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for param in encoder.parameters():
            param.add_(0.02 * torch.randn_like(param))
        for name, buffer in encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return encoder.eval()


def expect_tokens(encoder, theirs, x):
    """The encoder's tokens are theirs: a map [B, D, h, w] or tokens [B, N, D]."""
    grid = encoder.grid_size(*x.shape[-2:])
    assert grid == tuple(side // encoder.patch_size for side in x.shape[-2:])
    with torch.no_grad():
        tokens, prefix = encoder.forward_features(x), encoder.num_prefix_tokens
    if theirs.ndim == 4:
        torch.testing.assert_close(tokens.patch.transpose(1, 2).unflatten(2, grid), theirs)
        assert (tokens.cls, tokens.registers) == (None, None)
        return
    torch.testing.assert_close(tokens.patch, theirs[:, prefix:])
    if encoder.has_class_token:
        torch.testing.assert_close(tokens.cls, theirs[:, :1])
    if prefix > encoder.has_class_token:
        torch.testing.assert_close(
            tokens.registers, theirs[:, int(encoder.has_class_token) : prefix]
        )


@pytest.mark.parametrize(
    ("name", "side", "stride", "prefix", "has_class"),
    [
        ("resnet18", 64, 32, 0, False),
        ("convnext_atto", 96, 32, 0, False),
        ("efficientnet_b0", 64, 32, 0, False),
        ("swin_tiny_patch4_window7_224", 224, 32, 0, False),  # channels last
        ("mambaout_femto", 64, 32, 0, False),  # channels last
        ("vit_tiny_patch16_224", 224, 16, 1, True),
        ("vit_tiny_patch16_224", 64, 16, 1, True),
        ("vit_medium_patch16_reg4_gap_256", 64, 16, 4, False),
        ("deit_tiny_distilled_patch16_224", 64, 16, 2, True),
        ("mixer_s16_224", 224, 16, 0, False),
    ],
)
def test_timms_tokens(name, side, stride, prefix, has_class):
    timm = package("timm")
    encoder = moved(create(f"timm:{name}", side))
    assert (encoder.patch_size, encoder.num_prefix_tokens) == (stride, prefix)
    assert encoder.has_class_token == has_class
    size = {"img_size": side} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, num_classes=0, **size).eval()
    theirs.load_state_dict(encoder.network.state_dict(), strict=True)
    x = images(side)
    with torch.no_grad():
        out = theirs.forward_features(x)
    if getattr(theirs, "output_fmt", "") == "NHWC":
        out = out.permute(0, 3, 1, 2)
    expect_tokens(encoder, out, x)


def by_hand(kind, network, x):
    """torchvision's last map or tokens, by the parts that its own forward calls."""
    if kind == "resnet18":
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x))))
    if kind == "swin_t":
        return network.norm(network.features(x)).permute(0, 3, 1, 2)
    if kind == "vit_b_16":
        tokens = network._process_input(x)
        return network.encoder(torch.cat([network.class_token.expand(len(x), -1, -1), tokens], 1))
    if kind == "densenet121":
        return network.features(x).relu()
    return network.features(x)


@pytest.mark.parametrize(
    ("name", "side", "stride"),
    [
        ("resnet18", 64, 32),
        ("resnet18", 32, 32),  # a map of one cell
        ("convnext_tiny", 64, 32),
        ("swin_t", 64, 32),
        ("vit_b_16", 32, 16),
        ("densenet121", 64, 32),
        ("mobilenet_v3_small", 64, 32),
        ("vgg11", 64, 32),  # whose own pooling enlarges a map
    ],
)
def test_torchvisions_tokens(name, side, stride):
    torchvision = package("torchvision")
    encoder = moved(create(f"torchvision:{name}", side))
    assert (encoder.patch_size, encoder.num_prefix_tokens) == (stride, int(name == "vit_b_16"))
    size = {"image_size": side} if name == "vit_b_16" else {}
    theirs = torchvision.models.get_model(name, weights=None, **size).eval()
    theirs.load_state_dict(encoder.network.state_dict(), strict=True)
    x = images(side)
    with torch.no_grad():
        expect_tokens(encoder, by_hand(name, theirs, x), x)
    heads = ("fc.", "head.", "heads.", "classifier.")
    assert encoder.unused
    assert all(name.startswith(heads) for name in encoder.unused)


@pytest.mark.parametrize("kind", FOLDERS)
def test_transformers_tokens(kind, tmp_path):
    name, make = folder(kind, tmp_path)
    encoder = moved(create(name, 64))
    _, _, prefix, stride = FOLDERS[kind]
    assert (encoder.patch_size, encoder.num_prefix_tokens) == (stride, prefix)
    assert encoder.has_class_token == (prefix > 0)
    theirs = make().eval()
    theirs.load_state_dict(encoder.network.state_dict(), strict=True)
    x = images(64)
    with torch.no_grad():
        expect_tokens(encoder, theirs(pixel_values=x).last_hidden_state, x)
    if kind == "vit":  # positions are interpolated by its own code
        larger = images(96)
        with torch.no_grad():
            out = theirs(pixel_values=larger, interpolate_pos_encoding=True).last_hidden_state
        expect_tokens(encoder, out, larger)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("timm:resnett18", 64, "model.name: timm has no 'resnett18'; nearest are resnet18, .*18"),
        ("timm:hf-hub:timm/resnet18", 64, "model.name: timm has no 'hf-hub:timm/resnet18'"),
        ("timm:resnet18", 100, "data.image_size: .* 4x4 tokens .* multiple of its stride 32, got"),
        ("timm:levit_128", 224, "data.image_size: .* 4x4 tokens .* multiple of its stride 64, got"),
        ("timm:volo_d1_224", 224, r"gives tokens \[1, 197, .* they are no grid"),
        ("timm:crossvit_9_240", 240, "expected a map .* or tokens .* got list"),
        ("timm:vit_tiny_patch16_224", 102, "does not take images .*divisible by patch size"),
        ("torchvision:fasterrcnn_resnet50_fpn", 64, "model.name: torchvision has no 'fasterrcnn"),
        ("torchvision:convnext_tyni", 64, "torchvision has no .*; nearest are convnext_tiny"),
        ("torchvision:alexnet", 224, "data.image_size: .* 6x6 tokens .*whole pixels .* 37.3333"),
        ("torchvision:resnet18", 62, "data.image_size: .* 2x2 tokens for 62x62 px .*multiple of "),
        (
            "torchvision:vit_b_16",
            100,
            "model.name: .*vit_b_16 cannot be made for data.image_size=100 .AssertionErr",
        ),
    ],
)
def test_what_is_no_encoder_is_refused_with_the_reason(name, side, message):
    package(name.partition(":")[0])
    with pytest.raises(ValueError, match=message):
        create(name, side)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("BertConfig", r"does not take images \[1, 3, 64, 64\]"),
        ("ViTMAEConfig", "they are no grid"),  # it leaves out patches at random
    ],
)
def test_models_of_transformers_that_are_no_encoders(tmp_path, config, message):
    transformers = package("transformers")
    getattr(transformers, config)(**SIZE, intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        create(f"hf:{tmp_path}", 64)


def config_with(recipe, name):
    config = config_of(recipe)
    tir = {"dim": 24, "equi_dim": 8, "decoder_width": 8, "expander": (16, 16), "projector": (16, 8)}
    return replace(
        config,
        model=ModelConfig(name),
        data=replace(config.data, image_size=64, source_size=64, local_crop_size=32),
        tir=replace(config.tir, **tir),
        distill=replace(config.distill, hidden_dim=32, bottleneck_dim=8),
    )


RUNS = [
    ("tir_vicreg_vits16", "timm:resnet18"),
    ("tir_simclr_vits16", "timm:convnext_atto"),
    ("tir_dino_vits16", "timm:vit_tiny_patch16_224"),
    ("tir_dino_vits16", "torchvision:resnet18"),
    ("gtsa_vits16", "timm:vit_tiny_patch16_224"),
    ("rotnet_vits16", "timm:efficientnet_b0"),
    ("rotnet_vits16", "torchvision:convnext_tiny"),
    ("tir_vicreg_vits16", "hf:resnet"),
    ("tir_simclr_vits16", "hf:dinov2"),
    ("gtsa_vits16", "hf:dinov3"),
]


@pytest.mark.parametrize(("recipe", "name"), RUNS)
def test_methods_train_them_and_leave_what_their_package_loads(recipe, name, tmp_path):
    """Every parameter that needs a gradient gets one; steps move it; the file fits the package."""
    kind, _, what = name.partition(":")
    if kind == "hf":
        name, fresh = folder(what, tmp_path / "hf")
    elif kind == "timm":
        size = {"img_size": 64} if what.startswith("vit") else {}
        fresh = lambda: package("timm").create_model(what, num_classes=0, **size)  # noqa: E731
    else:
        fresh = lambda: package("torchvision").models.get_model(what)  # noqa: E731
    package({"hf": "transformers"}.get(kind, kind))
    config = config_with(recipe, name)
    torch.manual_seed(0)
    method = build(config).train()
    before = copy.deepcopy(method.backbone.network.state_dict())
    optimizer = build_optimizer(method, config)
    for n in range(2):
        method.before_step(0.5)
        out = method(synthetic(config, 4, torch.device("cpu")))
        assert out["loss"].isfinite()
        out["loss"].backward()
        if n == 0:
            for param_name, param in method.backbone.named_parameters():
                assert (param.grad is not None) == param.requires_grad, param_name
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.5)
    after = method.backbone.network.state_dict()
    unused = set(method.backbone.unused)
    assert all(torch.equal(after[n], before[n]) for n in unused)
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(moved) > 0.8 * (len(before) - len(unused))
    file = tmp_path / "model.safetensors"
    about = {"format": "pt", checkpoint.SETTINGS: config.to_json()}
    save_tensors(file, checkpoint.whole_state(method.saved), about)
    theirs = fresh()
    theirs.load_state_dict(load_file(file), strict=True)
    x = images(64)
    encoder = load_encoder(str(file), "cpu")
    with torch.no_grad():
        expected = method.eval().encoder.forward_features(x)
    torch.testing.assert_close(encoder.features(x)["patch"], expected.patch)
    assert encoder.patch_size == method.backbone.patch_size


def test_a_run_is_rebuilt_from_its_settings(tmp_path):
    package("timm")
    folder = run_folder(tmp_path / "run", config_with("tir_vicreg_vits16", "timm:resnet18"))
    encoder = load_encoder(str(folder), "cpu")
    assert (encoder.names, encoder.patch_size) == (("patch", "z_inv", "z_equi"), 32)
    torch.manual_seed(0)
    method = build(config_with("tir_vicreg_vits16", "timm:resnet18")).eval()
    x = images(64)
    for name, value in method.features(x).items():
        torch.testing.assert_close(encoder.features(x)[name], value)


def test_timms_batchnorm_with_its_activation_shares_statistics():
    package("timm")
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    own = BatchNormAct2d(3, act_layer=torch.nn.SiLU)
    shared = SharedBatchNorm(copy.deepcopy(own), group=None)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(shared.train()(x), own.train()(x))
    torch.testing.assert_close(shared.eval()(x), own.eval()(x))


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "vit", "swin"])
def test_networks_of_other_packages_take_other_channels(name, tmp_path):
    if ":" not in name:
        name, _ = folder(name, tmp_path)
    else:
        package("timm")
    encoder = moved(create(name, 64, 5))
    few = torch.randn(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = encoder(few)
    few[:, 4] += 1
    assert (encoder(few) - tokens).abs().max() > 1e-4


def test_networks_of_torchvision_take_three_channels():
    pytest.importorskip("torchvision")
    with pytest.raises(
        ValueError, match=r"data\.channels: expected three for torchvision:resnet18"
    ):
        create("torchvision:resnet18", 64, 5)

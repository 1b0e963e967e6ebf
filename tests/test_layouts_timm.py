"""Files as timm saves them, read by us, and ours read by timm; timm's own converters as oracle."""

import pytest
import torch

from fastequi.weights import adapt, meta, timm
from fastequi.weights.architecture import Stated, options_of
from fastequi.weights.reader import fill, load_weights
from tests.support.peers import close, drawn, package, read

pytestmark = pytest.mark.peers

MODELS = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {},
    "vit_base_patch16_gap_224": {},  # 16 heads, no class token
    "vit_tiny_patch16_224.avg": {"global_pool": "avg"},  # fc_norm
    "vit_medium_patch16_reg4_gap_256": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_plus_patch16_dinov3": {},
}


def model(name, **options):
    """timm's network of a name, narrower where that is possible, of two blocks and small images."""
    patch = 14 if "patch14" in name else 16
    torch.manual_seed(0)
    given = {"depth": 2, "num_classes": 0, "img_size": 4 * patch, **MODELS[name], **options}
    if "giant" in name:
        given |= {"embed_dim": 192, "num_heads": 3}
    return drawn(package("timm").create_model(name.partition(".")[0], **given)), given


def images(network, side=None):
    side = side or 4 * network.patch_embed.patch_size[0]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def tokens(network, x):
    with torch.no_grad():
        return network.forward_features(x)


def save(network, given, folder):
    package("timm").models.save_for_hf(
        network, folder, model_args=dict(given), safe_serialization=True
    )


@pytest.mark.parametrize("name", MODELS)
def test_what_timm_saves_gives_its_tokens_and_goes_back(tmp_path, name):
    theirs, given = model(name)
    save(theirs, given, tmp_path)
    ours, weights = read(tmp_path)
    x = images(theirs)
    expected = tokens(theirs, x)
    with torch.no_grad():
        close(ours(x), expected)
    if "fc_norm.weight" in theirs.state_dict():
        assert "fc_norm.weight" in weights.report.unexpected[0]
        return
    written = weights.layout.theirs(ours.state_dict(), weights.options)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    drawn(theirs).load_state_dict(written)
    close(tokens(theirs, x), expected)
    for key, tensor in before.items():
        torch.testing.assert_close(written[key], tensor, rtol=0, atol=0)


def test_mean_and_std_are_those_of_timms_config(tmp_path):
    theirs, given = model("vit_tiny_patch16_224")
    save(theirs, given, tmp_path)
    weights = load_weights(tmp_path)
    assert weights.mean == tuple(theirs.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    assert weights.says_normalisation


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (meta.DINOV2, "vit_small_patch14_dinov2"),
        (meta.DINOV2, "vit_small_patch14_reg4_dinov2"),
        (meta.DINOV2_SWIGLU, "vit_giant_patch14_dinov2"),
    ],
)
def test_what_we_write_as_dinov2_timm_reads_by_its_own_converter(tmp_path, layout, name):
    theirs, given = model(name)
    save(theirs, given, tmp_path)
    ours, weights = read(tmp_path)
    written = layout.theirs(ours.state_dict(), weights.options)
    assert "mask_token" in written
    converter = package("timm.models.vision_transformer").models.vision_transformer
    x = images(theirs)
    expected = tokens(theirs, x)
    drawn(theirs).load_state_dict(converter.checkpoint_filter_fn(dict(written), theirs))
    close(tokens(theirs, x), expected)
    torch.save(written, tmp_path / "dinov2.pth")
    again, _ = read(tmp_path / "dinov2.pth", Stated(num_heads=given.get("num_heads", 6)))
    with torch.no_grad():
        close(again(x), expected)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"])
def test_what_we_write_as_dinov3_timm_reads_by_its_own_converter(tmp_path, name):
    theirs, given = model(name)
    save(theirs, given, tmp_path)
    ours, weights = read(tmp_path)
    layout = meta.DINOV3_SWIGLU if weights.options["mlp"] == "swiglu" else meta.DINOV3
    written = layout.theirs(ours.state_dict(), weights.options)
    converter = package("timm.models.eva").models.eva
    x = images(theirs)
    expected = tokens(theirs, x)
    drawn(theirs).load_state_dict(converter.checkpoint_filter_fn(dict(written), theirs))
    close(tokens(theirs, x), expected)
    torch.save(written, tmp_path / "dinov3.pth")
    again, found = read(tmp_path / "dinov3.pth")
    with torch.no_grad():
        close(again(x), expected)
    assert found.layout is layout
    assert found.options["num_heads"] == 6  # from the number of periods


@pytest.mark.parametrize("side", [96, 32])
def test_positions_are_resized_as_timm_does(tmp_path, side):
    theirs, given = model("vit_small_patch14_reg4_dinov2", img_size=70)
    save(theirs, given, tmp_path)
    side = side // 16 * 14
    ours, weights = read(tmp_path)
    other = type(ours)(**{**weights.options, "img_size": side})
    report = fill(other, weights)
    assert report.resized == [f"positions of 5x5 patches to {side // 14}x{side // 14}"]
    theirs.set_input_size((side, side))
    with torch.no_grad():
        close(other.eval()(images(theirs, side)), tokens(theirs, images(theirs, side)))
    assert not weights.report.resized  # the report of what was read stays as it was


@pytest.mark.parametrize("size", [8, 12, 16, 20, 32])
def test_patches_are_resized_as_timm_does(size):
    resample = package("timm.layers").layers.resample_patch_embed
    weight = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = resample(weight, [size, size])
    found = adapt.patches(weight, size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_resized_patches_is_timms(tmp_path):
    theirs, given = model("vit_tiny_patch16_224")
    save(theirs, given, tmp_path)
    ours, weights = read(tmp_path, Stated(patch_size=8))
    small = package("timm").create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=0, img_size=64, patch_size=8
    )
    converter = package("timm.models.vision_transformer").models.vision_transformer
    small.load_state_dict(converter.checkpoint_filter_fn(dict(theirs.state_dict()), small))
    x = images(theirs)
    with torch.no_grad():
        close(ours(x), tokens(small.eval(), x))
    assert [line.split(" of ")[0] for line in weights.report.resized] == [
        "patch embedding",
        "positions",
    ]
    assert options_of(ours)["patch_size"] == 8


@pytest.mark.parametrize("number", [1, 3, 4, 6, 7])
def test_channels_are_repeated_as_timm_does(number):
    adapted = package("timm.models").models.adapt_input_conv
    weight = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapt.channels(weight, number), adapted(number, weight))


def test_dinov3s_rotations_are_taken_for_no_others(tmp_path):
    """timm's other rotary ViTs have tensors of the same names."""
    theirs, given = model("vit_small_patch16_dinov3")
    save(theirs, given, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("patch16_dinov3", "patch16_rope_reg4"))
    with pytest.raises(ValueError, match="vit_small_patch16_rope_reg4', whose rotary positions"):
        load_weights(tmp_path)
    file.unlink()
    assert "DINOv3's rotary positions" in load_weights(tmp_path).report.assumed
    assert load_weights(tmp_path).layout is timm.DINOV3

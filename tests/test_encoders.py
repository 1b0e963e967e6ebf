"""One encoder from a run, a checkpoint, a file, a function."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastequi.build import build, build_encoder
from fastequi.cli.main import main
from fastequi.data.reader import read
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.classification import normalise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_all, load_encoder, of_method, random_init
from fastequi.models.vit import VisionTransformer
from fastequi.optim import WeightEMA, adamw
from fastequi.recipes import RECIPES
from fastequi.runtime import checkpoint
from fastequi.train import pretrain
from fastequi.weights.architecture import Stated
from tests.support.configs import with_views_of_this_machine

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def config(**method):
    found = RECIPES["demo"]()
    return replace(
        found,
        model=replace(found.model, embed_dim=64, depth=1, num_heads=2, class_token=True),
        tir=replace(found.tir, **{"dim": 16, "equi_dim": 8, "expander": (16,), **method}),
    )


def run(folder, cfg, ema=False, steps=(3,)):
    """A run folder with a checkpoint of weights unlike those it started from."""
    torch.manual_seed(7)
    method = build(cfg)
    kept = WeightEMA(method, 0.5) if ema else None
    if kept is not None:
        torch.nn.init.ones_(method.encoder.pos_embed)
    folder.mkdir()
    (folder / "config.json").write_text(cfg.to_json())
    for step in steps:
        taken = checkpoint.snapshot(
            step, model=method, optimizer=adamw(method, 0.1, 0.1), state={}, ema=kept
        )
        checkpoint.write(folder / "checkpoints", taken)
    return method.eval()


def test_a_run_and_its_checkpoints_give_the_methods_features(tmp_path):
    method = run(tmp_path / "a", config(), steps=(3, 5))
    for spec, name in (("a", "a"), ("a/checkpoints/step_00000003", "a/step_00000003")):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        encoder = load_encoder(str(tmp_path / spec), "cpu")
        assert torch.equal(torch.get_rng_state(), before)
        assert (encoder.name, encoder.names) == (name, ("patch", "z_inv", "z_equi", "cls"))
        assert (encoder.image_size, encoder.patch_size) == (32, 8)
        assert encoder.config == config()
        expected = method.features(IMAGES)
        for key, value in encoder.features(IMAGES).items():
            assert torch.equal(value, expected[key])
            assert not value.requires_grad
    fresh = random_init(encoder)
    torch.manual_seed(config().train.seed)
    started = build(config()).eval().features(IMAGES)
    assert torch.equal(fresh.features(IMAGES)["z_equi"], started["z_equi"])
    assert fresh.name == "random init"
    assert (fresh.is_baseline, encoder.is_baseline) == (True, False)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 32, 32), ValueError, r"expected \[B, 3, H, W\], got \[2, 1, 32, 32\]"),
        (torch.zeros(3, 32, 32), ValueError, r"expected \[B, 3, H, W\], got \[3, 32, 32\]"),
        (torch.zeros(2, 32, 32, 3), ValueError, r"expected \[B, 3, H, W\], got \[2, 32, 32, 3\]"),
        (
            torch.zeros(2, 3, 32, 36),
            ValueError,
            "expected multiples of the patch size 8, got 32x36",
        ),
        (torch.zeros(2, 3, 0, 32), ValueError, "expected multiples of the patch size 8, got 0x32"),
        (torch.zeros(2, 3, 32, 32, device="meta"), ValueError, "expected them on cpu, got meta"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            TypeError,
            "expected floats, normalised by the encoder's mean and std, got torch.uint8",
        ),
    ],
)
def test_images_that_an_encoder_does_not_take_are_refused(images, error, message):
    encoder = of_method(build(config()), config())
    with pytest.raises(error, match=f"^images: {message}$"):
        encoder.features(images)
    with pytest.raises(error, match=f"^images: {message}$"):
        replace(encoder, name="other").features(images)


def test_other_sizes_are_taken_where_the_encoder_takes_them():
    encoder = of_method(build(config()), config())
    assert encoder.features(torch.zeros(2, 3, 48, 16))["patch"].shape[:2] == (2, 12)
    flat = torch.nn.Linear(3 * 8 * 8, 4)

    def features(images):
        return {"patch": flat(images.flatten(1))[:, None]}

    fixed = Encoder(name="fixed", features=features, names=("patch",), image_size=8)
    assert fixed.features(torch.zeros(2, 3, 8, 8))["patch"].shape == (2, 1, 4)
    with pytest.raises(ValueError, match=r"^images: expected 8x8 px, .* fixed .*, got 8x16 \(mat"):
        fixed.features(torch.zeros(2, 3, 8, 16))


def test_a_base_alone_has_no_z_equi_and_an_ema_is_taken(tmp_path):
    run(tmp_path / "a", config(equi_dim=0), ema=True)
    encoder = load_encoder(str(tmp_path / "a"), "cpu")
    assert encoder.names == ("patch", "z_inv", "cls")
    assert encoder.method.encoder.pos_embed.std() > 0  # the EMA, not the last weights


def test_a_runs_own_encoder_file_takes_its_settings_from_the_run(tmp_path):
    method = run(tmp_path / "a", config())  # heads of 32 channels: no shape says so
    save_file(method.encoder.state_dict(), tmp_path / "a" / "model.safetensors")
    encoder = load_encoder(str(tmp_path / "a" / "model.safetensors"), "cpu")
    expected = method.features(IMAGES)["patch"]
    torch.testing.assert_close(encoder.features(IMAGES)["patch"], expected)
    assert encoder.config == config()
    with pytest.raises(ValueError, match=r"config.json says 2 heads and 32 px: leave them out"):
        load_encoder(str(tmp_path / "a" / "model.safetensors"), "cpu", Stated(num_heads=4))


def test_what_a_run_leaves_says_its_settings_wherever_it_is(tmp_path):
    settings = replace(config(), train=replace(config().train, epochs=1, tensorboard=False))
    method = pretrain(settings, embedded_photos(), tmp_path / "run", max_steps=1)
    moved = tmp_path / "elsewhere" / "encoder.safetensors"
    moved.parent.mkdir()
    (tmp_path / "run" / "model.safetensors").rename(moved)
    encoder = load_encoder(str(moved), "cpu")
    assert encoder.config == with_views_of_this_machine(settings)
    expected = method.features(IMAGES)["patch"]
    torch.testing.assert_close(encoder.features(IMAGES)["patch"], expected)
    torch.manual_seed(settings.train.seed)
    with torch.no_grad():
        started = build_encoder(settings.model, 32).eval()(IMAGES)[:, 1:]
    torch.testing.assert_close(random_init(encoder).features(IMAGES)["patch"], started)


def test_heads_are_for_files_alone_and_of_others_where_they_do_not_say(tmp_path):
    run(tmp_path / "a", config())
    with pytest.raises(ValueError, match="--num-heads: only for a file or a folder of weights"):
        load_encoder(str(tmp_path / "a"), "cpu", Stated(num_heads=2))
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=4)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_file(network.state_dict(), tmp_path / name / "vit.safetensors")
    (tmp_path / "other" / "config.json").write_text('{"num_heads": 2}')
    specs = [str(tmp_path / name) for name in ("one/vit.safetensors", "other/vit.safetensors", "a")]
    _, found = load_all(specs[0], specs[1:], "cpu", Stated(num_heads=4))
    with torch.no_grad():
        expected = network.eval()(IMAGES)[:, 1:]
    torch.testing.assert_close(found["one/vit"].features(IMAGES)["patch"], expected)
    assert not torch.allclose(found["other/vit"].features(IMAGES)["patch"], expected)


def test_commands_ask_for_heads_and_take_them(tmp_path, capsys):
    torch.manual_seed(0)
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=4)
    file, out = tmp_path / "vit.safetensors", tmp_path / "f.npy"
    save_file(network.state_dict(), file)
    photos = embedded_photos().paths[0].rsplit("/", 1)[0]
    words = ["embed", str(file), "--data", photos, "--out", str(out), "--features", "cls"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--device", "cpu"])
    assert ended.value.code == 2
    assert "unknown for 64 channels; expected --num-heads" in capsys.readouterr().err
    found = []
    for heads in ("4", "8"):
        main([*words, "--device", "cpu", "--num-heads", heads, "--img-size", "32"])
        found.append(torch.from_numpy(np.load(out)))
    images = next(read(embedded_photos(), 32, device=torch.device("cpu")))[0]
    encoder = load_encoder(str(file), "cpu", Stated(4))
    expected = encoder.features(normalise(images, encoder))["cls"][:, 0]
    torch.testing.assert_close(found[0], expected)
    assert not torch.allclose(found[1], expected)
    for option, value in (("--num-heads", ["0"]), ("--img-size", ["32", "32", "32"])):
        with pytest.raises(SystemExit):
            main([*words, option, *value])
        assert f"{option}: expected" in capsys.readouterr().err


def test_commands_take_a_checkpoint_of_two_networks_and_resize_its_patches(tmp_path, capsys):
    networks = {}
    for i, name in enumerate(("student", "teacher")):
        torch.manual_seed(i)
        networks[name] = VisionTransformer(
            img_size=32, patch_size=8, in_chans=4, embed_dim=64, depth=1, num_heads=4
        )
    file, out = tmp_path / "checkpoint.pth", tmp_path / "f.npy"
    torch.save({name: network.state_dict() for name, network in networks.items()}, file)
    photos = embedded_photos().paths[0].rsplit("/", 1)[0]
    words = ["embed", str(file), "--data", photos, "--out", str(out), "--features", "cls"]
    words += ["--device", "cpu", "--num-heads", "4", "--channels", "2", "1", "0"]
    images = next(read(embedded_photos(), 32, device=torch.device("cpu")))[0]
    for name, options in {"student": ["--network", "student"], "teacher": []}.items():
        main([*words, *options])
        encoder = load_encoder(str(file), "cpu", Stated(4, network=name, channels=(2, 1, 0)))
        x = normalise(images, encoder)
        with torch.no_grad():
            four = torch.cat([x.flip(1), torch.zeros_like(x[:, :1])], 1)
            expected = networks[name].eval()(four)[:, 0]
        found = torch.from_numpy(np.load(out))[0]
        torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)
    main([*words, "--patch-size", "16"])
    small = load_encoder(str(file), "cpu", Stated(4, patch_size=16, channels=(2, 1, 0)))
    assert small.features(x)["patch"].shape == (9, 4, 64)
    expected = small.features(x)["cls"][0, 0]
    torch.testing.assert_close(torch.from_numpy(np.load(out))[0], expected, atol=1e-4, rtol=1e-4)
    for option, value in (("--channels", ["0", "-1"]), ("--patch-size", ["0"])):
        with pytest.raises(SystemExit):
            main([*words, option, *value])
        assert f"{option}: expected" in capsys.readouterr().err


def test_a_function_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(
        "from fastequi.evaluate.encoders import Encoder\n"
        "def mine(device):\n"
        "    features = lambda x: {'patch': x.flatten(2)}\n"
        "    return Encoder(name='mine', features=features, names=('patch',), image_size=16)\n"
        "def wrong(device):\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    encoder, encoders = load_all("own_encoder:mine", ["own_encoder:mine"], "cpu")
    assert isinstance(encoder, Encoder)
    assert list(encoders) == ["mine", "mine (2)"]
    assert encoder.name == "mine (2)"
    with pytest.raises(ValueError, match="mine gives no `fresh`"):
        random_init(load_encoder("own_encoder:mine", "cpu"))
    with pytest.raises(ValueError, match="returned int, expected a fastequi"):
        load_encoder("own_encoder:wrong", "cpu")
    with pytest.raises(ValueError, match="none cannot be imported"):
        load_encoder("own_encoder:none", "cpu")


def test_what_is_no_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a run's folder"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(config().to_json())
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_encoder(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="got the file"):
        load_encoder(str(tmp_path / "a.txt"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.safetensors").write_text("x")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_encoder(str(tmp_path / "b" / "b.safetensors"))
    save_file({"weight": torch.zeros(1)}, tmp_path / "b" / "c.safetensors")
    with pytest.raises(ValueError, match=r"no patch_embed\.proj\.weight, but weight"):
        load_encoder(str(tmp_path / "b" / "c.safetensors"))
    run(tmp_path / "c", config())
    (tmp_path / "c" / "config.json").write_text(config(dim=24).to_json())
    with pytest.raises(ValueError, match="weights do not fit"):
        load_encoder(str(tmp_path / "c"))
    for text in (
        "",
        "[]",
        '{"method": "tir", "model": null}',
        '{"data": {"mean": [0.5, null, 1]}}',
    ):
        (tmp_path / "c" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"c/config\.json: not a run's settings: ") as told:
            load_encoder(str(tmp_path / "c"))
        assert "\n" not in str(told.value)

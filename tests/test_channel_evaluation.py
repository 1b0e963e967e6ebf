"""Evaluation of encoders of other channels than RGB."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from fastequi import paths
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.cli.main import main
from fastequi.config import Config, DataConfig, TrainConfig
from fastequi.evaluate import tasks as cut
from fastequi.evaluate.classification import evaluate_classes
from fastequi.evaluate.encoders import Encoder, load_encoder, of_method, random_init
from fastequi.evaluate.equivariance import evaluate_equivariance
from fastequi.evaluate.pairs import collect_pairs
from fastequi.evaluate.photo_windows import photometric_for, values_of
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import evaluate_reconstruction, predictions
from fastequi.evaluate.tasks import Budget, Windows, for_encoder, score_tasks, tasks
from fastequi.functional.normalise import denormalise
from tests.support.channels import ONE_OR_FIVE, SEVERAL, several
from tests.support.configs import config_of, run_folder

CPU = torch.device("cpu")


def run_of(channels: int, **path) -> Config:
    return several(config_of("tir_vicreg_vits16"), channels, **path)


@pytest.mark.parametrize("channels", SEVERAL)
def test_a_run_of_other_channels_is_an_encoder_of_them(channels, tmp_path):
    config = run_of(channels)
    encoder = load_encoder(str(run_folder(tmp_path / "run", config)), "cpu")
    assert encoder.in_chans == channels
    assert (encoder.channels, encoder.value_range) == (config.data.channels, "dtype")
    images = torch.randn(2, channels, 32, 32)
    found = encoder.features(images)["patch"]
    assert not torch.equal(found, random_init(encoder).features(images + 1)["patch"])
    with pytest.raises(ValueError, match=rf"images: expected \[B, {channels}, H, W\], got \[2, 3"):
        encoder.features(torch.randn(2, 3, 32, 32))


def test_what_reads_rgb_alone_says_so(tmp_path, capsys):
    run = str(run_folder(tmp_path / "run", run_of(2)))
    said = r"expected an encoder of RGB images, as {} takes no others, got run of data.channels=0,1"
    with pytest.raises(ValueError, match=said.format("eval knn")):
        evaluate_classes("knn", run, data="digits")
    for evaluate in (evaluate_equivariance, evaluate_reconstruction):
        with pytest.raises(ValueError, match=said.format(r"the embedded photographs .*")):
            evaluate(run, out=tmp_path / "f.json")
    with pytest.raises(SystemExit):
        main(["eval", "position", run])
    said = "--data: expected images with channels 0,1, as the encoder takes; the embedded photo"
    assert said in capsys.readouterr().err


def test_labelled_images_during_training_are_rgb():
    train = TrainConfig(knn_every=5, knn_data=("digits",))
    with pytest.raises(ValueError, match=r"train\.knn_every: expected 0 for data\.channels=0,1"):
        Config(data=DataConfig(channels="0,1"), train=train)


def test_photometric_change_of_other_channels_is_a_gain_and_an_offset_of_each():
    change = Photometric(blur=0.0, noise=0.0, rgb=False, gain=0.2, offset=0.05)
    images = torch.rand(4, 5, 8, 8) * 0.5 + 0.25
    found = change.change(images, torch.Generator().manual_seed(0))
    x, y = images.flatten(2), found.flatten(2)
    fitted = [torch.linalg.lstsq(torch.stack([a, torch.ones_like(a)], 1), b[:, None])
              for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]  # fmt: skip
    gains = torch.stack([fit.solution[0, 0] for fit in fitted])
    offsets = torch.stack([fit.solution[1, 0] for fit in fitted])
    rebuilt = images * gains.view(4, 5, 1, 1) + offsets.view(4, 5, 1, 1)
    torch.testing.assert_close(found, rebuilt, atol=1e-5, rtol=0)
    assert 0.05 < (gains - 1).abs().max() <= 0.2
    assert 0.01 < offsets.abs().max() <= 0.05
    assert gains.unique().numel() == 20


def test_colour_is_gain_where_images_are_not_rgb():
    def features(images):
        return {"patch": images.flatten(2)}

    about = {"name": "mine", "features": features, "names": ("patch",), "image_size": 16}
    five = Encoder(**about, mean=(0.5,) * 5, std=(0.5,) * 5)
    assert five.channels == "0,1,2,3,4"
    found = for_encoder(tasks(photometric=("se2",)), five)
    assert list(found) == ["rotation", "translation", "se2", "gain", "blur", "se2, photometric"]
    assert found["gain"].path == paths.Gain(channels=5)
    assert not found["se2, photometric"].photometric.rgb
    same = tasks(photometric=("se2",))
    assert for_encoder(same, Encoder(**about)) == same
    assert values_of(five).channels == "0,1,2,3,4"


def test_deep_colours_have_the_tasks_of_colours():
    about = {"name": "mine", "features": lambda x: {}, "names": ("patch",), "image_size": 16}
    deep = Encoder(**about, channels="0,1,2", colors=True)
    chosen = tasks(photometric=("se2",))
    assert for_encoder(chosen, deep) == chosen
    assert photometric_for(deep).rgb
    bands = Encoder(**about, channels="0,1,2")
    assert "gain" in for_encoder(chosen, bands)
    assert not photometric_for(bands).rgb


class Noise:
    """A loader of noise in 16 bits, in the place of one that reads files."""

    def __init__(self, config, path, seed):
        self.config, self.path, self.seed = config, path, seed

    def images_of(self, ids):
        return ids

    def __iter__(self):
        for i in range(3):
            batch = synthetic(self.config, 16, CPU)
            draws = cut.Draws.of(self.seed, i, batch.sample_ids.numpy())
            params = self.path.sample(draws, self.config.data.image_size)
            yield replace(batch, path=params, sample_ids=batch.sample_ids + 16 * i)


@pytest.mark.parametrize("channels", ONE_OR_FIVE)
def test_the_table_of_transformations_is_of_every_channel(channels):
    config = run_of(channels)
    config = replace(config, data=replace(config.data, source_size=48))
    encoder = of_method(build(config), config)
    views = cut.views_of(config)
    windows = Windows(views, lambda _, path, seed: nullcontext(Noise(config, path, seed)))
    budget = Budget(train_pairs=32, test_pairs=16, fit=Fit(epochs=1, seeds=1))
    chosen = tasks(("se2", "color", "blur"), photometric=("se2",))
    options = {"budget": budget, "windows": windows}
    found = score_tasks({"run": encoder}, None, None, chosen, **options)
    assert list(found) == ["se2", "gain", "blur", "se2, photometric"]
    assert len(found["gain"].names) == 2 * channels
    assert {score.features for score in found["gain"].scores} >= {"pixel statistics", "z_equi"}
    table = found["gain"].table()
    heads = [column.header for column in table.columns]
    if channels == 1:
        assert heads[2:] == ["gain0", "95 %", "offset0", "mean", "pooled", "|Δgain0|"]
    else:  # too many to stand beside each other
        assert heads[2:] == ["gain0", "95 %", "mean", "pooled", "|Δgain0|"]
        assert str(table.title).endswith("the mean is over 10 parameters")
    three = Encoder(name="rgb", features=encoder.features, names=("patch",), image_size=32)
    with pytest.raises(ValueError, match="encoders: expected the same channels, rgb has rgb, run"):
        score_tasks({"run": encoder, "rgb": three}, None, None, chosen, **options)


def test_pairs_of_sixteen_bits_are_those_of_eight():
    config = run_of(2)
    views, path = cut.views_of(config), paths.SE2()
    eight = synthetic(config, 4, CPU)
    eight = replace(eight, u=torch.randint(256, eight.u.shape, dtype=torch.uint8))
    sixteen = replace(eight, u=(eight.u.int() * 257).to(torch.uint16))
    pairs = [collect_pairs([batch], path, views, 4) for batch in (eight, sixteen)]
    torch.testing.assert_close(pairs[0].after, pairs[1].after, atol=2e-3, rtol=0)
    unit = denormalise(pairs[0].before.float(), views.mean, views.std)
    expected = eight.u.float() / 255
    torch.testing.assert_close(unit, expected, atol=2e-3, rtol=0)


def test_predicted_images_of_other_channels_have_their_errors():
    config = run_of(5)
    method = build(config).eval()
    found = predictions(method, [synthetic(config, 4, CPU)], 4)
    plain = json.dumps(replace(found).__dict__, default=str)
    assert "nan" not in plain

"""Pictures of images of other channels than RGB: false colours, stretched, and what they say."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import of_method
from fastequi.report import visualize
from fastequi.report.false_colors import FalseColors, picked_of, said, shown_channels
from fastequi.report.sheets import path_sheet, to_uint8
from tests.support.channels import SEVERAL, several
from tests.support.configs import config_of, run_folder


@pytest.mark.parametrize(
    ("count", "picked"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (5, (0, 2, 4)), (8, (0, 4, 7))]
)
def test_the_first_the_middle_and_the_last_channel_are_shown(count, picked):
    assert shown_channels(count) == picked


def test_every_channel_is_stretched_between_its_own_percentiles():
    ramp = torch.linspace(0, 1, 101 * 100).view(1, 1, 101, 100)
    images = torch.cat([ramp * 0.1 + 0.3, ramp, 1 - ramp * 0.5], 1)
    colors = FalseColors.of(images)
    np.testing.assert_allclose(colors.low, (0.301, 0.01, 0.505), atol=1e-3)
    np.testing.assert_allclose(colors.high, (0.399, 0.99, 0.995), atol=1e-3)
    found = colors.pictures(images)[0].astype(float) / 255
    expected = ((ramp[0, 0] - 0.01) / 0.98).clamp(0, 1).numpy()
    np.testing.assert_allclose(found[..., 0], expected, atol=5e-3)
    np.testing.assert_allclose(found[..., 1], expected, atol=5e-3)
    np.testing.assert_allclose(found[..., 2], 1 - expected, atol=5e-3)


def test_sixteen_bits_look_as_eight():
    eight = torch.randint(256, (2, 5, 9, 9), dtype=torch.uint8)
    sixteen = (eight.int() * 257).to(torch.uint16)
    pictures = [FalseColors.of(images).pictures(images) for images in (eight, sixteen)]
    assert np.array_equal(*pictures)
    assert pictures[0].std() > 0


def test_one_channel_is_grey_and_two_have_no_blue():
    grey, two = (FalseColors.of(x).pictures(x) for x in (torch.rand(1, n, 6, 6) for n in (1, 2)))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert grey.std() > 0
    assert (two[..., 2] == 0).all()
    assert not np.array_equal(two[..., 0], two[..., 1])


def test_a_channel_that_is_the_same_everywhere_is_shown():
    assert (FalseColors.of(torch.ones(1, 5, 4, 4)).pictures(torch.ones(1, 5, 4, 4)) == 0).all()


def test_the_caption_names_the_channels_of_the_files():
    assert said("9,4,7,1,2", 5) == (
        "False colours: channels 9, 7 and 2 as red, green and blue, each from its percentile 1 to "
        "99 in these images."
    )
    assert said("3", 1).startswith("Grey is channel 3, from")
    assert "channels 0 and 1 as red and green" in said("0,1", 2)


def test_channels_that_were_asked_for_are_shown():
    """By their numbers in the files, of those that the encoder takes."""
    picked = picked_of("7,9", "9,4,7,1,2", 5)
    assert picked == (2, 0)
    assert "channels 7 and 9 as red and green" in said("9,4,7,1,2", 5, picked)
    images = torch.rand(2, 5, 6, 6)
    found = FalseColors.of(images, picked).pictures(images)
    first = FalseColors.of(images[:, 2:3]).pictures(images[:, 2:3])
    np.testing.assert_array_equal(found[..., 0], first[..., 0])
    assert picked_of("", "all", 5) == ()
    for asked, channels, why in (
        (
            "3",
            "9,4,7",
            "expected one to three of the encoder's channels 9,4,7, such as 9,4,7, got 3",
        ),
        ("0,1,2,3", "all", "got 0,1,2,3"),
        ("red", "all", "got red"),
        ("0", "rgb", "expected none of an encoder of RGB, got 0"),
    ):
        with pytest.raises(ValueError, match=f"^--shown: .*{why}"):
            picked_of(asked, channels, 5)


def test_a_path_has_one_stretch_for_all_of_its_images():
    mean, std = (0.5,) * 5, (0.25,) * 5
    views = {name: torch.randn(2, 5, 8, 8) for name in ("v1", "v2")}
    views |= {"target": views["v1"][:, None], "pred": views["v1"][:, None] + 0.5}
    sheet = path_sheet(views, mean, std, "0,1,2,3,4")
    v1, target, pred, v2 = zip(*sheet.rows, strict=True)
    assert np.array_equal(v1, target)
    assert np.mean(pred) > np.mean(v1) + 10  # it is brighter, and stays so
    assert v2[0].shape == (8, 8, 3)
    assert "channels 0, 2 and 4" in sheet.note
    three = {name: x[..., :3, :, :] for name, x in views.items()}
    plain = path_sheet(three, mean[:3], std[:3])
    assert np.array_equal(plain.rows[0][0], to_uint8(three["v1"], mean[:3], std[:3])[0])
    assert "channels" not in plain.note


@dataclass
class Loaded:
    """A loader of noise in the sizes that it is asked for."""

    config: Config

    def __iter__(self):
        yield synthetic(self.config, self.config.data.batch_size, torch.device("cpu"))


@pytest.mark.parametrize("channels", SEVERAL)
def test_a_run_of_other_channels_gives_its_pictures(channels, monkeypatch):
    config = several(config_of("tir_vicreg_vits16"), channels)
    encoder = of_method(build(config), config)

    def loader(source, cfg, path, **options):
        assert cfg.channels == config.data.channels
        return nullcontext(Loaded(replace(config, data=cfg)))

    monkeypatch.setattr(visualize, "make_loader", loader)
    found, why_not = visualize.sheets(encoder, embedded_photos(), windows=30)
    assert list(found) == ["reconstructions", "pca", "attention", "sweep"], why_not
    for sheet in found.values():
        assert said(config.data.channels, channels) in sheet.note
        assert sheet.png().width > 0
    tile = found["pca"].rows[0][0]
    assert tile.std() > 10
    if channels > 1:
        other = visualize.pca(encoder, embedded_photos(), (1,))
        assert "Grey is channel 1, from" in other.note
        assert not np.array_equal(other.rows[0][0], tile)


def test_the_embedded_photographs_are_rgb(tmp_path):
    run = run_folder(tmp_path / "run", several(config_of("vicreg_vits16"), 2))
    with pytest.raises(ValueError, match="as run takes; the embedded photographs are RGB"):
        visualize.visualize(str(run), None, tmp_path / "out")

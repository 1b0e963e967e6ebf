"""`fastequi visualize` on untrained networks: the pictures, and why some cannot be made."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastequi.data.sources.image_sets import embedded_photos
from fastequi.recipes import RECIPES
from fastequi.report.visualize import visualize
from tests.support.configs import run_folder, small_demo


@pytest.mark.slow("color")
@pytest.mark.parametrize("family", ["se2", "color"])
def test_a_run_gives_four_pictures(tmp_path, capsys, family):
    config = small_demo()
    config = replace(config, path=replace(config.path, family=family))
    run = run_folder(tmp_path / "run", config)
    before = torch.get_rng_state()
    files = visualize(str(run), None, tmp_path / "out", device="cpu", windows=120)
    assert torch.equal(torch.get_rng_state(), before)
    assert [f.name for f in files] == [
        *("reconstructions.png", "pca.png", "attention.png", "sweep.png")
    ]
    sizes = {f.stem: Image.open(f).size for f in files}
    assert sizes["reconstructions"] == (6 * (128 + 6) + 6, 26 + 6 * (128 + 6) + 6)
    assert sizes["pca"] == (8 * (192 + 6) + 6, 26 + 3 * (192 + 6) + 6)
    assert sizes["sweep"][0] == 7 * (128 + 6) + 6
    printed = capsys.readouterr().out
    assert "2 heads" in printed
    assert "R² over 40 rotated windows" in printed
    values = re.search(r"shown: (\S+) \(at random initialisation (\S+)\)", printed)
    assert values[1] == values[2]  # it has not learned anything
    again = visualize(str(run), None, tmp_path / "again", device="cpu", windows=120)
    for one, other in zip(files, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_shown_is_named(tmp_path, capsys):
    config = RECIPES["rotnet_nin_32"]()
    config = replace(config, model=replace(config.model, num_blocks=3))
    run = run_folder(tmp_path / "run", config)
    photo = Path(embedded_photos().paths[0])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.jpg").write_bytes(photo.read_bytes())
    files = visualize(str(run), tmp_path / "data", tmp_path / "out", device="cpu", windows=100)
    assert [f.name for f in files] == ["pca.png"]
    printed = capsys.readouterr().out
    assert "no reconstructions: it has no decoders" in printed
    assert "no attention: it has no attention" in printed
    assert "no sweep: its probe is fitted on other images, and there is one" in printed


@pytest.mark.slow
def test_a_base_alone_and_a_file_of_weights_have_no_decoders(tmp_path, capsys):
    run = run_folder(tmp_path / "run", small_demo(num_steps=0))
    visualize(str(run), None, tmp_path / "out", device="cpu", windows=100)
    assert "no reconstructions" in capsys.readouterr().out


def test_an_unreadable_image_is_named_once_and_left_out(tmp_path, caplog):
    run = run_folder(tmp_path / "run", small_demo())
    (tmp_path / "data").mkdir()
    for i, photo in enumerate(embedded_photos().paths[:3]):
        data = Path(photo).read_bytes()
        (tmp_path / "data" / f"{i}.jpg").write_bytes(data[: len(data) // (2 if i == 1 else 1)])
    with caplog.at_level(logging.WARNING):
        made = visualize(str(run), tmp_path / "data", tmp_path / "out", device="cpu", windows=100)
    assert {file.stem for file in made} == {"reconstructions", "pca", "attention", "sweep"}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "1.jpg cannot be read and is left out" in said[0]
    for i in (0, 2):
        (tmp_path / "data" / f"{i}.jpg").unlink()
    with pytest.raises(ValueError, match=r"--data: of 1 images none that was tried can be read"):
        visualize(str(run), tmp_path / "data", tmp_path / "out", device="cpu", windows=100)

"""The loop of TIR by hand in fastequi/methods/README.md runs, and learns."""

import re
from pathlib import Path

import torch

import fastequi

TEXT = (Path(__file__).parent.parent / "fastequi/methods/README.md").read_text()


def test_tir_by_hand_learns_from_public_names_in_sixty_lines(capsys):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
    assert len(code.strip().splitlines()) <= 60
    imports = re.findall(r"^(?:from|import) .*fastequi.*$", code, re.M)
    assert imports == ["import fastequi", "from fastequi.models.vit import create"]
    scope: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(code, scope)
        printed = re.findall(r"reconstruction ([\d.]+)", capsys.readouterr().out)
        assert len(printed) == 3
        photographs = scope["photographs"]
        smooth = torch.nn.functional.avg_pool2d(photographs.float(), 9, 1, 4).to(torch.uint8)
        first = scope["step"](smooth[:16])[1]
        for _ in range(8):
            last = scope["step"](smooth[:16])[1]
    assert last < 0.9 * first
    assert all(p.grad is not None for p in scope["modules"].parameters())


def test_features_that_follow_the_image_have_gradients_on_both_sides():
    section = TEXT.partition("## Features that follow the image")[2]
    scope: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(re.search(r"```python\n(.*?)```", section, re.S)[1], scope)
    assert scope["theta"].shape == (8, 2, 3)
    assert 0 < scope["loss"].item() < 1
    assert all(p.grad.abs().sum() > 0 for p in scope["encoder"].parameters())
    here, there, theta = (scope[name].detach() for name in ("here", "there", "theta"))
    inside = fastequi.warp(torch.ones_like(here), theta, align_corners=False)[:, :1] > 0.999
    error = (there - fastequi.warp(here, theta, padding_mode="border")).square()
    kept = error[inside.expand_as(error)].mean()  # but for pixels at the border
    assert abs(kept - scope["loss"].detach()) < 0.1 * kept


def test_a_method_is_named_where_the_readme_says():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`([\w/]+\.py)`", TEXT):
        assert any(root.glob(f"**/{name}")), name

"""What the README shows is what runs."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_drop_in_loss_is_eight_lines_that_work():
    code = re.search(r"## The fused loss in eight lines\n\n```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) <= 8
    scope: dict[str, object] = {}
    exec(code, scope)
    grad = scope["pred"].grad
    assert grad.shape == (4, 2, 196, 768)
    assert grad.isfinite().all()
    assert torch.count_nonzero(grad) > 0.99 * grad.numel()


def test_every_recipe_and_variable_is_listed():
    from fastequi.recipes import RECIPES

    for name in RECIPES:
        assert f"`{name}`" in README
    root = Path(__file__).parent.parent
    files = [*root.glob("fastequi/**/*.py"), *root.glob("kernels/*.py")]
    read = set().union(
        *(re.findall(r'"((?:FASTEQUI|TRITON|GOMP)_\w+)"', f.read_text()) for f in files)
    )
    assert read
    for name in read:
        assert f"`{name}" in README, name

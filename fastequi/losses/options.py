"""What the path losses share as modules: they hold the options of a function."""

from __future__ import annotations

from typing import Any

from torch import nn


class ReconLoss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

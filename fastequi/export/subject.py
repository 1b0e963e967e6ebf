"""What is exported, and what a format says of what it wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastequi.data.channels import RGB
from fastequi.export.pretrained import PretrainedEncoder
from fastequi.models.vit import VisionTransformer
from fastequi.weights.architecture import options_of
from fastequi.weights.beside import VALUES
from fastequi.weights.layouts import Layout

State = dict[str, Tensor]

WEIGHTS, PROGRAM = 1e-5, 1e-4
"""Largest difference of tokens: of weights under other names, of other libraries' kernels."""

FOLDER = "FOLDER"
"""Stands for the folder in `Written.code`."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder that is exported.

    Attributes:
        encoder: in eval mode, on the CPU.
        state: its tensors under our names.
        options: all arguments of its architecture.
    """

    encoder: PretrainedEncoder
    state: State
    options: dict[str, Any]

    @classmethod
    def of(cls, encoder: PretrainedEncoder) -> Subject:
        tensors = encoder.network.state_dict()
        state = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        return cls(encoder=encoder, state=state, options=options_of(encoder.network))

    @property
    def is_square(self) -> bool:
        height, width = self.encoder.image_size
        return height == width

    def images(self, batch: int, size: tuple[int, int] | None = None) -> Tensor:
        """Noise [B, C, H, W] of the encoder's size, or of another."""
        generator = torch.Generator().manual_seed(batch)
        shape = batch, self.encoder.in_chans, *(size or self.encoder.image_size)
        return torch.randn(shape, generator=generator)

    @property
    def values(self) -> dict[str, Any]:
        """What a config.json says, for `fastequi.load`, of images that are not RGB."""
        if self.encoder.channels == RGB:
            return {}
        said = {"channels": self.encoder.channels, "value_range": self.encoder.value_range}
        return {VALUES: said}

    @torch.no_grad()
    def difference(
        self, computed: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], bound: float
    ) -> float:
        """The largest difference between a network's tokens and the encoder's.

        Args:
            computed: the network.
            inputs: normalised images [B, C, H, W].
            bound: largest that is accepted, for tokens of values up to 1; larger ones are divided
                by their largest value.

        Raises:
            RuntimeError: it is larger.
        """
        largest = 0.0
        for images in inputs:
            expected = self.encoder(images)
            found = computed(images)
            if found.shape != expected.shape:
                shapes = f"{list(found.shape)} instead of {list(expected.shape)}"
                raise RuntimeError(f"what was written gives tokens {shapes}, and is not kept")
            scale = max(float(expected.abs().max()), 1.0)
            largest = max(largest, float((found - expected).abs().max()) / scale)
        if not largest <= bound:
            raise RuntimeError(
                f"what was written gives other tokens (difference {largest:.1e}, expected at most "
                f"{bound:.0e}), and is not kept"
            )
        return largest

    def read_back(self, layout: Layout, tensors: State) -> float:
        """The difference of tokens (:meth:`difference`) of weights that were written in a layout.

        Args:
            layout: that reads them.
            tensors: from the file.
        """
        state = layout.ours(
            {
                name: tensor
                for name, tensor in tensors.items()
                if tensor.numel() and not re.search(layout.unused, name)
            }
        )
        options = dict(self.options)  # but for what layouts add: gains, positions as tokens
        options["init_values"] = 1.0 if "blocks.0.ls1.gamma" in state else None
        if "pos_embed" in state:
            rows, columns = self.encoder.network.grid_size(*self.encoder.image_size)
            options["no_embed_class"] = state["pos_embed"].shape[1] == rows * columns
        network = VisionTransformer(**options).eval()
        network.load_state_dict(state)
        return self.difference(network, [self.images(2)], WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a format wrote.

    Attributes:
        what: it is.
        code: Python that loads it, with `FOLDER` for the folder.
        difference: between its tokens and the encoder's, of :meth:`Subject.difference`.
        checked: how that was found.
        notes: what else to know, as sentences.
        library: its name on the Hub, "" without one.
    """

    what: str
    code: str
    difference: float
    checked: str
    notes: tuple[str, ...] = ()
    library: str = ""


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio r with int(dim · r) = hidden."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim

"""Squares of photographs, with room beside them for whole-patch shifts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastequi.config import PathConfig
from fastequi.data.channels import RGB
from fastequi.data.sources.images import Source
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.photo_windows import windows_for
from fastequi.evaluate.tasks import views_for
from fastequi.functional.normalise import in_unit
from fastequi.runtime.devices import expect_memory


@dataclass(frozen=True)
class Windows:
    """N squares on the CPU.

    Attributes:
        images: [N, C, S, S] uint8, or floats in 0..1 of images with more bits.
        photographs: [N] int64, which one each is of.
        left_out: places of photographs that cannot be decoded, of those that were drawn.
    """

    images: Tensor
    photographs: Tensor
    left_out: frozenset[int] = frozenset()


def expect_windows(
    encoder: Encoder, n: int, *, margin: int = 0, option: str = "--windows", beside: int = 0
) -> None:
    """Raises ValueError if n windows do not fit into the free memory.

    Args:
        encoder, n, margin: see :func:`cut_windows`.
        option: that says how many.
        beside: windows that are there already.
    """
    depth = 1 if encoder.channels == RGB else 4  # bytes, at most
    each = 2 * depth * encoder.in_chans * (encoder.image_size + margin) ** 2  # joined once
    cpu = torch.device("cpu")
    expect_memory(option, n, each, cpu, reserved=beside * each)


def cut_windows(
    source: Source, encoder: Encoder, n: int, *, margin: int = 0, seed: int = 0
) -> Windows:
    """Cuts them from photographs, as `eval equivariance` cuts its windows.

    Args:
        source: the photographs.
        encoder: whose image size they have, on whose device they are made.
        n: how many.
        margin: pixels by which they are larger than the encoder's images.
        seed: of the draws.
    """
    side = encoder.image_size + margin
    views = replace(views_for(encoder, {}), source_size=side + margin % 2)  # an even margin
    images, photographs, count = [], [], 0
    path = PathConfig().build()
    with windows_for(encoder, source, path, views, seed=seed, count=n) as loader:
        for batch in loader:
            whole = batch.u if batch.u.dtype == torch.uint8 else in_unit(batch.u)
            images.append(whole[..., :side, :side].cpu())
            photographs.append(loader.photographs_of(batch.sample_ids))
            count += len(batch.u)
            if count >= n:
                break
        left_out = frozenset(loader.left_out)
    return Windows(torch.cat(images)[:n], torch.cat(photographs)[:n], left_out)

"""Classes of patches by retrieval, without training: Hummingbird's evaluation.

(Balažević et al., "Towards In-context Scene Understanding", arXiv 2306.01667.) A memory holds
patches of the training images: their features of unit length, and the shares of classes among their
pixels. A test patch attends to its k nearest by cosine: softmax(cosine / T) weighs their shares.

The search is exact: a product of matrices and a `topk` for some patches at a time, or faiss's flat
index, which finds the same neighbours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.geometry.masks import IGNORED

Search = Literal["torch", "faiss"]

_VALUES = 1 << 25  # similarities at a time, 128 MB


@dataclass(frozen=True)
class Memory:
    """Labelled patches.

    Attributes:
        keys: [M, D] float32 of unit length.
        shares: [M, C] of classes; rows sum to 1.
        neighbours: k.
        temperature: T.
        index: faiss's, of the keys; None: products of matrices.
    """

    keys: Tensor
    shares: Tensor
    neighbours: int = 30
    temperature: float = 0.02
    index: Any = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """[..., C] shares of classes of tokens [..., D]."""
        flat = F.normalize(tokens.flatten(0, -2).to(self.keys), dim=1)
        k = min(self.neighbours, len(self.keys))
        found = []
        for part in flat.split(max(1, _VALUES // len(self.keys))):
            cosine, places = self._nearest(part, k)
            weights = (cosine / self.temperature).softmax(1)
            found.append((weights[:, None] @ self.shares[places])[:, 0])
        return torch.cat(found).unflatten(0, tokens.shape[:-1])

    def _nearest(self, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosines [N, k] of the nearest keys, and their places."""
        if self.index is None:
            return (unit @ self.keys.T).topk(k)
        cosine, places = map(torch.from_numpy, self.index.search(unit.cpu().numpy(), k))
        return cosine.to(unit.device), places.to(unit.device)


def expect_search(search: Search) -> None:
    """Raises ValueError if what is to search is not installed."""
    if search == "faiss" and importlib.util.find_spec("faiss") is None:
        raise ValueError("--search: faiss is not installed: pip install 'fastequi[faiss]'")


def _indexed(keys: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys.cpu().numpy())
    return index


def class_counts(mask: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """[h, w, C] float32: how many pixels of each class lie in a token's cell; ignored ones in none.

    Args:
        mask: [H, W] uint8, classes and IGNORED.
        grid: (h, w) of the tokens of the whole image.
        classes: C.
    """
    cells = [
        ((torch.arange(n) + 0.5) * tokens / n).long()
        for n, tokens in zip(mask.shape, grid, strict=True)
    ]
    place = cells[0][:, None] * grid[1] + cells[1]
    known = mask != IGNORED
    pairs = place[known] * classes + mask[known].long()
    counts = torch.bincount(pairs, minlength=grid[0] * grid[1] * classes)
    return counts.view(*grid, classes).float()


def memory_of(
    maps: Sequence[Tensor],
    counts: Iterable[Tensor],
    size: int,
    device: torch.device,
    *,
    neighbours: int = 30,
    temperature: float = 0.02,
    seed: int = 0,
    search: Search = "torch",
) -> Memory:
    """The memory of training images.

    Of each image equally many patches are taken, as many as the size allows: those with the
    smallest u · Σ of the frequencies of the patch's classes, u uniform in 0..1, where a class's
    frequency is the number of the image's patches that have it. So rare classes are taken first.
    (The paper's sampling.) Patches without a labelled pixel are left out.

    Args:
        maps: [h, w, D] of each image.
        counts: [h, w, C] of each; see :func:`class_counts`.
        size: the most patches; one for each image if that is more.
        device: where it is kept.
        neighbours, temperature: k and T.
        seed: of u.
        search: what finds the neighbours, exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(1, size // len(maps))
    keys, shares = [], []
    for tokens, pixels in zip(maps, counts, strict=True):
        features, of_classes = tokens.flatten(0, 1), pixels.flatten(0, 1)
        there = (of_classes > 0).float()
        score = there @ there.sum(0) * torch.rand(len(there), generator=generator)
        labelled = of_classes.sum(1) > 0
        score[~labelled] = torch.inf
        taken = score.topk(min(most, int(labelled.sum())), largest=False).indices
        keys.append(features[taken.to(features.device)])
        shares.append(F.normalize(of_classes[taken], p=1, dim=1))
    unit = F.normalize(torch.cat(keys).float().to(device), dim=1)
    return Memory(
        unit,
        torch.cat(shares).to(device),
        neighbours,
        temperature,
        _indexed(unit) if search == "faiss" else None,
    )

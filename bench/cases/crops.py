"""GTSA's two losses over all pairs of a step: maps of two global and eight local crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature, products
from fastequi.functional import correspondence_loss, crop_align_loss
from fastequi.kernels.correspondence import correspondence_loss_ref
from fastequi.kernels.crop_align import Pooling, Regions, crop_align_loss_ref
from fastequi.kernels.roi_align import pooled, roi_weights

GLOBALS, LOCALS, PATCH = 14, 6, 16
KINDS = (  # student's maps, cells along a side, bins, (student's, teacher's view)
    ("globals", GLOBALS, 10, [(0, 1), (1, 0)]),
    ("locals", LOCALS, 4, [(crop, view) for crop in range(8) for view in (0, 1)]),
)
Pairs = list[tuple[int, int]]
Loss = Callable[[Tensor, Tensor, Regions, int, Pairs], Tensor]


def _boxes(pairs: int, B: int, cells: int, generator: torch.Generator) -> Tensor:
    """A third to the whole of each side."""
    extent = 1 / 3 + torch.rand(pairs, B, 2, generator=generator) * 2 / 3
    low = torch.rand(pairs, B, 2, generator=generator) * (1 - extent)
    return torch.cat([low, low + extent], -1) * cells * PATCH


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, C: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def maps(views: int, cells: int) -> Tensor:
            x = torch.randn(views, B, cells, cells, C, generator=generator)
            return x.to(device, DTYPES[dtype])

        inputs: dict[str, Any] = {"teacher": maps(2, GLOBALS)}
        for name, cells, _, pairs in KINDS:
            inputs[name] = maps(len({view for view, _ in pairs}), cells).requires_grad_()
            boxes = (
                _boxes(len(pairs), B, cells, generator),
                _boxes(len(pairs), B, GLOBALS, generator),
            )
            turns = torch.randint(4, (len(pairs), B), generator=generator)
            inputs[f"{name} where"] = Regions(*(x.to(device) for x in (*boxes, turns)))
        return inputs

    return make


def _crop(student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs) -> Tensor:
    options: dict[str, Any] = {"bins": bins, "scale": 1 / PATCH, "pairs": pairs}
    return crop_align_loss(student, teacher, *where, **options)


def _crop_eager(
    student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs
) -> Tensor:
    """All pairs at once: maps gathered, pooled, turned by an index, compared."""
    first, second = [s for s, _ in pairs], [t for _, t in pairs]
    wide = torch.promote_types(student.dtype, torch.float32)
    sides = []
    for maps, views, boxes in ((student, first, where.own), (teacher, second, where.other)):
        weights = roi_weights(boxes.flatten(0, 1), bins, 1 / PATCH, maps.shape[2:4])
        sides.append(pooled(maps[views].to(wide).flatten(0, 1), *weights))
    ours, theirs = sides
    places = torch.arange(bins * bins, device=student.device).view(bins, bins)
    order = torch.stack([places.rot90(k) for k in range(4)]).flatten(1)[where.turns.flatten()]
    theirs = theirs.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, theirs.shape[-1]))
    return -F.cosine_similarity(ours.flatten(1, 2), theirs, dim=-1).mean()


def _crop_each(student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs) -> Tensor:
    """One pair of images at a time, as the public code does."""
    losses = []
    for p, (s, t) in enumerate(pairs):
        for b in range(student.shape[1]):
            one = slice(b, b + 1)
            maps = student[s : s + 1, one], teacher[t : t + 1, one]
            part = Regions(*(x[p : p + 1, one] for x in where))
            losses.append(crop_align_loss_ref(*maps, part, Pooling([0, 0], bins, 1 / PATCH)))
    return torch.stack(losses).mean()


def _unit(maps: Tensor) -> Tensor:
    rows = maps.flatten(2, 3)
    wide = torch.promote_types(rows.dtype, torch.float32)
    return F.normalize(rows.to(wide), dim=-1).to(rows.dtype)


def _match(student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs) -> Tensor:
    rows = student.flatten(2, 3), teacher.flatten(2, 3)
    return correspondence_loss(*rows, top=rows[0].shape[2] // 2, pairs=pairs)


def _match_eager(
    student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs
) -> Tensor:
    """All pairs at once, every similarity stored."""
    rows = _unit(student), _unit(teacher)
    return correspondence_loss_ref(*rows, [v for p in pairs for v in p], rows[0].shape[2] // 2)


def _match_each(
    student: Tensor, teacher: Tensor, where: Regions, bins: int, pairs: Pairs
) -> Tensor:
    """One pair of images at a time, as the public code does."""
    ours, theirs = _unit(student), _unit(teacher)
    top, losses = ours.shape[2] // 2, []
    for s, t in pairs:
        for b in range(student.shape[1]):
            views = ours[s : s + 1, b : b + 1], theirs[t : t + 1, b : b + 1]
            losses.append(correspondence_loss_ref(*views, [0, 0], top))
    return torch.stack(losses).mean()


_MAPS = Signature(
    arguments=lambda inputs: (inputs,),
    leaves=lambda inputs: {name: inputs[name] for name, *_ in KINDS},
)


def _over_pairs(loss: Loss) -> Callable[[Inputs], Tensor]:
    """The mean over all pairs of global and of local crops, of a case's inputs."""

    def mean(inputs: Inputs) -> Tensor:
        total = []
        for name, _, bins, pairs in KINDS:
            maps = inputs[name], inputs["teacher"]
            total.append(len(pairs) * loss(*maps, inputs[f"{name} where"], bins, pairs))
        return torch.stack(total).sum() / sum(len(pairs) for *_, pairs in KINDS)

    return mean


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    cells = 2 * GLOBALS**2 + 8 * LOCALS**2
    per_cell = params["B"] * params["C"] * itemsize(params)
    return per_cell * (2 * GLOBALS**2 + cells * (2 if mode == "fwdbwd" else 1))


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """Every map read once, the students' gradients written."""
    maps = [inputs[name].detach() for name in ("teacher", "globals", "locals")]
    outs = [torch.empty_like(x) for x in maps[1:]] if mode == "fwdbwd" else []
    return lambda: ([x.sum() for x in maps], [out.fill_(1.0) for out in outs])


def _products(inputs: Inputs, mode: str) -> Callable[[], None]:
    """Of each pair all similarities, and the gradient's product with the teacher's rows."""
    factors = []
    for name, _, _, pairs in KINDS:
        maps = [inputs[key].detach().flatten(2, 3) for key in (name, "teacher")]
        ours, theirs = (maps[side][[pair[side] for pair in pairs]].flatten(0, 1) for side in (0, 1))
        factors.append((ours, theirs.mT))
        if mode == "fwdbwd":
            factors.append((ours.new_ones(*ours.shape[:2], theirs.shape[1]), theirs))
    return products(*factors)


def _matching(params: Mapping[str, Any], mode: str) -> float:
    """Similarities, from either side; the gradient's product with what was matched."""
    places = 2 * GLOBALS**4 + 16 * GLOBALS**2 * LOCALS**2
    return 2.0 * params["B"] * params["C"] * places * (2 if mode == "fwdbwd" else 1)


def _pooling(params: Mapping[str, Any], mode: str) -> float:
    """Four taps for every bin of either map; once more for the gradient."""
    bins = 2 * 100 + 16 * 16
    return 2.0 * params["B"] * params["C"] * bins * (8 + (4 if mode == "fwdbwd" else 0))


def _case(
    name: str, device: str, losses: Mapping[str, Loss], flops: Callable[..., float],
    sweep: tuple[Mapping[str, Any], ...],
) -> OpBench:  # fmt: skip
    def answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        wide = dict(inputs)
        for key in ("teacher", "globals", "locals"):
            wide[key] = inputs[key].detach().double().requires_grad_(key != "teacher")
        found = _MAPS.eager(_over_pairs(losses["ours"]))(wide, mode)()
        return {key: value.detach() for key, value in found.items()}

    backend = "triton" if device == "cuda" else "native"
    # rows rounded to bfloat16 match other places than float64's do, eager's as often as ours
    near = 0.1 if losses is MATCH and device == "cuda" else 3e-2
    eager, each, ours = (_over_pairs(losses[name]) for name in ("eager", "each", "ours"))
    return OpBench(
        name=name,
        device=device,
        title=f"GTSA's {name.removesuffix('_cpu')} loss, 18 pairs"
        + "; the floor is the bare matrix products" * (losses is MATCH),
        inputs=_inputs(device),
        providers={
            "eager": Provider(_MAPS.eager(eager), tolerance=near),
            "pair by pair": Provider(_MAPS.eager(each), tolerance=near),
            "compile": Provider(_MAPS.compiled(losses["eager"], _over_pairs), tolerance=near),
            "ours": Provider(_MAPS.ours(ours, backend), tolerance=near),
        },
        answer=answer,
        bytes_moved=_bytes,
        formula="maps of teacher and student read + (fwdbwd) the student's gradients written",
        flops=flops,
        floor=_products if losses is MATCH else _floor,
        sweep=sweep,
    )


CROP = {"eager": _crop_eager, "each": _crop_each, "ours": _crop}
MATCH = {"eager": _match_eager, "each": _match_each, "ours": _match}
ON_CPU = ({"B": 4, "C": 768, "dtype": "float32"}, {"B": 1, "C": 192, "dtype": "float32"})
ON_GPU = ({"B": 64, "C": 768, "dtype": "bfloat16"},)

CASES = (
    _case("crop_align_cpu", "cpu", CROP, _pooling, ON_CPU),
    _case("correspondence_cpu", "cpu", MATCH, _matching, ON_CPU),
    _case("crop_align", "cuda", CROP, _pooling, ON_GPU),
    _case("correspondence", "cuda", MATCH, _matching, ON_GPU),
)

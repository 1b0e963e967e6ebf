"""The encoder among the tensors of a file: which network, of which layout, without all else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastequi.weights import huggingface, meta, timm
from fastequi.weights.architecture import Asked, Stated
from fastequi.weights.files import some
from fastequi.weights.layouts import PATCHES, Layout, Network, nearest, networks
from fastequi.weights.report import Report

State = dict[str, Tensor]

LAYOUTS = (*huggingface.LAYOUTS, *meta.LAYOUTS, *timm.LAYOUTS)
"""In the order in which they are tried."""

# a network that is trained, and the average of it that evaluations use, by a part of the prefix
_TEACHER = re.compile(r"(^|[._])(teacher|ema|momentum_encoder|target_encoder)\.")
_STUDENT = re.compile(r"(^|[._])(student|model|base_encoder|encoder)\.")
_OTHERS = {  # what no layout here is of, by names of tensors
    r"(^|\.)layer1\.0\.conv1\.": "a ResNet",
    r"(^|\.)stages\.\d+\.": "a network in stages (ConvNeXt or the like)",
    r"relative_position_bias_table": "a network with relative positions (Swin, BEiT)",
    r"(^|\.)vision_model\.|visual\.(conv1|transformer)\.": "CLIP or SigLIP",
    r"(^|\.)features\.\d+\.": "a convolutional network",
}


def encoder_of(
    tensors: State, stated: Stated, asked: Asked, report: Report
) -> tuple[Layout, State, dict[str, Any]]:
    """The layout of a file's encoder, its tensors under our names, and facts from other tensors.

    Args:
        tensors: all of the file.
        stated: `network` is read of it.
        asked: how that option is called.
        report: is told what was chosen and left out.

    Raises:
        ValueError: there is no ViT of a known layout, or several; or tensors do not fit together.
    """
    network = _chosen(tensors, stated, asked, report)
    layout, within = network.layout, network.within(tensors)
    report.layout = layout.name
    facts = layout.facts(within) if layout.facts is not None else {}
    unused = _unused(layout, within)
    if network.prefix and (outside := [n for n in tensors if not n.startswith(network.prefix)]):
        report.unexpected.append(f"tensors outside of {network.prefix!r}: {some(outside)}")
    if unused:
        report.unexpected.append(f"tensors that no token depends on: {some(unused)}")
    own = dict(within)
    for name in unused:
        del own[name]
    try:
        state = layout.ours(own)
    except ValueError as error:
        what = f"{layout.name} (the nearest layout)"
        raise ValueError(f"not the tensors of {what}: {error}") from error
    zeros = [their for name in state for their in layout.zero(name) if their not in own]
    if zeros:
        report.missing.append(f"{some(zeros)}: zeros")
    types = {tensor.dtype for tensor in state.values()}
    if odd := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{odd[0]}: expected floats, got {state[odd[0]].dtype}")
    if types - {torch.float32}:
        named = ", ".join(sorted(str(t).removeprefix("torch.") for t in types - {torch.float32}))
        report.changed.append(f"{named} tensors as float32")
    return layout, {name: tensor.float() for name, tensor in state.items()}, facts


def _chosen(tensors: State, stated: Stated, asked: Asked, report: Report) -> Network:
    found = networks(tensors, LAYOUTS)
    if not found:
        raise ValueError(_unknown(tensors))
    if len(found) == 1 and stated.network is None:
        (network,) = found
        if network.prefix:
            report.chosen = f"read below the prefix {network.prefix!r}"
        return network
    teachers = [one for one in found if _TEACHER.search(one.prefix)]
    students = [one for one in found if one not in teachers and _STUDENT.search(one.prefix)]
    wanted = stated.network or "teacher"
    named = {"teacher": teachers, "student": students}[wanted]
    prefixes = some([repr(one.prefix) for one in found])
    if len(named) != 1:
        what = "one network" if stated.network is None else f"one {wanted} ({asked.network})"
        raise ValueError(f"expected {what}, got {len(found)} networks, below {prefixes}")
    (network,) = named
    other = "student" if wanted == "teacher" else "teacher"
    said = f"; {asked.network} {other} takes the other" if len(found) > 1 else ""
    report.chosen = f"the {wanted}, below {network.prefix!r}{said}"
    return network


def _unused(layout: Layout, state: State) -> list[str]:
    """Tensors that no token depends on, such as no registers; a linear classifier is kept."""
    linear = {"head.weight", "head.bias"}
    kept = linear if linear <= state.keys() and state["head.weight"].ndim == 2 else set()
    return [
        name
        for name, tensor in state.items()
        if (re.search(layout.unused, name) or not tensor.numel()) and name not in kept
    ]


def _unknown(names: Iterable[str]) -> str:
    names = list(names)
    kinds = [kind for how, kind in _OTHERS.items() if any(re.search(how, name) for name in names)]
    if kinds:
        return f"not the tensors of a ViT but of {kinds[0]}, which is not read here: {some(names)}"
    near = nearest(names, LAYOUTS) or timm.VIT
    told = f"no {near.spelled(PATCHES)}, but {some(names) or 'nothing'}"
    return f"not the tensors of a ViT of a known layout; nearest is {near.name}: {told}"

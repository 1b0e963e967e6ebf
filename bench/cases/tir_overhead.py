"""What TIR adds to a base: whole training steps of both, in the same run.

Forward, backward, clipping, AdamW and the teacher's average on a batch that lies in memory. The
base is the recipe without TIR: no channels of z_equi, no decoders, an untransformed second view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.opbench import Call, Inputs, Make, OpBench, Provider
from bench.recipes import scaled
from fastequi.build import build, build_optimizer
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.methods.method import Method
from fastequi.recipes import RECIPES

_WITH = "ours, with TIR"
_PROGRESS = 0.5  # past warm-ups and freezes
_PAPER = {"vicreg_vits16": 14.7, "ibot_vits16": 8.3, "dinov2_vitl16": 7.2}


def _config(recipe: str, batch: int, size: int) -> Config:
    config = RECIPES[recipe]()
    if size == 32:
        return scaled(config, batch)
    data = replace(config.data, batch_size=batch, image_size=size, source_size=size)
    return replace(config, data=data)


def _inputs(base: str, B: int, px: int) -> Inputs:
    """32: the small networks of `bench.recipes`; 224: the recipe's own."""
    return {
        name: _config(recipe, B, px) for name, recipe in (("base", base), (_WITH, f"tir_{base}"))
    }


def _prepared(config: Config, device: str) -> tuple[Method, Any, torch.dtype | None]:
    torch.manual_seed(0)
    method = build(config).to(device).train()
    method.before_step(_PROGRESS)
    batch = synthetic(config, config.data.batch_size, torch.device(device))
    return method, batch, config.train.autocast_dtype(torch.device(device))


def _provider(name: str, device: str) -> Make:
    def make(inputs: Inputs, mode: str) -> Call:
        config = inputs[name]
        method, batch, dtype = _prepared(config, device)
        batch = replace(
            batch,
            v1=batch.v1.to(dtype or torch.float32),
            local_crops=None
            if batch.local_crops is None
            else batch.local_crops.to(dtype or torch.float32),
        )
        optimizer = build_optimizer(method, config)
        params = [p for p in method.parameters() if p.requires_grad]

        def forward() -> dict[str, Tensor]:
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                return {f"loss, {name}": method(batch)["loss"]}

        def step() -> dict[str, Tensor]:
            out = forward()
            out[f"loss, {name}"].backward()
            nn.utils.clip_grad_norm_(params, config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(_PROGRESS)
            return out

        return step if mode == "fwdbwd" else forward

    return make


def _answer(device: str) -> Callable[..., dict[str, Tensor]]:
    """The first step's losses, in float32."""

    def answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        found = {}
        for name, config in inputs.items():
            method, batch, _ = _prepared(config, device)
            with torch.no_grad():
                found[f"loss, {name}"] = method(batch)["loss"].double()
        return found

    return answer


def _verdict(params: Mapping[str, Any], medians: Mapping[str, float]) -> str:
    if not {"base", _WITH} <= medians.keys():
        return ""
    added = 100 * (medians[_WITH] / medians["base"] - 1)
    paper = _PAPER.get(params["base"])
    published = f" (the paper: +{paper} %)" if paper else ""
    return f"TIR on {params['base']}: {added:+.1f} % of the base's step{published}"


_BASES = ("vicreg_vits16", "simclr_vits16", "dino_vits16", "ibot_vits16", "dinov2_vitl16")


def _case(name: str, device: str, *sweep: Mapping[str, Any]) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="a training step with TIR over one without",
        inputs=_inputs,
        # drop path and half precision move a loss by some per cent; a wrong one is far off
        providers={n: Provider(_provider(n, device), tolerance=0.2) for n in ("base", _WITH)},
        answer=_answer(device),
        bytes_moved=lambda params, mode: 0,
        formula="not counted",
        flops=lambda params, mode: 0.0,
        sweep=sweep,
        verdict=_verdict,
    )


CASES = (
    _case(
        "tir_overhead_cpu",
        "cpu",
        *({"base": base, "B": 64, "px": 32} for base in _BASES),
        *({"base": base, "B": 8, "px": 224} for base in ("vicreg_vits16", "ibot_vits16")),
    ),
    _case(
        "tir_overhead",
        "cuda",
        *({"base": base, "B": 32 if "vitl" in base else 128, "px": 224} for base in _BASES),
    ),
)

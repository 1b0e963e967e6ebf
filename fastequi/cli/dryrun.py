"""`pretrain --dry-run`: settings, parameter counts and one step's memory, without any data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastequi.build import build
from fastequi.config import Config, ModelConfig
from fastequi.data.channels import ALL
from fastequi.data.views.batch import Batch, Masks
from fastequi.data.views.masks import block_masks
from fastequi.data.views.overlaps import overlaps_of
from fastequi.data.views.parameters import crop_params, view_params
from fastequi.methods.base import Base
from fastequi.methods.method import Method
from fastequi.optim import param_groups
from fastequi.philox import Draws
from fastequi.runtime.devices import free_memory
from fastequi.weights.start import start
from fastequi.weights.teachers import attach, with_teacher

_MIB = 2**20


def dry_run(config: Config) -> None:
    """Prints a run's settings, sizes and memory; on a GPU it takes one real step at full batch.

    Raises:
        ValueError: data.channels=all, whose number only images say.
    """
    if config.data.channels == ALL:
        raise ValueError(
            "--data.channels: expected rgb or numbers such as 0,1,2 for --dry-run without --data, "
            "got all"
        )
    console = Console()
    config, teacher = with_teacher(config)
    print("\n".join(settings(config)))
    config = _normalised(config)
    method = build(config)
    attach(method, teacher, torch.device(config.train.resolved_device()))
    if config.init.path:
        print("\n".join(start(method, config)[1].lines()))
    if said := method.about_encoder():
        print(said)
    table = Table("part", "parameters", title="parameters")
    for name, part in _parts(method):
        if count(part):
            table.add_row(name.strip("_"), f"{count(part):,}")
    table.add_row("all", f"{count(method):,}", style="bold")
    console.print(table)
    beside = {} if teacher is None else {"the teacher's weights": _bytes(teacher)}
    table, fitting = memory_table(config, method, beside)
    console.print(table)
    if fitting:
        print(fitting)


def _normalised(config: Config) -> Config:
    """With a mean and std for each channel, in the place of those that a scan will measure."""
    data = config.data
    if len(data.mean) == len(data.std) == data.in_chans:
        return config
    each = (0.5,) * data.in_chans
    return replace(config, data=replace(data, mean=each, std=each))


_SECTION_OF_A_METHOD = {"tir": "tir", "distill": "tir", "gtsa": "gtsa", "rotnet": "rotnet"}


def settings(config: Config) -> list[str]:
    """A line for every section, "optim: kind=adamw, lr=0.0001, ..."; names as on the command line.

    Sections that nothing reads here are left out.
    """
    lines = [f"method={config.method}"]
    for field in fields(config):
        if field.name in ("init", "teacher") and not getattr(config, field.name).path:
            continue
        if field.name == "anchor" and config.anchor.kind == "none":
            continue
        if _SECTION_OF_A_METHOD.get(field.name, config.method) == config.method:
            lines += _section(field.name, getattr(config, field.name))
    return lines


def _section(name: str, section: Any) -> list[str]:
    """Its line, and those of the sections inside it; none for a plain value."""
    if not is_dataclass(section):
        return []
    shown = [f.name for f in fields(section)]
    if isinstance(section, ModelConfig) and section.is_foreign:
        shown = ["name", "attention"]  # the others are of ViTs of this library
    values = {key.replace("_", "-"): getattr(section, key) for key in shown}
    plain = [f"{key}={value}" for key, value in values.items() if not is_dataclass(value)]
    inside = [line for key, value in values.items() for line in _section(f"{name}.{key}", value)]
    return [f"{name}: {', '.join(plain)}", *inside]


def _parts(method: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A method's children; of a base, the base's children instead."""
    for name, part in method.named_children():
        if isinstance(part, Base):
            yield from part.named_children()
        else:
            yield name, part


def memory_table(
    config: Config, method: Method, beside: Mapping[str, int] = MappingProxyType({})
) -> tuple[Table, str]:
    """One step's memory at the config's batch size, and what to change where it is not free.

    Weights, gradients and the optimiser's moments follow from the parameters. Saved activations
    (every distinct storage that autograd keeps) are measured at two small batches and extrapolated
    linearly to the batch size, so the table needs neither the memory nor the time of a real step.
    On a GPU one real step is taken as well, and the allocator's peak is printed.

    Args:
        config: the run.
        method: its networks.
        beside: bytes of what lies in memory as well, by name.

    Returns:
        The table, and what to change, or "".
    """
    device = torch.device(config.train.resolved_device())
    free = free_memory(device)
    method = method.to(device)
    weights = _bytes(method)
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    low, high = (saved_bytes(config, method, synthetic(config, n, device)) for n in (4, 8))
    per_image = (high - low) / 4
    batch = config.data.batch_size
    activations = low + per_image * (batch - 4)
    table = Table("what", "MiB", title=f"memory of one step, {batch} images, {device.type}")
    rows = {
        "weights": weights,
        **beside,
        "gradients": trained,
        _STATES[config.optim.kind]: _state_bytes(config, method),
        f"saved activations ({per_image / _MIB:.2f} an image)": activations,
    }
    for name, size in rows.items():
        table.add_row(name, f"{size / _MIB:,.1f}")
    table.add_row("sum", f"{sum(rows.values()) / _MIB:,.1f}", style="bold")
    if device.type == "cuda":
        table.add_row("peak of one real step", _real_peak(config, method, device))
    needed = sum(rows.values())
    if needed <= free:
        return table, ""
    step = config.data.samples_per_decode  # of which a batch is a multiple
    most = max(batch - math.ceil((needed - free) / per_image), 0) // step * step
    return table, (
        f"--data.batch-size: expected at most {most} on this machine ({free / 1e9:.1f} GB free), "
        f"got {batch}; --train.accumulate takes several batches a step"
    )


def _bytes(network: nn.Module) -> int:
    """Of its parameters."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


_STATES = {"adamw": "AdamW moments", "muon": "Muon and AdamW moments", "sgd": "SGD momentum"}


def _state_bytes(config: Config, method: Method) -> int:
    """Of the optimiser's moments: two in AdamW, one in Muon and in SGD with momentum."""
    optim = config.optim
    groups = param_groups(
        method,
        0.0,
        method.backbone,
        muon=optim.kind == "muon",
        muon_encoder=optim.muon_encoder,
    )
    number = 2 if optim.kind != "sgd" else int(optim.momentum > 0)
    return sum(
        (1 if group["orthogonal"] else number) * p.numel() * p.element_size()
        for group in groups
        for p in group["params"]
    )


def synthetic(config: Config, n: int, device: torch.device) -> Batch:
    """A batch of noise in the shapes and types of a real one; u of other channels is 16-bit."""
    data, generator = config.data, torch.Generator().manual_seed(0)
    size, source = data.image_size, data.source_size
    channels, kind = data.in_chans, torch.uint8 if data.is_rgb else torch.uint16
    v1 = torch.randn(n, channels, size, size, generator=generator)
    top, shape = torch.iinfo(kind).max + 1, (n, source, source, channels)
    u = torch.randint(top, shape, generator=generator, dtype=torch.int32).to(kind)
    ids = torch.arange(n)
    draws = Draws.of(0, 0, ids.numpy())
    params = config.path.build(channels).sample(draws, size)
    local_crops = masks = overlaps = None
    if data.local_crops:
        side = data.local_crop_size
        crops = (data.local_crops, n, channels, side, side)
        local_crops = torch.randn(crops, generator=generator).to(device)
    if data.mask_share:
        grid = size // config.model.patch_size
        drawn = [
            block_masks(draws, grid, data.mask_share, data.mask_ratio, view) for view in ("v1", "u")
        ]
        masks = Masks.of(torch.from_numpy(np.stack(drawn))).to(lambda x: x.to(device))
    if data.overlaps:
        sizes = np.tile((size, size), (n, 1))
        views = view_params(data, draws, sizes)
        drawn_crops = crop_params(data, draws, sizes, views=views)
        overlaps = overlaps_of(data, *views, drawn_crops).to(lambda x: x.to(device))
    return Batch(
        v1=v1.to(device),
        u=u.permute(0, 3, 1, 2).to(device),
        path=params.to(device),
        sample_ids=ids,
        epoch=0,
        local_crops=local_crops,
        masks=masks,
        overlaps=overlaps,
    )


def saved_bytes(config: Config, method: nn.Module, batch: Batch) -> int:
    """Bytes of the distinct storages that one forward keeps for its backward, weights excluded."""
    known = {p.untyped_storage().data_ptr() for p in method.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = config.train.autocast_dtype(batch.v1.device)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast(batch.v1.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        loss = method(batch)["loss"]
    del loss
    return sum(seen.values())


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _real_peak(config: Config, method: Method, device: torch.device) -> str:
    """In MiB, or that there is not as much."""
    from fastequi.build import build_optimizer

    optimizer = build_optimizer(method, config)
    dtype = config.train.autocast_dtype(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        batch = synthetic(config, config.data.batch_size, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    return f"{torch.cuda.max_memory_allocated(device) / _MIB:,.1f}"

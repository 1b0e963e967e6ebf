"""The run's processes: one, or as many as torchrun started, and their collectives.

torchrun sets RANK, WORLD_SIZE and LOCAL_RANK. Gradients and losses go through NCCL on GPUs and Gloo
on CPUs; values that only hosts exchange go through Gloo in any case, so that no GPU waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from fastequi.models.batchnorm import share_statistics
from fastequi.models.transformer import Block
from fastequi.runtime.preempt import leave_with_launcher
from fastequi.sharded import is_fsdp

_SYNC_BUFFERS = (  # its name before and after PyTorch 2.13
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)
_TIMEOUT = timedelta(minutes=10)  # for a process that never arrives; one that exits is detected


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank, size: its number, and the number of processes.
        local_rank: its number on this machine, also of its GPU.
        hosts: Gloo group of all processes, for CPU tensors; None for one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def group(self) -> ProcessGroup | None:
        """Process group of all devices; None for one process."""
        return dist.group.WORLD if self.size > 1 else None

    def device(self, name: str) -> torch.device:
        """This process's device: "cpu", "cuda", or of a single process "cuda:1"."""
        several = name == "cuda" and self.size > 1
        return torch.device(name, self.local_rank) if several else torch.device(name)

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """The elementwise maximum over all processes."""
        if self.hosts is None:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.hosts)
        return [float(value) for value in shared.tolist()]

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.all_reduce_max([0.0])

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes with a finite value; left out if no process has one.

        All processes pass the same names in the same order.
        """
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        every = torch.stack(self.all_gather(own))
        kept = torch.where(every.isfinite(), every, torch.nan).nanmean(0).tolist()
        return {name: mean for name, mean in zip(values, kept, strict=True) if mean == mean}

    def union(self, values: Iterable[int]) -> set[int]:
        """The union over all processes."""
        mine = sorted(values)
        longest = int(self.all_reduce_max([len(mine)])[0])
        padded = torch.tensor(mine + [-1] * (longest - len(mine)), dtype=torch.int64)
        return {value for part in self.all_gather(padded) for value in part.tolist()} - {-1}

    def all_gather(self, value: Tensor) -> list[Tensor]:
        """A CPU tensor from every process, by rank."""
        if self.hosts is None:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value, group=self.hosts)
        return parts


@contextmanager
def started(device: str) -> Iterator[Processes]:
    """The processes of this run, within the block.

    Args:
        device: "cpu" or "cuda"; "cuda:1" for a single process.

    Raises:
        ValueError: torchrun's variables do not fit together, or there are fewer GPUs.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield Processes()
        return
    if ":" in device:
        raise ValueError(
            f"train.device: expected cuda under torchrun, whose processes take a GPU each, got "
            f"{device}"
        )
    rank, local = _number("RANK", -1), _number("LOCAL_RANK", -1)
    if not (0 <= rank < size and 0 <= local <= rank):
        raise ValueError(
            f"WORLD_SIZE={size}: expected RANK and LOCAL_RANK beside it, as torchrun sets them, "
            f"got {rank} and {local}"
        )
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK={local}: this machine has {torch.cuda.device_count()} GPUs; start "
                f"torchrun with at most as many processes"
            )
        torch.cuda.set_device(local)
    leave_with_launcher()
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        hosts = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        yield Processes(rank, size, local, hosts)
    finally:
        dist.destroy_process_group()


def replicated(method: nn.Module, processes: Processes, unused: bool) -> nn.Module:
    """The method in DistributedDataParallel: gradients are means over all processes.

    BatchNorm statistics are taken over all of them as well, from now on.

    Args:
        unused: `Method.find_unused_parameters`.
    """
    if processes.size == 1 or is_fsdp(method):
        return method
    assert processes.group is not None
    share_statistics(method, processes.group)
    device = next(method.parameters()).device
    # buffers are equal already: batch statistics and centres cover all processes' rows
    alike: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(
        method,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
        **alike,
    )


def shard(method: nn.Module, processes: Processes) -> None:
    """Shards weights, gradients and moments over all processes: FSDP2, in place.

    Every transformer block is gathered before its forward; the rest when the method is called. Call
    it before the optimiser is made. BatchNorm statistics are taken over all processes.
    """
    if processes.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    assert processes.group is not None
    share_statistics(method, processes.group)
    with torch.no_grad():
        for param in method.parameters():  # FSDP2 cannot shard channels-last filters
            param.data = param.data.contiguous()
    kind = next(method.parameters()).device.type
    mesh = init_device_mesh(kind, (processes.size,))
    for part in method.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    fully_shard(method, mesh=mesh)


@contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """Wraps a batch's forward and backward; gradients are synchronised after the last one only."""
    if is_fsdp(model):
        model.set_requires_gradient_sync(last)
    if last or not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        yield


def leave_groups(method: nn.Module) -> None:
    """Resets the losses' process groups after a run, since the groups end with it."""
    for part in method.modules():
        if getattr(part, "group", None) is not None:
            part.group = None  # type: ignore[assignment]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {text!r}") from None

"""Files of FSDP's sharded tensors (DTensor); checkpoints are made by `fastequi.runtime.checkpoint`.

torch.distributed.checkpoint writes and reads them. Its own format contains a pickle; its Hugging
Face format is safetensors, each file with its shards' places in the header. Any number of processes
can read what others saved.

torch.distributed.checkpoint and tensor are imported where they are used, since they take seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether processes hold parts of it; none is before DTensor was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fsdp(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether its parameters are sharded; none are before FSDP was imported."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process calls it and writes its shards into an existing folder.

    Raises:
        OSError: a process cannot write its own; says of each why.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except dcp.CheckpointException as error:  # no Exception
        each = {rank: failure[0] for rank, failure in error.failures.items()}
        raise OSError(f"{folder}: cannot be written by processes {each}") from error


def load(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a folder by name; every process calls it.

    Args:
        like: tensors that are sharded here are returned sharded alike, if shapes agree.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.HuggingFaceStorageReader(str(folder))
    found = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        own, kind = like.get(name), about.properties.dtype
        if own is not None and is_sharded(own) and own.shape == about.size:
            found[name] = torch.empty_like(own, dtype=kind)
        else:
            found[name] = torch.empty(about.size, dtype=kind)
    dcp.load(found, storage_reader=reader)
    return found


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered; others unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have, sharded as `like` is; unchanged if that is not sharded."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)

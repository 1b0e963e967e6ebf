"""Files of FSDP's sharded tensors (DTensor); checkpoints are made by `fastequi.runtime.checkpoint`.

torch.distributed.checkpoint writes and reads them. Its own format contains a pickle; its Hugging
Face format is safetensors, each file with its shards' places in the header. Any number of processes
can read what others saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process calls it and writes its shards into an existing folder."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)


def load(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a folder by name; every process calls it.

    Args:
        like: tensors that are sharded here are returned sharded alike, if shapes agree.
    """
    reader = HuggingFaceStorageReader(str(folder))
    found = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        own, kind = like.get(name), about.properties.dtype
        if isinstance(own, DTensor) and own.shape == about.size:
            found[name] = torch.empty_like(own, dtype=kind)
        else:
            found[name] = torch.empty(about.size, dtype=kind)
    dcp.load(found, storage_reader=reader)
    return found


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered; others unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have, sharded as `like` is; unchanged if that is not sharded."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)

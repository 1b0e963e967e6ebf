"""Tensors that lie in parts on several processes, in files: torch.distributed.checkpoint's.

Its own files hold a pickle, its Hugging Face ones do not: safetensors, each with what it is a part
of in its header. What was saved by some processes is read by any number of them, or by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every process writes its parts into a folder that is there; all have to call."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)


def load(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a folder by name; where there are several processes, all have to call.

    Args:
        like: those that lie in parts come as such parts, if their shape is the same.
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

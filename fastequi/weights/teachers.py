"""The frozen teacher of a run: an encoder from a file of weights, and what the run keeps of it.

Its weights are no part of the run's checkpoints. A run keeps the file's path and hash in its config
(`config.teacher`), and needs the same file when it is resumed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from fastequi.config import Config
from fastequi.methods.distillation import Distillation, FrozenTeacher
from fastequi.methods.method import Method
from fastequi.methods.tir import TIR
from fastequi.weights.architecture import Asked, Stated
from fastequi.weights.reader import load_weights

logger = logging.getLogger(__name__)

TEACHER = Asked(
    *("--teacher.path", "--teacher.num-heads", "--teacher.img-size", "--teacher.network"),
    "only --data.channels",
)


def with_teacher(config: Config) -> tuple[Config, FrozenTeacher | None]:
    """The teacher that a config asks for, if it does, and the config with what was found of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none is named, it cannot be read, or is not the one that the run began with.
    """
    if config.method != "tir" or config.tir.base != "distillation":
        return config, None
    asked = config.teacher
    if not asked.path:
        raise ValueError(
            "--teacher.path: expected a file or folder of a ViT's weights for "
            "tir.base=distillation, got none"
        )
    sides = (asked.img_size[0], asked.img_size[-1]) if asked.img_size else None
    stated = Stated(asked.num_heads, sides, asked.network, in_chans=config.data.in_chans)
    weights = load_weights(Path(asked.path), stated, insist=False, asked=TEACHER)
    sha256 = weights.sha256()
    if asked.sha256 and asked.sha256 != sha256:
        raise ValueError(
            f"--teacher.path: expected the file of teacher.sha256 {asked.sha256}, got "
            f"{asked.path} of {sha256}"
        )
    encoder = weights.make()
    encoder.load_state_dict(weights.state)
    logger.info("teacher: %s", "; ".join(weights.report.lines()))
    found = replace(
        asked,
        sha256=sha256,
        embed_dim=encoder.embed_dim,
        class_token=encoder.cls_token is not None,
    )
    data = config.data
    teacher = FrozenTeacher(encoder, weights.mean, weights.std, data.mean, data.std)
    return replace(config, teacher=found), teacher


def attach(method: Method, teacher: FrozenTeacher | None, device: torch.device) -> None:
    """Gives a method that was built with :func:`with_teacher`'s config its teacher."""
    if teacher is None:
        return
    assert isinstance(method, TIR)
    assert isinstance(method.base, Distillation)
    method.base.attach(teacher.to(device))

"""`pretrain --init`: the settings of a model that starts from weights are those of the weights."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastequi.config import Config, InitConfig

if TYPE_CHECKING:
    from fastequi.weights.reader import Weights


def start_of(words: list[str]) -> tuple[InitConfig, int | None, str | None]:
    """What the words of a command line, which are known to be options, say of the start.

    Returns:
        The start, with an absolute path, --model.num-heads and --data.channels.

    Raises:
        ValueError: --init and --init.path name different files.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--init.path", type=Path)
    for name in ("sha256", "network"):
        parser.add_argument(f"--init.{name}")
    for name in ("img-size", "channels"):
        parser.add_argument(f"--init.{name}", type=int, nargs="*")
    parser.add_argument("--init.patch-size", type=_number)
    parser.add_argument("--model.num-heads", type=_number)
    parser.add_argument("--model.name")
    parser.add_argument("--data.channels")
    flags = [_dashed(word) if word.startswith("--") else word for word in words]
    found, _ = parser.parse_known_args(flags)
    given = {name: value for name, value in vars(found).items() if value not in (None, [])}
    if given.get("model.num_heads", 1) < 1:
        raise ValueError(f"--model.num-heads: expected >= 1, got {given['model.num_heads']}")
    paths = {given[name] for name in ("init", "init.path") if name in given}
    if len(paths) > 1:
        said, got = given["init.path"], given["init"]
        raise ValueError(f"--init: expected {said}, as --init.path says, got {got}")
    if paths and ":" in (name := given.get("model.name", "")):
        raise ValueError(
            f"--init: it fills ViTs of this library, and --model.name {name} begins as its package "
            f"makes it; a function of yours can return it with its weights, --model.name "
            f"your_module:your_function"
        )
    values: dict[str, Any] = {"path": os.path.abspath(paths.pop()) if paths else ""}
    for field in fields(InitConfig):
        if (value := given.get(f"init.{field.name}")) is not None and field.name != "path":
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return InitConfig(**values), given.get("model.num_heads"), given.get("data.channels")


def words_of(weights: Weights, in_chans: int | None) -> list[str]:
    """The options that weights stand for; any that follow them go before.

    Args:
        weights: that a run starts from.
        in_chans: of its images; None: not known yet, and then the normalisation is measured.
    """
    from fastequi.weights.start import settings_of

    words: list[str] = []
    for name, value in settings_of(weights).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--model.{flag}" if value else f"--model.no-{flag}")
        else:
            words += [f"--model.{flag}", str(value)]
    if weights.says_normalisation and in_chans is not None:
        words += ["--data.mean", *map(str, weights.mean), "--data.std", *map(str, weights.std)]
    return words


def started(config: Config, init: InitConfig, weights: Weights) -> Config:
    """The config of a run that starts from weights; refuses other settings of the model."""
    from fastequi.weights.start import expect_settings

    expect_settings(config.model, weights)
    return replace(config, init=replace(init, sha256=weights.sha256()))


def _number(text: str) -> int | None:
    return None if text == "None" else int(text)


def _dashed(word: str) -> str:
    """An option with dashes; its value, if it follows "=", as it is."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value

"""`--model.name` of another package's network: a recipe's settings of its own ViT do not apply."""

from __future__ import annotations

import logging
from dataclasses import fields

from fastequi.cli.parsing import given, is_given
from fastequi.config import Config, ModelConfig

logger = logging.getLogger(__name__)


def for_network(words: list[str], recipe: Config) -> list[str]:
    """The words of a command line, with the defaults of what a recipe says of its own network.

    Words that name a ViT, or no network, are returned as they are. A setting that is given is left
    to the checks of the config, which refuse it.

    Args:
        words: after the command and the recipe's name.
        recipe: whose settings are the defaults.
    """
    name = given("--model.name", words)
    if ":" not in name:
        return words
    own, added, left_out = ModelConfig(name), list[str](), list[str]()
    for field in fields(ModelConfig):
        said, default = (getattr(one, field.name) for one in (recipe.model, own))
        flag = field.name.replace("_", "-")
        stated = is_given(f"--model.{flag}", words) or is_given(f"--model.no-{flag}", words)
        if field.name == "name" or said == default or stated:
            continue
        if isinstance(default, bool):
            added.append(f"--model.{flag}" if default else f"--model.no-{flag}")
        else:
            added += [f"--model.{flag}", str(default)]
        left_out.append(f"{field.name} {said}")
    if left_out:
        what = "settings of the recipe's ViT do not apply to model.name=%s: %s"
        logger.info(what, name, ", ".join(left_out))
    return [*added, *words]

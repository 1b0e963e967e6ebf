"""What stands beside a file's tensors: in its metadata, or in a JSON file in the same folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastequi.config import Config
from fastequi.runtime import checkpoint
from fastequi.weights.files import Contents
from fastequi.weights.hub_config import Floats, HubConfig, normalisation

VALUES = "fastequi_values"
"""Of an export's config.json: the run's `data.channels` and `data.value_range`."""


@dataclass(frozen=True)
class Beside:
    """A description of a network.

    Attributes:
        where: the file that it is from, "" if there is none.
        run: a run's settings.
        hub: otherwise, what timm's or transformers' say.
        found: the JSON object of `hub`.
    """

    where: str = ""
    run: Config | None = None
    hub: HubConfig = HubConfig()  # noqa: RUF009
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> tuple[str, str]:
        """`data.channels` and `data.value_range` of the images; ("", "") if they are not said."""
        if self.run is not None:
            return self.run.data.channels, self.run.data.value_range
        said = self.found.get(VALUES)
        if not isinstance(said, dict):
            return "", ""
        return str(said.get("channels", "")), str(said.get("value_range", ""))

    @property
    def says_channels(self) -> bool:
        """Whether it is known of which channels the images are."""
        return self.values[0] != ""


def described(contents: Contents) -> Beside:
    """The description beside a file's tensors.

    Raises:
        ValueError: names the file and the field that is wrong.
    """
    if checkpoint.SETTINGS in contents.metadata:
        where = f"{contents.files[0]}'s metadata"
        return Beside(where, read_config(where, contents.metadata[checkpoint.SETTINGS]))
    beside = contents.beside("config.json")
    if beside is None:
        return Beside()
    file, found = beside
    if "method" in found or "system" in found:
        return Beside(str(file), read_config(file, file.read_text(encoding="utf-8")))
    try:
        return Beside(str(file), None, HubConfig.of(found), found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def normalised(
    contents: Contents, beside: Beside, chans: int
) -> tuple[Floats | None, Floats | None]:
    """Mean and std of a network of `chans` channels that is no run's; None: nothing says them.

    Raises:
        ValueError: names the file and the field that is wrong.
    """
    preprocessor = contents.beside("preprocessor_config.json")
    file, found = preprocessor or (beside.where, None)
    try:
        return normalisation(beside.found, found, chans)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_config(where: str | Path, text: str) -> Config:
    """A run's settings from JSON.

    Args:
        where: the text is from, for messages.
        text: of a config.json.

    Raises:
        ValueError: says where they are from and what is wrong with them.
    """
    try:
        return Config.from_json(text)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{where}: not a run's settings: {error}") from error

"""Settings as a run's config.json and back; types are checked, earlier versions understood."""

from __future__ import annotations

import dataclasses
import json
import logging
import types
import typing
from typing import Any, Literal, TypeVar

from fastequi.data.channels import DTYPE
from fastequi.data.config import DataConfig

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")

# of config.json; 1 made views of images whose channels are kept by DALI alone, and until 2 values
# were cut off at data.value_range after images were resized
_FORMAT = 3
_CUT_BEFORE = (
    "data.value_range: this run is of an earlier version, in which values beyond the range were "
    "cut off after images were resized, and not before: views of images that have such values are "
    "not quite the same now"
)
_EARLIER = (
    "written by an earlier version, whose settings had other names: `system` is now `method`; the "
    "section `method` is `tir` and its padding_mode is path.padding_mode; data.crops, crop_size, "
    "turns are local_crops, local_crop_size, rotations; gtsa.turn_dims is rotation_dims; "
    "rotnet.all_turns is all_rotations; optim.reference is base_batch; train.average_momentum, "
    "save_later are ema_momentum, async_save"
)


def written(settings: Any, recipe: str = "") -> str:
    """The JSON of a dataclass of sections, and the recipe that they come from."""
    named = {"recipe": recipe} if recipe else {}
    about = {**named, "format": _FORMAT}
    return json.dumps({**about, **dataclasses.asdict(settings)}, indent=1) + "\n"


def read(cls: type[Settings], text: str) -> Settings:
    """What :func:`written` wrote, in this version or an earlier one.

    Raises:
        ValueError: it is no JSON, has unknown fields or values of other types, or is of a version
            whose settings had other names.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {text.strip()[:80]!r}")
    if "system" in found:
        raise ValueError(_EARLIER)
    if isinstance(found.get("data"), dict):
        earlier = {"views": "dali", "order": "table"}  # what there was before these settings
        found["data"] = {**earlier, **found["data"]}
        kept = found["data"].get("channels", DataConfig.channels) != DataConfig.channels
        if kept and found.get("format", 1) < 2:
            found["data"]["views"] = "dali"  # whatever it says
        ranged = found["data"].get("value_range", DTYPE) != DTYPE
        if kept and ranged and found.get("format", 1) < _FORMAT:
            logger.warning(_CUT_BEFORE)
    about = "recipe", "format"
    made: Settings = _from_dict(cls, {name: found[name] for name in found if name not in about})
    return made


def recipe_of(text: str) -> str:
    """The recipe that a config.json names; "" if it names none."""
    return str(json.loads(text).get("recipe", ""))


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain JSON; sections become their dataclasses, lists become tuples."""
    unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__}: unknown fields {sorted(unknown)}")
    given: dict[str, Any] = {}
    defaults, hints = cls(), typing.get_type_hints(cls)
    for name, value in values.items():
        current = getattr(defaults, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            given[name] = _from_dict(type(current), value)
        else:
            _expect_type(f"{cls.__name__}.{name}", value, hints[name])
            given[name] = tuple(value) if isinstance(value, list) else value
    return cls(**given)


def _expect_type(name: str, value: object, hint: Any) -> None:
    """Raises ValueError if a JSON value does not fit a field's type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed: set[type] = set()
    for one in typing.get_args(hint) if union else (hint,):
        origin, args = typing.get_origin(one), typing.get_args(one)
        if origin is tuple and isinstance(value, list):
            for item in value:
                _expect_type(f"{name}[]", item, args[0])
        if origin is tuple:
            allowed |= {list, str} if args[0] is str else {list}  # text stands for one
        elif origin is Literal:
            allowed |= {type(arg) for arg in args}
        else:
            allowed |= {int, float} if one is float else {one}
    if type(value) not in allowed:
        words = " or ".join(word for kind, word in _JSON.items() if kind in allowed)
        raise ValueError(f"{name}: expected {words or 'an object'}, got {json.dumps(value)[:80]}")


_JSON = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    type(None): "null",
}

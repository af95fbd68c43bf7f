"""Fields of the configuration classes: strict type checks, and which fields may change when a run is resumed.

gin hands over whatever a file says (`steps = 'a'` reaches the dataclass), so every configuration class checks itself.
A field is part of the run's *identity* unless it is declared with `operational`: changing it on resume is refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

_OPERATIONAL = "operational"
# For a field that needs `dataclasses.field` for its default.
OPERATIONAL = {_OPERATIONAL: True}


def operational(default: Any) -> Any:
    """A dataclass field that a resumed run may change: it alters how the run is carried out, not what it computes."""
    return dataclasses.field(default=default, metadata=OPERATIONAL)


def is_operational(field: dataclasses.Field) -> bool:
    """Whether the field was declared with `operational`."""
    return bool(field.metadata.get(_OPERATIONAL))


def check_types(config: Any) -> None:
    """Checks every field of a dataclass instance against its annotation.

    Known annotations: bool, int, float, str, None, unions of these, `dict[str, X]` and `tuple[X, ...]`. A bool is not
    an int here; an int passes for a float; a list passes for a tuple.

    Raises:
      TypeError: names the class, the field, the type wanted and the value found.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not matches(value, hints[field.name]):
            raise TypeError(
                f"{type(config).__name__}.{field.name} must be {field.type}, found {value!r} ({type(value).__name__})"
            )


def matches(value: Any, hint: Any) -> bool:
    """Whether a value fits a type annotation of the kinds that `check_types` knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, h) for h in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(
            matches(k, arguments[0]) and matches(v, arguments[1]) for k, v in value.items()
        )
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(matches(v, arguments[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return isinstance(value, hint)

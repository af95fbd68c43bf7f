"""`FilterConfig` on the command line: `--filter.NAME=VALUE`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from deltalm_jax.data.filters.config import FilterConfig
from deltalm_jax.errors import UserError

PREFIX = "--filter."


class FilterFlagError(UserError, ValueError):
    """A `--filter.…` flag that names no filter, or gives it an impossible value."""


def parse_filters(flags: Iterable[str]) -> FilterConfig:
    """The settings that flags make.

    Args:
      flags: `--filter.NAME=VALUE`; VALUE is a number, True or False, None, a bare word, or several with commas between.

    Raises:
      FilterFlagError: an unknown name, one that comes twice, or a value that it cannot have.
    """
    fields = {field.name: field for field in dataclasses.fields(FilterConfig)}
    values: dict[str, Any] = {}
    for flag in flags:
        name, equals, text = flag.removeprefix(PREFIX).partition("=")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1, 0.5)
            raise FilterFlagError(
                f"{flag}: there is no filter {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}")
            )
        if not equals:
            raise FilterFlagError(f"{flag}: write {PREFIX}{name}=VALUE")
        if name in values:
            raise FilterFlagError(f"{flag}: {name} is given twice")
        values[name] = _value(text, str(fields[name].type))
    try:
        return FilterConfig(**values)
    except (TypeError, ValueError) as error:
        raise FilterFlagError(str(error).replace("FilterConfig.", PREFIX)) from error


def filter_flags(config: FilterConfig) -> list[str]:
    """The flags that make these settings."""
    return [f"{PREFIX}{name}={value!r}" for name, value in config.changed().items()]


def _value(text: str, hint: str) -> Any:
    """A Python value; where the field (with this annotation) takes strings, also what is none, such as a path."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text.split(",") if hint.startswith("tuple[str") else text
    return (value,) if hint.startswith("tuple") and not isinstance(value, (tuple, list)) else value

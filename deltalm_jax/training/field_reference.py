"""The page of all configuration fields, docs/configuration.md, from the dataclasses themselves.

Name, type, default and whether the field may change on resume come from the dataclass, the description from the section
"Attributes" of its docstring. So the page says what the code does, and a field that nobody has described has no page:

    python -m deltalm_jax.training.field_reference > docs/configuration.md

The page is kept in the repository, for it is read there too and a changed default is to be seen in a change's diff; a test
compares it with what this module writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Iterable
from typing import Any

from deltalm_jax.fields import is_operational
from deltalm_jax.training.gin_files import CLASSES

_ENTRY = re.compile(r"  (?P<names>\w+(?:, \w+)*): (?P<text>.*)")
_HEAD = """\
# Configuration reference

Every field that a gin file or the command line can set. A file says `ModelConfig.dropout_rate = 0.0`, the command line
`--gin.ModelConfig.dropout_rate=0.0`; `--dry_run` shows the value of each field and where it came from.

The defaults are those of the classes; the files in `configs/` bind what is different. A field that is *identity* stays as it
is for the whole run: where a resumed run has another value it is refused, with the difference, unless
`--allow_config_change=NAME` accepts it. An *operational* one may change whenever the run is started again. Filters work
while text is prepared: a run that names others than its data was prepared with is refused, one that names none takes any.

This page is written by `python -m deltalm_jax.training.field_reference`, from the classes and their docstrings.
"""


@dataclasses.dataclass(frozen=True)
class Field:
    """What the page says of one field.

    Attributes:
      name: "Class.field".
      type: the annotation.
      default: as a gin file would say it.
      operational: whether it may change on resume.
      description: Markdown.
    """

    name: str
    type: str
    default: str
    operational: bool
    description: str


def fields(cls: type) -> list[Field]:
    """All fields of a configuration class, in its order.

    Raises:
      ValueError: the docstring does not describe a field, or describes one that is not there.
    """
    described = descriptions(inspect.getdoc(cls) or "")
    declared = dataclasses.fields(cls)
    names = [field.name for field in declared]
    for name in names:
        if not described.get(name):
            raise ValueError(
                f"{cls.__name__}.{name} is not described in the docstring of {cls.__module__}: under Attributes"
            )
    if unknown := described.keys() - set(names):
        raise ValueError(
            f"the docstring of {cls.__name__} describes {', '.join(sorted(unknown))}, which is no field of it"
        )
    return [
        Field(
            f"{cls.__name__}.{field.name}",
            str(field.type),
            _default(field),
            is_operational(field),
            described[field.name],
        )
        for field in declared
    ]


def descriptions(docstring: str) -> dict[str, str]:
    """{attribute: Markdown} of the section "Attributes" of a docstring without its indentation.

    One entry may describe several attributes, separated by commas. What is indented further than an entry's own lines is a
    list, an item for each line at that indentation.
    """
    found: dict[str, list[str]] = {}
    paragraphs: list[str] = []
    for line in _section(docstring, "Attributes"):
        indentation = len(line) - len(line.lstrip())
        if entry := _ENTRY.fullmatch(line):
            paragraphs = [entry["text"]]
            found.update(dict.fromkeys(entry["names"].split(", "), paragraphs))
        elif not paragraphs:
            raise ValueError(f"the section Attributes has a line that belongs to no attribute: {line.strip()!r}")
        elif indentation == 6:
            paragraphs.append(f"- {line.strip()}")
        elif indentation == 4 and paragraphs[-1].startswith("- "):
            paragraphs.append(line.strip())
        else:
            paragraphs[-1] += f" {line.strip()}"
    return {name: _joined(paragraphs) for name, paragraphs in found.items()}


def _section(docstring: str, title: str) -> list[str]:
    """The lines below a title that are indented; empty ones are left out."""
    lines = docstring.split("\n")
    if f"{title}:" not in lines:
        return []
    below = lines[lines.index(f"{title}:") + 1 :]
    end = next((i for i, line in enumerate(below) if line and not line.startswith(" ")), len(below))
    return [line.rstrip() for line in below[:end] if line.strip()]


def _joined(paragraphs: list[str]) -> str:
    text = _escaped(paragraphs[0])
    for before, paragraph in itertools.pairwise(paragraphs):
        in_list = before.startswith("- ") and paragraph.startswith("- ")
        text += ("\n" if in_list else "\n\n") + _escaped(paragraph)
    return text.strip()


def _escaped(text: str) -> str:
    """Text in which, outside of backquotes, nothing is markup."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for i, part in enumerate(parts))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "none: it must be said"
        value = field.default_factory()
    return _gin(value)


def _gin(value: Any) -> str:
    """A value as a gin file has it: texts in double quotation marks."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_gin(key)}: {_gin(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_gin, value)) + "]"
    return repr(value)


def page(classes: Iterable[type] = CLASSES.values()) -> str:
    """The whole page, Markdown: a section for each class, in it a section for each field."""
    parts = [_HEAD]
    for cls in classes:
        about = (inspect.getdoc(cls) or "").partition("\nAttributes:")[0]
        paragraphs = [_escaped(" ".join(paragraph.split("\n"))) for paragraph in about.strip().split("\n\n")]
        parts.append(f"## {cls.__name__}\n\n" + "\n\n".join(paragraphs) + "\n")
        for field in fields(cls):
            kind = "operational" if field.operational else "identity"
            parts.append(
                f"### {field.name}\n\n`{field.type}`, default `{field.default}`, {kind}: {field.description}\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())

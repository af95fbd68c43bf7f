"""Reads gin files and command-line bindings into a `Config`, remembering where each value came from.

gin's own parser reads the grammar. The values are bound here, not in gin's global registry: so a configuration is a
return value, two can live in one process, and each value knows its file and line. What gin would let pass silently is
an error: a name bound twice in one file, scopes, references, an import outside the project, a misspelt field, a macro
that nothing uses. And nothing that a file says is run, but for the imports that are allowed: values are literals, and an
include names a file in the working directory, beside the file or shipped.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import pathlib
import re
import tokenize
from collections.abc import Iterable, Sequence
from typing import Any

from gin import config_parser

import configs
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.parallel.mesh import MeshConfig
from deltalm_jax.training.config import Config, LossConfig, OptimizerConfig, TrainConfig
from deltalm_jax.training.contrast import ContrastConfig
from deltalm_jax.training.data_config import DataConfig

# By field of `Config`.
SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "loss": LossConfig,
    "mesh": MeshConfig,
    "train": TrainConfig,
    "filters": FilterConfig,
    "contrast": ContrastConfig,
}
CLASSES: dict[str, type] = {c.__name__: c for c in SECTIONS.values()}
ALLOWED_IMPORTS = ("deltalm_jax", "tasks")
_COMMAND_LINE = "command line"
_SHIPPED = pathlib.Path(configs.__path__[0])


class ConfigError(UserError, ValueError):
    """Something in a gin file or a `--gin.…` flag is wrong; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class _Macro:
    name: str


class _Delegate(config_parser.ParserDelegate):
    def __init__(self) -> None:
        self.referred: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        raise ConfigError(f"references such as @{scoped_configurable_name} are not used here: write the value itself")

    def macro(self, macro_name: str) -> Any:
        self.referred.add(macro_name)
        return _Macro(macro_name)


@dataclasses.dataclass
class _Bindings:
    """What has been read so far; later layers overwrite earlier ones."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    macros: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    referred: set[str] = dataclasses.field(default_factory=set)


def load(gin_files: Sequence[str], overrides: Iterable[str] = (), allow_imports: Sequence[str] = ()) -> Config:
    """Reads gin files in order, then overrides, and builds every configuration class.

    Args:
      gin_files: bare names of shipped files ("pretrain_tiny.gin") or paths.
      overrides: "Class.field=value" strings; a bare word is taken as a string where the field is one.
      allow_imports: modules (with their submodules) that gin files may import besides the project's own.

    Raises:
      ConfigError: a file is missing, or a statement is wrong; names file and line.
    """
    if not gin_files:
        raise ConfigError("no configuration: pass --gin_file=pretrain_tiny.gin or a path of your own")
    bindings = _Bindings()
    allowed = (*ALLOWED_IMPORTS, *allow_imports)
    for name in gin_files:
        _read_file(find(name), bindings, allowed)
    for override in overrides:
        _bind_override(override, bindings)
    for name in sorted(bindings.macros.keys() - bindings.referred):
        raise ConfigError(
            f"{bindings.origins[name]}: {name!r} is used nowhere: a macro is used as %{name}, and a field is bound as "
            f"Class.{name}"
        )
    sections = {name: _build(name, cls, bindings) for name, cls in CLASSES.items()}
    # Whose code would run.
    modules = {
        "DataConfig.task_module": sections["DataConfig"].task_module,
        "FilterConfig.language_identifier": (sections["FilterConfig"].language_identifier or "").partition(":")[0],
    }
    for key, module in modules.items():
        if module:
            _check_allowed(module, allowed, f"{bindings.origins[key]}: {key}")
    origins = {
        f"{name}.{field.name}": bindings.origins.get(f"{name}.{field.name}", "default")
        for name, cls in CLASSES.items()
        for field in dataclasses.fields(cls)
    }
    try:
        return Config(
            pathlib.Path(gin_files[-1]).stem, **{f: sections[c.__name__] for f, c in SECTIONS.items()}, origins=origins
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def find(name: str, beside: pathlib.Path | None = None) -> pathlib.Path:
    """The file meant by `name`: a path as it stands, beside the including file, or a file shipped in `configs/`."""
    candidates = [pathlib.Path(name), *([beside / name] if beside else []), _SHIPPED / name]
    for path in candidates:
        if path.is_file():
            return path
    if pathlib.Path(name).is_dir():
        raise ConfigError(f"gin file {name!r} is a folder: name one of the files in it")
    known = sorted(p.name for p in _SHIPPED.glob("*.gin"))
    hint = difflib.get_close_matches(pathlib.Path(name).name, known, 1)
    raise ConfigError(
        f"gin file {name!r} not found; looked at {', '.join(str(c) for c in dict.fromkeys(candidates))}. "
        + (f"Did you mean {hint[0]}? " if hint else "")
        + f"Shipped: {', '.join(known)}"
    )


def _find_included(name: str, beside: pathlib.Path, where: str) -> pathlib.Path:
    """The file that an include names: a configuration from elsewhere has no business with other files than its own."""
    if "://" in name:
        raise ConfigError(f"{where}: include {name!r}: nothing is fetched from a network; copy the file")
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
        raise ConfigError(
            f"{where}: include {name!r}: name a file in the working directory, beside this one or shipped, without '..' "
            f"(or pass both: --gin_file={name} --gin_file={where.rpartition(':')[0]})"
        )
    try:
        return find(name, beside)
    except ConfigError as error:
        raise ConfigError(f"{where}: include: {error}") from None


def _read_file(path: pathlib.Path, bindings: _Bindings, allowed: Sequence[str], including: bool = True) -> None:
    seen: dict[str, int] = {}
    first = True
    label = path.name if path.parent == _SHIPPED else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{label}: cannot be read as UTF-8 text: {error}") from None
    for statement in _statements(text, label, bindings):
        where = f"{label}:{statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            if not first or not including:
                raise ConfigError(f"{where}: one include at most, as the file's first statement, and not nested")
            _read_file(_find_included(statement.filename, path.parent, where), bindings, allowed, including=False)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement.module, allowed, where)
        elif isinstance(statement, config_parser.BindingStatement):
            key = _key(statement, where)
            if key in seen:
                raise ConfigError(f"{where}: {key} is bound twice in this file, first in line {seen[key]}")
            seen[key] = statement.location.line_num
            _bind(key, statement.value, bindings, where)
        first = False


def _statements(text: str, name: str, bindings: _Bindings) -> list[Any]:
    """All statements of a gin text. Raises ConfigError with the line of a syntax error."""
    delegate = _Delegate()
    try:
        statements = list(config_parser.ConfigParser(io.StringIO(text), delegate))
        bindings.referred |= delegate.referred
        return statements
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise ConfigError(f"{name}{line}: {_in_words(error.msg)}: {(error.text or '').strip()!r}") from None
    except tokenize.TokenError:  # no SyntaxError, although it is one; its line is the last, where nothing is wrong
        raise ConfigError(f"{name}: a bracket or a text is opened and never closed") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _in_words(message: str) -> str:
    """gin's account of a syntax error, without the parser's own objects in it."""
    if token := re.search("Failed to parse token '(.*)'", message, re.DOTALL):
        return f"{token[1]} is no value (a text needs quotes)"
    return "a value is missing, or none that can be read" if "Unable to parse value" in message else message


def _import(module: str, allowed: Sequence[str], where: str) -> None:
    _check_allowed(module, allowed, where)
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import {module!r}: {error}") from error


def _check_allowed(module: str, allowed: Sequence[str], where: str) -> None:
    if not any(module == a or module.startswith(f"{a}.") for a in allowed):
        raise ConfigError(
            f"{where}: a configuration may import only {', '.join(allowed)}; importing runs code, so if you trust "
            f"{module!r}, add --allow_import={module.split('.')[0]}"
        )


def _key(statement: config_parser.BindingStatement, where: str) -> str:
    if statement.scope:
        raise ConfigError(f"{where}: scopes ({statement.scope}/…) are not used here")
    if not statement.arg_name:
        return statement.selector  # a macro
    return f"{statement.selector}.{statement.arg_name}"


def _bind(key: str, value: Any, bindings: _Bindings, where: str) -> None:
    if "." not in key:
        bindings.macros[key] = value
        bindings.origins[key] = where
        return
    _field(key, where)
    bindings.values[key] = value
    bindings.origins[key] = where


def _field(key: str, where: str) -> dataclasses.Field:
    """The dataclass field that "Class.field" names, or an error with the nearest names."""
    class_name, _, field_name = key.rpartition(".")
    if class_name not in CLASSES:
        raise ConfigError(f"{where}: unknown name {class_name!r}{_did_you_mean(class_name, CLASSES)}")
    fields = {f.name: f for f in dataclasses.fields(CLASSES[class_name])}
    if field_name not in fields:
        raise ConfigError(f"{where}: {class_name} has no field {field_name!r}{_did_you_mean(field_name, fields)}")
    return fields[field_name]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _bind_override(override: str, bindings: _Bindings) -> None:
    where = f"{_COMMAND_LINE} (--gin.{override})"
    key, equals, text = override.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"{where}: write --gin.Class.field=value")
    field = _field(key, where)
    try:
        statements = _statements(f"{key} = {text}\n", where, bindings)
        value = statements[0].value
    except (ConfigError, IndexError):
        if "str" not in str(field.type):
            raise ConfigError(f"{where}: {text!r} is not a value of type {field.type}") from None
        value = text  # a bare word: shells eat quotes
    if isinstance(value, _Macro) and value.name not in bindings.macros:
        raise ConfigError(f"{where}: unknown macro %{value.name}")
    bindings.values[key] = value
    bindings.origins[key] = _COMMAND_LINE


def _build(name: str, cls: type, bindings: _Bindings) -> Any:
    arguments = {
        key.rpartition(".")[2]: _resolve(value, bindings, key)
        for key, value in bindings.values.items()
        if key.rpartition(".")[0] == name
    }
    for field in dataclasses.fields(cls):
        if isinstance(arguments.get(field.name), list) and "tuple" in str(field.type):
            arguments[field.name] = tuple(arguments[field.name])
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        blamed = [k for k in arguments if f"{name}.{k}" in str(error)]
        where = ", ".join(dict.fromkeys(bindings.origins[f"{name}.{k}"] for k in blamed))
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _resolve(value: Any, bindings: _Bindings, key: str) -> Any:
    """Replaces macros, also inside containers."""
    if isinstance(value, _Macro):
        if value.name not in bindings.macros:
            raise ConfigError(f"{bindings.origins[key]}: unknown macro %{value.name}")
        return _resolve(bindings.macros[value.name], bindings, key)
    if isinstance(value, dict):
        return {k: _resolve(v, bindings, key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(v, bindings, key) for v in value)
    return value

"""Where the data of a downstream task may be: files under their published names, or a data set that TFDS has prepared."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data.readers import CorpusError
from deltalm_jax.paths import as_path

_PACKED = ("", ".gz", ".xz")


@dataclasses.dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
      source: what the model reads.
      target: what it learns to write; the first of the references.
      references: all that a validation or test set has; empty: only the target.
    """

    source: str
    target: str
    references: tuple[str, ...] = ()


Read = Callable[[Counter[str]], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Place:
    """One place where the data of a split may be.

    Attributes:
      looked_at: what is looked for there: paths, or patterns of names; for the message if there is nothing.
      find: a function that reads what is there, or None if it is not there. It looks when it is called.
    """

    looked_at: tuple[str, ...]
    find: Callable[[], Read | None]


def packed_file(path: Path) -> Path | None:
    """A file, or that file as `.gz` or `.xz`; None where there is none of them.

    Raises:
      CorpusError: more than one of them.
    """
    found = [candidate for ending in _PACKED if (candidate := path.with_name(path.name + ending)).is_file()]
    if len(found) > 1:
        raise CorpusError(f"{found[0]} and {found[1]} are the same text twice. Keep one of them.")
    return found[0] if found else None


def files(paths: Sequence[Path], read: Callable[[list[Path], Counter[str]], Iterator[Row]]) -> Place:
    """The place of files that are all needed, each plain, `.gz` or `.xz`.

    Args:
      paths: their plain names.
      read: a reader of the files that were found, in that order.
    """

    def find() -> Read | None:
        found = [file for path in paths if (file := packed_file(path)) is not None]
        if found and len(found) < len(paths):
            missing = [str(path) for path in paths if packed_file(path) is None]
            raise CorpusError(
                f"Expected {len(paths)} files that belong together, found {', '.join(map(str, found))} without "
                f"{', '.join(missing)}. Put the others beside, or take these away."
            )
        return (lambda counts: read(found, counts)) if found else None

    return Place(tuple(f"{path} (or .gz, .xz)" for path in paths), find)


Examples = Callable[[], Iterator[Any]]


def tfds_examples(
    folders: Sequence[Path], name: str, split: str, read: Callable[[Examples, str, Counter[str]], Iterator[Row]]
) -> Place:
    """The place of a data set that TFDS has prepared. Nothing is prepared or downloaded here.

    Args:
      folders: TFDS's data folders to look in.
      name: builder and configuration, `wmt18_translate/cs-en`; the newest version is taken.
      split: TFDS's name of the split.
      read: (function that gives the examples from the start, where they are from, counts) → rows. Examples are dicts of
        NumPy values.
    """

    def find() -> Read | None:
        for folder in folders:
            versions = sorted((folder / name).glob("*/dataset_info.json"), key=_version)
            if versions:
                where = versions[-1].parent
                examples = functools.partial(_tfds_examples, where, split)
                return lambda counts: read(examples, f"{where}, {split}", counts)
        return None

    return Place(tuple(f"{folder / name}/VERSION/dataset_info.json (of TFDS)" for folder in folders), find)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.parent.name.split(".") if part.isdecimal())


def _tfds_examples(folder: Path, split: str) -> Iterator[Any]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        if split not in builder.info.splits:
            raise ValueError(f"it has the splits {', '.join(builder.info.splits)}, not {split!r}")
        yield from tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"{folder}: expected a data set of TFDS's with the split {split!r}, found: {error}"
        ) from error


def tfds_folders(data_dir: str | Path) -> tuple[Path, ...]:
    """Where prepared data sets of TFDS are looked for: below a data folder, then where TFDS itself keeps them."""
    return as_path(data_dir) / "tensorflow_datasets", Path.home() / "tensorflow_datasets"

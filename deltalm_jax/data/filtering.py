"""The filters in a preparation: what is checked and made ready once, and what is done to each block.

Filtering.start     on the machine that starts the preparation: test sets are read
Filtering.passes    work over parts of the text and ranges of keys, where duplicates are looked for
BlockFilter         in the workers: a block's items → those that stay
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from deltalm_jax.data.blocks import Digest, Input, TextSource, read_blocks
from deltalm_jax.data.deduplication import (
    Comparison,
    Repeated,
    Segment,
    find_repeated,
    load_repeated,
    plan_comparisons,
    write_keys,
)
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.apply import apply_filters
from deltalm_jax.data.filters.characters import script_pattern
from deltalm_jax.data.filters.counting import Sieve
from deltalm_jax.data.filters.documents import without_paragraphs
from deltalm_jax.data.filters.languages import load_identifier
from deltalm_jax.data.filters.test_sets import read_test_sets
from deltalm_jax.data.partial import LOOKED_THROUGH
from deltalm_jax.data.shards import digest_file, write_atomically
from deltalm_jax.errors import UserError
from deltalm_jax.paths import as_path, make_folder

_FOLDER = ".filters"  # no task's name begins with a dot
_TEST_NGRAMS = "test_ngrams.npy"


class FilterError(UserError, ValueError):
    """Settings of filters that cannot be applied to these tasks."""


@dataclasses.dataclass(frozen=True)
class Filtering:
    """What workers need to know to filter; travels to them. Made by `Filtering.start`.

    Attributes:
      inputs: the tasks, from `take_margins`.
      config: the settings.
      folder: for working files, seen by all workers.
      validation_fraction, block_bytes, blocks_per_shard: as in `preparation.prepare`.
      digests: of the texts that are compared with each other, by unit and language.
      known: whether those stay the same while the texts do; else they are for this run alone.
    """

    inputs: tuple[TextSource, ...]
    config: FilterConfig
    folder: Path
    validation_fraction: float
    block_bytes: int
    blocks_per_shard: int
    digests: Mapping[tuple[str, str], str]
    known: Mapping[tuple[str, str], bool]

    @classmethod
    def start(
        cls,
        inputs: Sequence[TextSource],
        config: FilterConfig,
        folder: Path,
        validation_fraction: float,
        block_bytes: int,
        blocks_per_shard: int,
    ) -> Filtering:
        """Makes ready, in the process that starts the preparation, what every worker reads.

        Args:
          folder: an existing one, which all workers see; what is needed goes into a folder in it.

        Raises:
          CorpusError: from the test sets.
        """
        groups: dict[tuple[str, str], list[Any]] = {}
        for index, source in enumerate(inputs):
            if config.deduplicates(source.unit):
                parts = [[s, p, source.identity(s, p)] for s in source.splits for p in range(source.parts(s))]
                # Files of keys go by the place in the inputs, which another language moves.
                groups.setdefault((source.unit, source.language), []).append([index, source.task, parts])
        known = {g: all(part[-1] is not None for *_, parts in tasks for part in parts) for g, tasks in groups.items()}
        digests = {
            group: xxhash.xxh3_64_hexdigest(json.dumps(tasks).encode()) if known[group] else uuid.uuid4().hex[:16]
            for group, tasks in groups.items()
        }
        filtering = cls(
            tuple(inputs), config, folder / _FOLDER, validation_fraction, block_bytes, blocks_per_shard, digests, known
        )
        if config.test_sets or filtering.comparisons:
            make_folder(filtering.folder)
        if config.test_sets:
            content = io.BytesIO()
            np.save(content, read_test_sets(config.test_sets, config.test_set_ngram))
            write_atomically(filtering.folder / _TEST_NGRAMS, content.getvalue())
        for comparison in filtering.comparisons:
            comparison.make_folders()
        return filtering

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        """Comparisons for duplicates; usually none."""
        return plan_comparisons(self.inputs, self.config, self.folder, self.digests) if self.digests else []

    def comparisons_of(self, index: int, steps: int | None = None) -> list[Comparison]:
        """Those that a task takes part in, in order; only those of the first steps, if so asked."""
        return [c for c in self.comparisons if index in c.members and (steps is None or c.step < steps)]

    def test_ngrams(self) -> np.ndarray | None:
        """n-grams of the test sets, if there are any."""
        if not self.config.test_sets:
            return None
        with (self.folder / _TEST_NGRAMS).open("rb") as file:
            return np.load(file)

    def identity(self, index: int, split: str, part: int) -> str | None:
        """`TextSource.identity` of a part; where texts are compared, of all that have a say in what stays of it."""
        source = self.inputs[index]
        own, group = source.identity(split, part), (source.unit, source.language)
        if own is None or group not in self.digests:
            return own
        return xxhash.xxh3_128_hexdigest(f"{own} {self.digests[group]}".encode()) if self.known[group] else None

    def passes(self) -> Iterator[tuple[Callable[[Any], None], list[Any]]]:
        """What is to be done before the preparation itself, in this order: a function, and what it is to be called with.

        The calls of one pass may be made by any workers, in any order, and again.
        """
        for step in sorted({comparison.step for comparison in self.comparisons}):
            numbers = [number for number, comparison in enumerate(self.comparisons) if comparison.step == step]
            yield (
                functools.partial(_write_part_keys, self),
                [
                    (number, index, split, part)
                    for number in numbers
                    for index in self.comparisons[number].members
                    for split in self.inputs[index].splits
                    for part in range(self.inputs[index].parts(split))
                ],
            )
            ranges = [(number, range_) for number in numbers for range_ in range(self.comparisons[number].ranges)]
            yield functools.partial(_find_repeated, self), ranges

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class BlockFilter:
    """Filters blocks, one after the other; holds what it needs for the segment at hand."""

    def __init__(self, filtering: Filtering, steps: int | None = None):
        """Reads what `Filtering.start` made ready.

        Args:
          filtering: what there is to know.
          steps: how many steps of comparisons have found their duplicates; default: all.
        """
        self._filtering, self._steps = filtering, steps
        self._test_ngrams = filtering.test_ngrams()
        self._load = functools.lru_cache(maxsize=4)(load_repeated)

    def apply(
        self, index: int, split: str, part: int, number: int, items: Sequence[Any], counts: Counter[str]
    ) -> list[Any]:
        """The items of a block that stay.

        Args:
          index: of the task.
          split, part, number: of the block, as `read_blocks` gives it.
          items: documents or pairs.
          counts: changed in place; see `filters.counting`.

        Raises:
          ValueError: from the filters; or the text is not the one that was compared.
        """
        source, config = self._filtering.inputs[index], self._filtering.config
        script = config.script_of(source.language, source.groups)
        items = apply_filters(items, source.unit, source.language, script, config, self._test_ngrams, counts)
        segment = Segment(index, split, part, number // self._filtering.blocks_per_shard)
        for comparison in self._filtering.comparisons_of(index, self._steps):
            items = _drop_repeated(items, comparison, self._load(comparison, segment), number, counts)
        return items


def check_filters(inputs: Sequence[TextSource], config: FilterConfig) -> None:
    """Raises where the settings cannot be applied to the tasks, before any work is done.

    Raises:
      FilterError: a task whose script is asked for and not known; no corpus with margins where a margin is asked for.
      IdentifierError: the function that identifies languages is not there.
    """
    for source in inputs:
        if config.needs_script(source.unit):
            script = config.script_of(source.language, source.groups)
            if script is None:
                raise FilterError(
                    f"task {source.task}: the filters look at scripts, and the script of {source.language!r} is not known. "
                    'Say it where the task is added (groups={"script": "Latn"}) or in `scripts`, or leave those filters out.'
                )
            try:
                script_pattern(script)
            except ValueError as error:
                raise FilterError(f"task {source.task}: {error}") from error
    pairs = [source for source in inputs if source.unit == "pairs"]
    if config.pair_min_margin is not None and pairs and not any(map(_has_margins, pairs)):
        raise FilterError(
            f"pair_min_margin is {config.pair_min_margin}, but none of the corpora of pairs has margins, as CCAligned has"
        )
    if config.language_identifier:
        load_identifier(config.language_identifier)


def take_margins(inputs: Sequence[TextSource], config: FilterConfig) -> tuple[TextSource, ...]:
    """The inputs, with readers that drop pairs of too small a margin where they can and the settings say so."""
    if config.pair_min_margin is None:
        return tuple(inputs)
    options = {"min_margin": config.pair_min_margin}
    return tuple(
        dataclasses.replace(source, options=options) if isinstance(source, Input) and _has_margins(source) else source
        for source in inputs
    )


def describe(config: FilterConfig) -> dict[str, Any]:
    """The settings as a manifest has them: fields that differ from their defaults; of test sets, names and digests.

    Raises:
      FilterError: a test set is not there.
    """
    described = config.changed()
    if config.test_sets:
        try:
            described["test_sets"] = [[as_path(p).name, digest_file(as_path(p))] for p in config.test_sets]
        except OSError as error:
            raise FilterError(f"test_sets: {error.filename}: {error.strerror}") from error
    return described


def identifier_digest(config: FilterConfig) -> str | None:
    """Digest of the module that identifies languages: finished work is not gone on with when it has changed."""
    if not config.language_identifier:
        return None
    load_identifier(config.language_identifier)
    module = sys.modules[config.language_identifier.partition(":")[0]]
    return digest_file(Path(module.__file__)) if module.__file__ else None


def _has_margins(source: TextSource) -> bool:
    return isinstance(source, Input) and "min_margin" in inspect.signature(source.reader).parameters


def _write_part_keys(filtering: Filtering, element: tuple[int, int, str, int]) -> None:
    """Writes the keys of all segments of a part for a comparison."""
    number, index, split, part = element
    comparison = filtering.comparisons[number]
    done = comparison.folder / f"{LOOKED_THROUGH}{index}-{split}-{part}"
    if done.exists():  # by a run that was ended
        return
    block_filter = BlockFilter(filtering, comparison.step)
    blocks: dict[str, dict[int, list[Any]]] = {"train": {}, "validation": {}}

    def close(target: str) -> None:
        if blocks[target]:
            segment = Segment(index, target, part, min(blocks[target]) // filtering.blocks_per_shard)
            write_keys(comparison, segment, blocks[target], filtering.config)
            blocks[target] = {}

    source, counts = filtering.inputs[index], Counter[str]()
    read = read_blocks(source, split, part, filtering.validation_fraction, filtering.block_bytes, counts, Digest())
    for target, block, items in read:
        if block % filtering.blocks_per_shard == 0:
            close(target)
        blocks[target][block] = block_filter.apply(index, target, part, block, items, counts)
    close("train")
    close("validation")
    write_atomically(done, b"")


def _find_repeated(filtering: Filtering, element: tuple[int, int]) -> None:
    number, range_ = element
    find_repeated(filtering.comparisons[number], range_)


def _drop_repeated(
    items: Sequence[Any], comparison: Comparison, repeated: Repeated, number: int, counts: Counter[str]
) -> list[Any]:
    """A block's items without those that a comparison drops."""
    places = repeated.of_block(number, items)
    paragraphs = comparison.kind == "paragraphs"
    texts = [text for item in items for text in item] if paragraphs else items
    sieve = Sieve(np.array([len(t) if paragraphs else sum(map(len, t)) for t in texts], np.int64), counts)
    bad_N = np.zeros(len(texts), bool)
    bad_N[places] = True
    sieve.drop(f"deduplicate_{comparison.kind}", bad_N)
    return without_paragraphs(items, sieve, counts) if paragraphs else sieve.keep_from(items)

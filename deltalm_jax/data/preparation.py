"""Preparation: corpora to prepared data, once, as an Apache Beam pipeline.

    parts of the text ─ Reshuffle ─ read, tokenise, cut or pack, write shards (`prepare_part`) ─ records ─ manifest

The folder grows under the name OUTPUT.partial; the manifest is written last and the folder then renamed, so OUTPUT is
complete or absent. Its bytes depend on inputs, vocabulary and settings alone: parts are made of the files, blocks are keyed
by (task, split, part, number) and a shard is a run of consecutive blocks of a part, so neither the runner nor the number of
workers leaves a trace. What a run has finished when it ends before its time, the next one goes on with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from deltalm_jax.data import output_folder, pipeline
from deltalm_jax.data.blocks import CHANGED, UNITS, ExampleSettings, Input, TextSource
from deltalm_jax.data.chunks import FORMAT, SPLITS, VOCABULARY_MODEL, PreparedData, write_manifest
from deltalm_jax.data.filtering import Filtering, check_filters, describe, identifier_digest, take_margins
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.counting import is_reason, manifest_entries
from deltalm_jax.data.finished import Finished, PartResult, ShardResult
from deltalm_jax.data.golden import golden_digest
from deltalm_jax.data.local_runner import WorkerDiedError, run_local
from deltalm_jax.data.other_runners import run_elsewhere
from deltalm_jax.data.packing import MIN_CHUNK_LENGTH, MIN_CHUNK_LENGTH_OF_PAIRS
from deltalm_jax.data.partial import PreparationError, open_partial
from deltalm_jax.data.prepare_part import PartKey, Plan
from deltalm_jax.data.shards import MAX_ID, write_atomically
from deltalm_jax.data.versions import code_digest, versions
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.paths import absolute, as_path

__all__ = ["Input", "PreparationError", "Prepared", "Progress", "prepare"]

# 32 blocks of 4 MiB of text are about 30 M ids, a shard of about 100 MB.
BLOCK_BYTES = 4 << 20
BLOCKS_PER_SHARD = 32
LOCAL_RUNNERS = ("local", "FnApiRunner")
# Below this much input (as it lies on disk) starting worker processes takes longer than the work.
_BYTES_WORTH_A_PROCESS = 16 << 20
_PROGRESS_SECONDS = 0.5
# Looking at the progress may take this share of the time.
_PROGRESS_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: parts of the text in all and finished, shards written."""

    parts: int
    parts_finished: int
    shards_written: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` returns: the data, opened; and whether this call made them (False: they were there already)."""

    data: PreparedData
    made: bool


def prepare(
    inputs: Sequence[TextSource],
    vocabulary: Vocabulary,
    output: str | Path,
    *,
    mixture: str,
    languages: Sequence[str] | None = None,
    chunk_length: int | Mapping[str, int] = 512,
    examples: ExampleSettings | None = None,
    validation_fraction: float = 0.001,
    filters: FilterConfig | None = None,
    block_bytes: int = BLOCK_BYTES,
    blocks_per_shard: int = BLOCKS_PER_SHARD,
    runner: str = "local",
    num_workers: int | None = None,
    beam_options: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Reads, tokenises and cuts the text of all tasks and writes the chunks to a folder.

    Args:
      inputs: one entry per task; their order is the tasks' order in the manifest.
      vocabulary: of the ids; its model is copied into the folder.
      output: the folder to make: a path that all workers and this machine see, or the URL of one in an object store.
      mixture: name kept in the manifest.
      languages: what was asked for, kept in the manifest; None: all of the mixture's.
      chunk_length: ids in a full chunk; one number, or one for each objective. Not of examples.
      examples: of examples, in its place.
      validation_fraction: share of texts held out by hash where a task has no validation file.
      filters: what to leave out; default: nothing.
      block_bytes: UTF-8 bytes of text that are worked on as one piece. Chunks do not cross blocks.
      blocks_per_shard: consecutive blocks that make one file.
      runner: "local", or the name of another Beam runner. ("DirectRunner" tries to download a Go binary; "local" is
        Beam's Python runner and needs nothing.)
      num_workers: processes of the local runner; default: one for small inputs, else one per core.
      beam_options: flags for Beam (`--project=…`), for other runners.
      overwrite: replace a prepared folder that is already there, or unfinished work of another kind.
      on_progress: called about twice a second from another thread.

    Returns:
      The data, opened. Where `output` was made from the same files, vocabulary and settings before, nothing is done.

    Raises:
      PreparationError: inputs that are missing, empty or damaged; an output that is there and differs, or is being
        written by another process; settings that cannot be; a failure of a worker. Nothing is left of the output then, but
        of what was finished, in OUTPUT.partial, for the next run.
      FilterError, IdentifierError, CorpusError: filters that these tasks cannot have, or whose function or test sets are not
        there.
    """
    output = absolute(as_path(output))
    examples = examples or ExampleSettings()
    lengths = _lengths_by_objective(inputs, chunk_length, examples)
    _check_settings(inputs, vocabulary, validation_fraction, block_bytes, blocks_per_shard)
    _check_inputs(inputs)
    filters = FilterConfig() if filters is None else filters
    check_filters(inputs, filters)
    inputs = take_margins(inputs, filters)
    settings: dict[str, Any] = {
        "validation_fraction": validation_fraction,
        "block_bytes": block_bytes,
        "blocks_per_shard": blocks_per_shard,
    }
    if any(source.unit == "examples" for source in inputs):
        settings["examples"] = dataclasses.asdict(examples)
    if described := describe(filters):
        settings["filters"] = described
    header: dict[str, Any] = {
        "mixture": mixture,
        "languages": None if languages is None else sorted(languages),
        "chunk_lengths": lengths,
        "vocabulary": {**vocabulary.describe(), "golden_encodings": golden_digest(vocabulary)},
        "settings": settings,
        "versions": versions(),
    }
    if existing := output_folder.existing(output, header, inputs, overwrite):
        return Prepared(existing, made=False)
    local = runner in LOCAL_RUNNERS
    workers = num_workers or _default_workers(inputs) if local else None
    # Names of mixture and languages, and the tasks, are left out: a run for more goes on with what is there of some.
    code = {"code": code_digest(), "language_identifier": identifier_digest(filters)}
    contents = {"format": FORMAT, **code, **{k: v for k, v in header.items() if k not in ("mixture", "languages")}}
    with open_partial(output, contents, overwrite) as partial:
        filtering = Filtering.start(
            inputs, filters, partial.records, validation_fraction, block_bytes, blocks_per_shard
        )
        plan = Plan(
            tuple(inputs), partial.folder, partial.records, header["vocabulary"], lengths, examples,
            validation_fraction, block_bytes, blocks_per_shard, filtering,
            driver=os.getpid() if local and workers != 1 else None,
        )  # fmt: skip
        write_atomically(partial.folder / VOCABULARY_MODEL, vocabulary.model)
        keys = plan.keys()
        with _reporting(partial.finished, len(keys), on_progress):
            for function, elements in filtering.passes():
                calls = functools.partial(
                    pipeline.build_calls, function=function, elements=elements, driver=plan.driver
                )
                _run(calls, runner, workers, beam_options)
            _run(functools.partial(pipeline.build, plan=plan, keys=keys), runner, workers, beam_options)
        tasks = _collect(plan, keys)
        without = [name for name, entry in tasks.items() if "validation" not in entry["splits"]]
        manifest = {**header, "without_validation": without, "tasks": tasks}
        splits = [split for entry in tasks.values() for split in entry["splits"].values()]
        files = [VOCABULARY_MODEL, *(shard["file"] for split in splits for shard in split["shards"])]
        partial.publish(files, lambda folder: write_manifest(folder, manifest))
    return Prepared(PreparedData.open(output), made=True)


def _lengths_by_objective(
    inputs: Sequence[TextSource], chunk_length: int | Mapping[str, int], examples: ExampleSettings
) -> dict[str, int]:
    """The length of each objective's chunks that there will be, in the order of the objectives' names."""
    lengths = {}
    for objective, unit in sorted({source.objective: source.unit for source in inputs}.items()):
        if unit == "examples":
            lengths[objective] = examples.source_length + examples.target_length
            continue
        length = chunk_length if isinstance(chunk_length, int) else chunk_length.get(objective)
        if length is None:
            raise PreparationError(f"chunk_length says nothing of {objective}, found {chunk_length}")
        least = MIN_CHUNK_LENGTH_OF_PAIRS if unit == "pairs" else MIN_CHUNK_LENGTH
        if length < least:
            raise PreparationError(f"chunk_length of {objective} must be at least {least}, found {length}")
        lengths[objective] = length
    return lengths


def _check_settings(
    inputs: Sequence[TextSource],
    vocabulary: Vocabulary,
    validation_fraction: float,
    block_bytes: int,
    blocks_per_shard: int,
) -> None:
    if not 0 <= validation_fraction < 1:
        raise PreparationError(f"validation_fraction must lie in [0, 1), found {validation_fraction}")
    if block_bytes < 1 or blocks_per_shard < 1:
        raise PreparationError(
            f"block_bytes and blocks_per_shard must be positive, found {block_bytes}, {blocks_per_shard}"
        )
    if vocabulary.size > MAX_ID + 1:
        raise PreparationError(f"vocabulary of {vocabulary.size} ids: prepared data hold ids up to {MAX_ID}")
    names = Counter(source.task for source in inputs)
    if not names:
        raise PreparationError("no tasks to prepare")
    for name, count in names.items():
        if count > 1:
            raise PreparationError(f"task {name} is given {count} times")
        if Path(name).name != name or name.startswith("."):
            raise PreparationError(f"task {name!r}: its name must be usable as the name of a folder")


def _check_inputs(inputs: Sequence[TextSource]) -> None:
    """Raises for every file that is missing or empty, in one error, before any work is done."""
    wrong = []
    for source in inputs:
        for split in source.splits:
            if problem := source.problem(split):
                wrong.append(f"{source.task} ({split}): {problem}")
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise PreparationError(f"{'; '.join(wrong[:5])}{more}. Fetch the files again or leave these languages out.")


def _run(build: Callable[[beam.Pipeline], None], runner: str, workers: int | None, beam_options: Sequence[str]) -> None:
    """Builds a pipeline and runs it to its end; a worker's error becomes one `PreparationError`."""
    try:
        if workers is not None:
            run_local(build, workers)
        else:
            run_elsewhere(build, runner, beam_options)
    except WorkerDiedError as error:
        raise PreparationError(str(error)) from error
    except Exception as error:
        if pipeline.was_interrupted(error):
            raise KeyboardInterrupt from error
        message = pipeline.find_message(error)
        if message is not None:
            raise PreparationError(message) from None
        if workers is None:
            raise PreparationError(
                f"the Beam runner {runner} failed: {error}. Look at its own log; --runner=local needs no other service."
            ) from error
        raise


def _default_workers(inputs: Sequence[TextSource]) -> int:
    size = sum(source.size(split) for source in inputs for split in source.splits)
    return max(1, min(size // _BYTES_WORTH_A_PROCESS, os.cpu_count() or 1))


@contextlib.contextmanager
def _reporting(finished: Finished, parts: int, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Calls `on_progress` from a thread while the body runs, and once at its end."""
    if on_progress is None:
        yield
        return
    done = threading.Event()

    def report() -> float:
        """Returns how long to wait for the next time."""
        began = time.monotonic()
        on_progress(Progress(parts, *finished.count()))
        return max(_PROGRESS_SECONDS, (time.monotonic() - began) / _PROGRESS_SHARE)

    def watch() -> None:
        wait = _PROGRESS_SECONDS
        while not done.wait(wait):
            wait = report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        done.set()
        thread.join()
        report()
    finally:
        done.set()
        thread.join()


def _collect(plan: Plan, keys: Sequence[PartKey]) -> dict[str, Any]:
    """The manifest's tasks, from what the workers have put on record.

    Raises:
      PreparationError: a part that nobody has done, or a task without any training text.
    """
    places = [(plan.inputs[key.index].task, key.split, key.part, key.identity) for key in keys]
    parts, shards, missing = plan.finished.collect(places)
    if missing:
        shown = ", ".join(f"{task} {split} {part}" for task, split, part in missing[:3])
        raise PreparationError(
            f"the runner has ended without an error, but {len(missing):,} of {len(keys):,} parts are not done ({shown} …). "
            "Do its workers see this machine's files? Start again to go on with the rest."
        )
    parts_by_task: dict[str, list[PartResult]] = {}
    shards_by_task: dict[str, list[ShardResult]] = {}
    for part in parts:
        parts_by_task.setdefault(part.task, []).append(part)
    for shard in shards:
        shards_by_task.setdefault(shard.task, []).append(shard)
    tasks: dict[str, Any] = {}
    empty = []
    for source in plan.inputs:
        splits = {}
        read = parts_by_task[source.task]
        for split in SPLITS:
            written = [shard for shard in shards_by_task.get(source.task, []) if shard.split == split]
            counts = Counter[str]()
            for counted in (*(w.counts for w in written), *(part.counts for part in read if part.split == split)):
                counts.update(counted)
            if counts["chunks"]:
                files = [dataclasses.asdict(shard.shard) for shard in written if shard.shard]
                splits[split] = _split_entry(source, counts, files)
            elif split == "train":
                reasons = ", ".join(f"{k}: {n:,}" for k, n in sorted(counts.items()) if is_reason(k)) or "nothing"
                empty.append(f"{source.task} ({source.where(split)}; dropped: {reasons})")
        tasks[source.task] = {
            "objective": source.objective,
            "language": source.language,
            "groups": dict(source.groups),
            "inputs": {split: [part.entry for part in read if part.split == split] for split in source.splits},
            "splits": splits,
        }
    if empty:
        raise PreparationError(
            f"no training text for {'; '.join(empty)}. Check the format of the text, or leave these tasks out."
        )
    return tasks


def _split_entry(source: TextSource, counts: Counter[str], shards: list[dict[str, Any]]) -> dict[str, Any]:
    sums = ("units", "tokens", "chunks", "padding")
    reasons = {k: n for k, n in sorted(counts.items()) if k not in sums and is_reason(k)}
    return {
        UNITS[source.objective]: counts["units"],
        "tokens": counts["tokens"],
        "chunks": counts["chunks"],
        "padding": counts["padding"],
        "dropped": {k: n for k, n in reasons.items() if k not in CHANGED},
        "changed": {k: n for k, n in reasons.items() if k in CHANGED},
        **manifest_entries(counts),
        "shards": shards,
    }

"""Preparation: corpora to prepared data, once, as an Apache Beam pipeline.

    parts ─ read into blocks ─ Reshuffle ─ tokenise, cut or pack ─ GroupByKey(shard) ─ write shard ─ collect results

The folder grows under the name OUTPUT.partial; the manifest is written last and the folder then renamed, so OUTPUT is
complete or absent. Its bytes depend on inputs, vocabulary and settings alone: blocks are keyed by (task, split, part,
number) and a shard is a run of consecutive blocks of a part, so neither the runner nor the number of workers leaves a trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from deltalm_jax.data import output_folder, pipeline
from deltalm_jax.data.blocks import CHANGED, UNITS, Input, TextSource
from deltalm_jax.data.chunks import SPLITS, VOCABULARY_MODEL, PreparedData, write_manifest
from deltalm_jax.data.local_runner import WorkerDiedError, run_local
from deltalm_jax.data.output_folder import PreparationError
from deltalm_jax.data.packing import MIN_CHUNK_LENGTH, MIN_CHUNK_LENGTH_OF_PAIRS
from deltalm_jax.data.shards import MAX_ID
from deltalm_jax.data.vocabulary import Vocabulary

__all__ = ["Input", "PreparationError", "Prepared", "Progress", "prepare"]

# 32 blocks of 4 MiB of text are about 30 M ids, a shard of about 100 MB.
BLOCK_BYTES = 4 << 20
BLOCKS_PER_SHARD = 32
LOCAL_RUNNERS = ("local", "FnApiRunner")
# Below this much input (as it lies on disk) starting worker processes takes longer than the work.
_BYTES_WORTH_A_PROCESS = 16 << 20
_PROGRESS_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: parts of the text in all and read, blocks read and encoded, shards written."""

    parts: int
    parts_read: int
    blocks_read: int
    blocks_encoded: int
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
    validation_fraction: float = 0.001,
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
      output: the folder to make. On a cluster, a path that all workers and this machine see.
      mixture: name kept in the manifest.
      languages: what was asked for, kept in the manifest; None: all of the mixture's.
      chunk_length: ids in a full chunk; one number, or one for each objective.
      validation_fraction: share of texts held out by hash where a task has no validation file.
      block_bytes: UTF-8 bytes of text that are worked on as one piece. Chunks do not cross blocks.
      blocks_per_shard: consecutive blocks that make one file.
      runner: "local", or the name of another Beam runner. ("DirectRunner" tries to download a Go binary; "local" is
        Beam's Python runner and needs nothing.)
      num_workers: processes of the local runner; default: one for small inputs, else one per core.
      beam_options: flags for Beam (`--project=…`), for other runners.
      overwrite: replace a prepared folder that is already there.
      on_progress: called about twice a second from another thread.

    Returns:
      The data, opened. Where `output` was made from the same files, vocabulary and settings before, nothing is done.

    Raises:
      PreparationError: inputs that are missing, empty or damaged; an output that is there and differs, or is being
        written by another process; settings that cannot be; a failure of a worker. Nothing is left of the output then.
    """
    output = Path(os.path.abspath(output))
    lengths = _lengths_by_objective(inputs, chunk_length)
    _check_settings(inputs, vocabulary, validation_fraction, block_bytes, blocks_per_shard)
    _check_inputs(inputs)
    settings = {
        "validation_fraction": validation_fraction,
        "block_bytes": block_bytes,
        "blocks_per_shard": blocks_per_shard,
    }
    header = {
        "mixture": mixture,
        "languages": None if languages is None else sorted(languages),
        "chunk_lengths": lengths,
        "vocabulary": vocabulary.describe(),
        "settings": settings,
    }
    if existing := output_folder.existing(output, header, inputs, overwrite):
        return Prepared(existing, made=False)
    with output_folder.partial(output) as partial:
        plan = pipeline.Plan(
            tuple(inputs), str(partial), lengths, validation_fraction, block_bytes, blocks_per_shard,
            spool=runner in LOCAL_RUNNERS,
        )  # fmt: skip
        plan.work_folder.mkdir()
        (partial / VOCABULARY_MODEL).write_bytes(vocabulary.model)
        with _reporting(plan, on_progress):
            _run(plan, vocabulary, runner, num_workers, beam_options)
        tasks = _collect(plan, inputs)
        without = [name for name, entry in tasks.items() if "validation" not in entry["splits"]]
        plan.remove_working_files()
        write_manifest(partial, {**header, "without_validation": without, "tasks": tasks})
        output_folder.publish(partial, output)
    return Prepared(PreparedData.open(output), made=True)


def _lengths_by_objective(inputs: Sequence[TextSource], chunk_length: int | Mapping[str, int]) -> dict[str, int]:
    """The length of each objective's chunks that there will be, in the order of the objectives' names."""
    lengths = {}
    for objective, unit in sorted({source.objective: source.unit for source in inputs}.items()):
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


def _run(
    plan: pipeline.Plan, vocabulary: Vocabulary, runner: str, num_workers: int | None, beam_options: Sequence[str]
) -> None:
    """Builds the pipeline and runs it to its end; a worker's error becomes one `PreparationError`."""
    try:
        if runner in LOCAL_RUNNERS:
            workers = num_workers or _default_workers(plan)
            run_local(lambda built: pipeline.build(built, plan, vocabulary), workers, plan.work_folder)
        else:
            built = beam.Pipeline(runner=runner, options=PipelineOptions(list(beam_options)))
            pipeline.build(built, plan, vocabulary)
            built.run().wait_until_finish()
    except WorkerDiedError as error:
        raise PreparationError(str(error)) from error
    except Exception as error:
        if pipeline.was_interrupted(error):
            raise KeyboardInterrupt from error
        message = pipeline.find_message(error)
        if message is not None:
            raise PreparationError(message) from None
        if runner not in LOCAL_RUNNERS:
            raise PreparationError(
                f"the Beam runner {runner} failed: {error}. Look at its own log; --runner=local needs no other service."
            ) from error
        raise


def _default_workers(plan: pipeline.Plan) -> int:
    size = sum(source.size(split) for source in plan.inputs for split in source.splits)
    return max(1, min(size // _BYTES_WORTH_A_PROCESS, os.cpu_count() or 1))


@contextlib.contextmanager
def _reporting(plan: pipeline.Plan, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Calls `on_progress` from a thread while the body runs, and once at its end."""
    if on_progress is None:
        yield
        return
    parts = sum(source.parts(split) for source in plan.inputs for split in source.splits)
    done = threading.Event()

    def report() -> None:
        counts = plan.progress()
        on_progress(Progress(parts, counts["part"], counts["block"], counts["encoded"], counts["shard"]))

    def watch() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            report()

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


def _collect(plan: pipeline.Plan, inputs: Sequence[TextSource]) -> dict[str, Any]:
    """The manifest's tasks, from what the workers counted; gives the shards their final names.

    Raises:
      PreparationError: a task without any training text.
    """
    parts, shards = plan.results()
    tasks: dict[str, Any] = {}
    empty = []
    for index, source in enumerate(inputs):
        splits = {}
        for split in SPLITS:
            written = [shard for shard in shards if (shard.index, shard.split) == (index, split)]
            read = [part for part in parts if (part.index, part.split) == (index, split)]
            counts = sum(
                (Counter(c) for c in (*(w.counts for w in written), *(r.counts for r in read))), Counter[str]()
            )
            if counts["chunks"]:
                splits[split] = _split_entry(source, counts, plan.name_shards(written))
            elif split == "train":
                reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items())) or "nothing"
                empty.append(f"{source.task} ({source.where(split)}; dropped: {reasons})")
        tasks[source.task] = {
            "objective": source.objective,
            "language": source.language,
            "groups": dict(source.groups),
            "inputs": {
                split: [part.entry for part in parts if (part.index, part.split) == (index, split)]
                for split in source.splits
            },
            "splits": splits,
        }
    if empty:
        raise PreparationError(
            f"no training text for {'; '.join(empty)}. Check the format of the text, or leave these tasks out."
        )
    return tasks


def _split_entry(source: TextSource, counts: Counter[str], shards: list[dict[str, Any]]) -> dict[str, Any]:
    sums = ("units", "tokens", "chunks", "padding")
    return {
        UNITS[source.objective]: counts["units"],
        "tokens": counts["tokens"],
        "chunks": counts["chunks"],
        "padding": counts["padding"],
        "dropped": {k: n for k, n in sorted(counts.items()) if k not in sums and k not in CHANGED},
        "changed": {k: n for k, n in sorted(counts.items()) if k in CHANGED},
        "shards": shards,
    }

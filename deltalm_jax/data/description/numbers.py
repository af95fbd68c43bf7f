"""What prepared data hold, in numbers: languages, rates, epochs, lengths, padding, unknowns, what was dropped, examples.

Counts come from the manifest and are exact. Rates and epochs come from the stream that training reads. What only the ids
can tell (unknowns, lengths, characters) is measured on a sample: chunks of each task at equal distances.

Shapes: B chunks, L raw length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltalm_jax.data.chunks import PreparedData, PreparedTask
from deltalm_jax.data.description.measurement import Histogram, Sampled, measure, segment_lengths
from deltalm_jax.data.piece_table import PieceTable
from deltalm_jax.data.stream import Objective, Stream
from deltalm_jax.data.vocabulary import PAD_ID, Vocabulary
from deltalm_jax.objectives import mask_argument
from deltalm_jax.objectives.hashing import hash_keys, string_key

SAMPLE_CHUNKS = 64
EXAMPLES = 6
_BATCH_ROWS = 1024
_CHUNK_LENGTH_BINS = 16


@dataclasses.dataclass(frozen=True)
class Left:
    """What became of the text that was read, by the manifest; train and validation together.

    Attributes:
      dropped: pieces of input left out, number by reason: rows, lines, documents or pairs, whatever the reason is about.
      changed: pieces of input that were changed, number by reason.
      dropped_characters: characters left out, by reason; empty where the preparation did not count them.
      characters_before: characters that were read; None where they were not counted.
      units_before: documents or pairs that were read; None where they were not counted.
    """

    dropped: Mapping[str, int]
    changed: Mapping[str, int]
    dropped_characters: Mapping[str, int]
    characters_before: int | None
    units_before: int | None


@dataclasses.dataclass(frozen=True)
class TaskDescription:
    """One task: a language of one objective.

    Attributes:
      name, language, script: of it; the script is "" where it is not known.
      units, tokens, chunks, padding: of its training split; padding in ids that full chunks would hold more.
      held_out_units, held_out_tokens, held_out_chunks: of its validation split.
      share: its part of the objective's training tokens.
      rate: its part of the objective's examples, as training draws them.
      epochs: how often its chunks are visited in the steps asked for.
      left: what was dropped and changed.
      sampled: measured on a sample of its training chunks.
    """

    name: str
    language: str
    script: str
    units: int
    tokens: int
    chunks: int
    padding: int
    held_out_units: int
    held_out_tokens: int
    held_out_chunks: int
    share: float
    rate: float
    epochs: float
    left: Left
    sampled: Sampled


@dataclasses.dataclass(frozen=True)
class Example:
    """A chunk after corruption, decoded: `inputs` and `targets` with the sentinels written out."""

    task: str
    language: str
    script: str
    chunk: int
    inputs: str
    targets: str


@dataclasses.dataclass(frozen=True)
class ObjectiveDescription:
    """One objective.

    Attributes:
      name, unit: its name, and "documents", "pairs" or "examples".
      chunk_length, inputs_length, targets_length: tokens of a full chunk, and the static shape after corruption.
      corruption, batch_size, sampling_exponent: as it would be trained.
      inputs_padding, targets_padding: share of padding in the first batch, over its first `batch_rows` rows.
      chunk_lengths: ids in a chunk; of the sampled chunks.
      segment_lengths: ids of a paragraph or of a side of a pair, `</s>` not counted; of those that lie whole in a sampled
        chunk.
      tasks: largest first.
      examples: one from each of several scripts.
    """

    name: str
    unit: str
    chunk_length: int
    inputs_length: int
    targets_length: int
    corruption: str
    batch_size: int
    sampling_exponent: float
    batch_rows: int
    inputs_padding: float
    targets_padding: float
    chunk_lengths: Histogram
    segment_lengths: Histogram
    tasks: tuple[TaskDescription, ...]
    examples: tuple[Example, ...]

    def total(self, field: str) -> int:
        """Sum of a number over the tasks."""
        return sum(getattr(task, field) for task in self.tasks)

    @property
    def padding_share(self) -> float:
        """Padding in full chunks: stored ids that are missing, as a share of all places."""
        return self.total("padding") / max(self.total("tokens") + self.total("padding"), 1)


@dataclasses.dataclass(frozen=True)
class Description:
    """Prepared data as a whole; `dataclasses.asdict` of it is plain JSON.

    Attributes:
      folder, mixture, digest: where they lie, what they were made of, their identity.
      bytes_on_disk: of all shards.
      vocabulary, settings: as the manifest has them.
      steps, seed: of the training that rates, epochs and batches speak of.
      sample_chunks: the most chunks of a task that were looked at.
      without_validation: tasks without held-out text.
      objectives: in the order of their names.
    """

    folder: str
    mixture: str
    digest: str
    bytes_on_disk: int
    vocabulary: Mapping[str, Any]
    settings: Mapping[str, Any]
    steps: int
    seed: int
    sample_chunks: int
    without_validation: tuple[str, ...]
    objectives: tuple[ObjectiveDescription, ...]

    def languages(self) -> list[str]:
        """Codes of all languages, sorted."""
        return sorted({task.language for objective in self.objectives for task in objective.tasks})


def describe(
    data: PreparedData,
    objectives: Mapping[str, Objective],
    steps: int,
    *,
    seed: int = 0,
    sample_chunks: int = SAMPLE_CHUNKS,
    examples: int = EXAMPLES,
) -> Description:
    """Looks at prepared data.

    Args:
      data: opened.
      objectives: how each objective of the data is drawn and corrupted in training.
      steps: of that training, for the epochs.
      seed: of that training.
      sample_chunks: chunks of each task that are read, at most.
      examples: decoded examples of each objective, at most; of different scripts first.

    Raises:
      PreparedDataError: the data are damaged, or lack an objective.
      OSError: the vocabulary's model cannot be read.
    """
    vocabulary = data.vocabulary()
    stream = Stream(data, objectives, seed)
    rates, epochs = stream.rates(), stream.epochs(steps)
    table = PieceTable.of(vocabulary)
    described = []
    for name in sorted(objectives):
        chunks_of = stream.prepared_for(name)
        indices = [i for i, task in enumerate(data.tasks) if task.objective == chunks_of and task.chunks("train")]
        indices.sort(key=lambda i: (-data.tasks[i].tokens("train"), data.tasks[i].name))
        total = sum(data.tasks[i].tokens("train") for i in indices)
        lengths, segments, tasks = [], [], []
        for index in indices:
            task = data.tasks[index]
            tokens_BL, lengths_B = _sample(data, index, sample_chunks)
            lengths.append(lengths_B)
            segments.append(segment_lengths(tokens_BL, lengths_B))
            tasks.append(
                _describe_task(
                    task, data.manifest["tasks"][task.name], total, rates[name][task.name], epochs[task.name],
                    measure(tokens_BL, table),
                )
            )  # fmt: skip
        chosen = _of_several_scripts(indices, data.tasks, examples)
        described.append(
            _describe_objective(
                name, objectives[name], data, stream, np.concatenate(lengths), np.concatenate(segments), tuple(tasks),
                tuple(_example(data, index, objectives[name], vocabulary, seed) for index in chosen),
            )
        )  # fmt: skip
    return Description(
        folder=str(data.folder),
        mixture=data.manifest["mixture"],
        digest=data.manifest["digest"],
        bytes_on_disk=sum(shard.bytes for t in data.tasks for split in t.splits.values() for shard in split.shards),
        vocabulary=dict(data.manifest["vocabulary"]),
        settings=dict(data.manifest.get("settings", {})),
        steps=steps,
        seed=seed,
        sample_chunks=sample_chunks,
        without_validation=tuple(task.name for task in data.tasks if not task.chunks("validation")),
        objectives=tuple(described),
    )


def _sample(data: PreparedData, index: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Training chunks of a task at equal distances: tokens_BL and lengths_B."""
    count = data.chunk_count(index, "train")
    wanted = min(count, most)
    chunk_B = np.arange(wanted) * count // wanted
    return data.read("train", np.full(wanted, index), chunk_B)


def _describe_task(
    task: PreparedTask, entry: Mapping[str, Any], total: int, rate: float, epochs: float, sampled: Sampled
) -> TaskDescription:
    train, held_out = task.splits["train"], task.splits.get("validation")
    return TaskDescription(
        name=task.name,
        language=task.language,
        script=task.groups.get("script", ""),
        units=train.units,
        tokens=train.tokens,
        chunks=train.chunks,
        padding=train.padding,
        held_out_units=held_out.units if held_out else 0,
        held_out_tokens=task.tokens("validation"),
        held_out_chunks=task.chunks("validation"),
        share=train.tokens / total,
        rate=rate,
        epochs=epochs,
        left=_left(entry["splits"].values()),
        sampled=sampled,
    )


def _left(splits: Sequence[Mapping[str, Any]]) -> Left:
    """Sums of what the manifest says of a task's splits; older preparations say less."""

    def summed(field: str) -> dict[str, int]:
        counts = sum((Counter(split.get(field, {})) for split in splits), Counter[str]())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    splits = list(splits)
    before = summed("before")
    return Left(
        summed("dropped"),
        summed("changed"),
        summed("dropped_characters"),
        before.get("characters"),
        before.get("units"),
    )


def _describe_objective(
    name: str,
    objective: Objective,
    data: PreparedData,
    stream: Stream,
    lengths: np.ndarray,
    segments: np.ndarray,
    tasks: tuple[TaskDescription, ...],
    examples: tuple[Example, ...],
) -> ObjectiveDescription:
    from deltalm_jax.data.blocks import UNITS

    corruption, chunk_length = objective.corruption, data.chunk_lengths[stream.prepared_for(name)]
    inputs_length, targets_length = corruption.lengths(chunk_length)
    rows = min(objective.batch_size, _BATCH_ROWS)
    batch = stream.batch(0, rows={name: slice(0, rows)}, only=name)[name]
    step = -(-chunk_length // _CHUNK_LENGTH_BINS)
    # The last bin ends with full chunks.
    chunk_edges = [max(0, chunk_length + 1 - step * i) for i in range(_CHUNK_LENGTH_BINS, -1, -1)]
    chunk_edges = sorted(set(chunk_edges))
    powers = [2**i for i in range(int(segments.max(initial=1)).bit_length() + 1)]
    return ObjectiveDescription(
        name=name,
        unit=UNITS[name],
        chunk_length=chunk_length,
        inputs_length=inputs_length,
        targets_length=targets_length,
        corruption=corruption.describe(),
        batch_size=objective.batch_size,
        sampling_exponent=objective.sampling_exponent,
        batch_rows=rows,
        inputs_padding=float((batch["inputs"] == PAD_ID).mean()),
        targets_padding=float((batch["targets"] == PAD_ID).mean()),
        chunk_lengths=Histogram.of(lengths, chunk_edges),
        segment_lengths=Histogram.of(segments, powers),
        tasks=tasks,
        examples=examples,
    )


def _of_several_scripts(indices: Sequence[int], tasks: Sequence[PreparedTask], most: int) -> list[int]:
    """Some of the tasks given, largest first: of each script the first, then others in their order."""
    scripts: set[str] = set()
    first: list[int] = []
    others: list[int] = []
    for index in indices:
        script = tasks[index].groups.get("script", tasks[index].language)
        (others if script in scripts else first).append(index)
        scripts.add(script)
    return (first + others)[:most]


def _example(data: PreparedData, index: int, objective: Objective, vocabulary: Vocabulary, seed: int) -> Example:
    """The chunk in the middle of a task, corrupted with one mask out of those that training draws from."""
    task = data.tasks[index]
    chunk = data.chunk_count(index, "train") // 2
    tokens_BL, lengths_B = data.read("train", np.array([index]), np.array([chunk]))
    key = hash_keys(seed, string_key(task.name), chunk)
    corrupted = objective.corruption.corrupt(
        tokens_BL,
        lengths_B,
        np.array([key], np.uint64),
        sentinel_start=vocabulary.sentinel_start,
        num_sentinels=vocabulary.num_sentinels,
        chunk_length=data.chunk_lengths[task.objective],
        **mask_argument(objective.corruption, vocabulary.mask_id),
    )
    return Example(
        task.name,
        task.language,
        task.groups.get("script", ""),
        chunk,
        vocabulary.decode(corrupted.inputs_BS[0]),
        vocabulary.decode(corrupted.targets_BT[0]),
    )

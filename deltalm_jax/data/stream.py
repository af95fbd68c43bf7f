"""The training data as a pure function: (seed, step) → batch. No iterator, no state to save.

Example number g of an objective (g = step * batch size + row) is found by arithmetic alone:

  g ──► block g // M, place g % M ──► task and its running number n ──► epoch n // chunks, chunk ordered anew by epoch
        (a block holds each task exactly as often as its rate says, in hashed order)

and its noise mask is drawn from hash(seed, task, chunk, epoch). So resuming costs nothing and is exact, any number
of hosts sees the same global batches, and any past batch can be looked at again.

Shapes: B batch, L raw length, S inputs, T targets, K tasks of one objective, M examples in a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from deltalm_jax.data.chunks import PreparedData, PreparedDataError
from deltalm_jax.data.sampling import block_quotas, block_size, cap_rates, chunk_order, sampling_rates
from deltalm_jax.objectives import Corruption, mask_argument
from deltalm_jax.objectives.hashing import hash_keys, string_key

Batch = dict[str, dict[str, np.ndarray]]
Rows = slice | np.ndarray

_SALT_BLOCK, _SALT_ORDER, _SALT_MASK = 11, 12, 13


@dataclasses.dataclass(frozen=True)
class Objective:
    """How one objective is drawn: its corruption, its share of the batch, its temperature over languages.

    Attributes:
      corruption: the corruption, with its noise density and mean span length.
      batch_size: examples of this objective in a global batch.
      sampling_exponent: a language's rate is proportional to (its tokens) ** exponent; 1 is by size, 0 uniform.
      max_epochs: how often a task's chunks may come up in `planned_steps` steps; None: no limit.
      planned_steps: the steps that this limit is for.
      warm_epochs: epochs of all its data over which the temperature, 1 / `sampling_exponent`, rises from 1; 0: it does not.
    """

    corruption: Corruption
    batch_size: int
    sampling_exponent: float
    max_epochs: float | None = None
    planned_steps: int | None = None
    warm_epochs: float = 0.0

    def examples(self) -> int:
        """How many it comes to in `planned_steps`."""
        return self.batch_size * (self.planned_steps or 0)


class _Schedule:
    """Which chunk is example g of one objective."""

    def __init__(self, name: str, objective: Objective, prepared: PreparedData, seed: int):
        chunks_of = objective.corruption.chunks_of
        tasks = [i for i, task in enumerate(prepared.tasks) if task.objective == chunks_of]
        tasks = [i for i in tasks if prepared.chunk_count(i, "train")]
        if not tasks:
            raise PreparedDataError(f"the prepared data holds no training chunks for the objective {name!r}")
        self.task_index_K = np.array(tasks)
        self.task_names = [prepared.tasks[i].name for i in tasks]
        self.chunks_K = np.array([prepared.chunk_count(i, "train") for i in tasks])
        tokens_K = [prepared.tasks[i].tokens("train") for i in tasks]
        self.rates_K = sampling_rates(
            tokens_K, objective.sampling_exponent, [prepared.tasks[i].language for i in tasks]
        )
        if objective.max_epochs is not None:
            limits_K = objective.max_epochs * self.chunks_K / objective.examples()
            if limits_K.sum() < 1:
                raise PreparedDataError(
                    f"{name}: {objective.planned_steps:,} steps of {objective.batch_size:,} examples are "
                    f"{1 / limits_K.sum() * objective.max_epochs:.1f} epochs of all its data, more than "
                    f"max_epochs = {objective.max_epochs:g} for each task: plan fewer steps, raise it, or add data"
                )
            self.rates_K = cap_rates(self.rates_K, limits_K)
        self.quotas_K = block_quotas(self.rates_K, block_size(self.rates_K, objective.max_epochs is not None))
        self.block = int(self.quotas_K.sum())
        # Of the blocks while the temperature rises, and then of all others; and the places of each task before each of them.
        warm = [block_quotas(rates_K, self.block) for rates_K in self._warm_rates(objective, tokens_K, prepared, tasks)]
        self.quotas_PK = np.array([*warm, self.quotas_K])
        self.before_PK = np.cumsum(self.quotas_PK, axis=0) - self.quotas_PK
        if objective.max_epochs is not None:
            epochs_K = self.quotas_K / self.block * objective.examples() / self.chunks_K
            small = np.flatnonzero(epochs_K > 1.25 * objective.max_epochs)
            if small.size:
                shown = ", ".join(f"{self.task_names[k]} ({epochs_K[k]:.3g})" for k in small[:5])
                raise PreparedDataError(
                    f"{name}: max_epochs = {objective.max_epochs:g} cannot be kept for tasks as small as {shown}: every "
                    "task comes up once in a million examples. Leave them out, or raise it"
                )
        # By name, not by position: adding a language must not reshuffle the others' chunks and masks.
        self.keys_K = hash_keys(seed, np.array([string_key(n) for n in self.task_names], np.uint64))
        self.seed, self.name_key = seed, string_key(name)
        self._layout = functools.lru_cache(maxsize=4)(self._block_layout)

    def _warm_rates(
        self, objective: Objective, tokens_K: list[int], prepared: PreparedData, tasks: list[int]
    ) -> list[np.ndarray]:
        """Rates of the first blocks, in which the temperature has not come to its height.

        XLM-T's rule is T = min(1 + (T_N - 1) (epoch - 1) / N, T_N); here the epoch is counted in blocks, not in whole ones.
        """
        blocks = int(np.ceil(objective.warm_epochs * self.chunks_K.sum() / self.block))
        languages = [prepared.tasks[i].language for i in tasks]
        rise = 1 / objective.sampling_exponent - 1 if blocks else 0.0
        temperatures = [1 + rise * block / blocks for block in range(blocks)]
        return [sampling_rates(tokens_K, 1 / temperature, languages) for temperature in temperatures]

    def _quotas(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of each task in a block, and in all before it; int64 [K]."""
        last = len(self.quotas_PK) - 1
        quotas_K = self.quotas_PK[min(block, last)]
        return quotas_K, self.before_PK[min(block, last)] + max(block - last, 0) * quotas_K

    def _block_layout(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of every place in a block: its task (position k) and its running number among that task's places."""
        quotas_K, _ = self._quotas(block)
        places_M = np.repeat(np.arange(len(quotas_K)), quotas_K)
        hashes_M = hash_keys(self.seed, _SALT_BLOCK, self.name_key, block, np.arange(self.block))
        task_M = places_M[np.argsort(hashes_M, kind="stable")]
        by_task_M = np.argsort(task_M, kind="stable")
        running_M = np.empty(self.block, np.int64)
        running_M[by_task_M] = np.arange(self.block) - np.repeat(np.cumsum(quotas_K) - quotas_K, quotas_K)
        return task_M, running_M

    def locate(self, examples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Task position k, chunk number, and epoch of each example; int64 [B] each."""
        task_B, number_B = np.empty_like(examples_B), np.empty_like(examples_B)
        blocks_B, places_B = np.divmod(examples_B, self.block)
        for block in np.unique(blocks_B):
            here = blocks_B == block
            task_M, running_M = self._layout(int(block))
            task_B[here] = task_M[places_B[here]]
            number_B[here] = self._quotas(int(block))[1][task_B[here]] + running_M[places_B[here]]
        epoch_B, index_B = np.divmod(number_B, self.chunks_K[task_B])
        order_keys_B = hash_keys(self.keys_K[task_B], _SALT_ORDER, epoch_B)
        return task_B, chunk_order(index_B, self.chunks_K[task_B], order_keys_B), epoch_B

    def drawn(self, examples: int) -> np.ndarray:
        """How many of the first `examples` examples are of each task; int64 [K]. One block is looked at, not all."""
        blocks, places = divmod(examples, self.block)
        task_M, _ = self._layout(blocks)
        return self._quotas(blocks)[1] + np.bincount(task_M[:places], minlength=len(self.quotas_K))


class Stream:
    """Batches of a training run, and the fixed batches of its validation.

    Args:
      prepared: opened prepared data.
      objectives: per objective name (a key of `objectives.OBJECTIVES`), how it is drawn.
      seed: the run's seed.

    Attributes:
      sentinels: first sentinel id, and one past the last.
      mask_id: id of `<mask>`.

    Raises:
      PreparedDataError: an objective has no training data.
    """

    def __init__(self, prepared: PreparedData, objectives: Mapping[str, Objective], seed: int):
        self.prepared, self.objectives, self.seed = prepared, dict(objectives), seed
        vocabulary = prepared.manifest["vocabulary"]
        first = int(vocabulary["sentinel_start"])
        self.sentinels = first, first + int(vocabulary["num_sentinels"])
        self.mask_id = int(vocabulary["mask_id"])
        self._schedules = {name: _Schedule(name, o, prepared, seed) for name, o in self.objectives.items()}
        for name, objective in self.objectives.items():
            length = prepared.chunk_lengths[self.prepared_for(name)]
            needed = objective.corruption.max_sentinels(length)
            if needed > int(vocabulary["num_sentinels"]):
                raise PreparedDataError(
                    f"{name} of {length} tokens needs {needed} sentinels, but the vocabulary of "
                    f"{prepared.folder} has {vocabulary['num_sentinels']}: lower the noise density or raise the mean span "
                    "length"
                )

    def batch(self, step: int, rows: Mapping[str, Rows] | None = None, only: str | None = None) -> Batch:
        """The batch of a step, or this process's rows of it.

        Args:
          step: training step, from 0.
          rows: per objective, the rows of the global batch wanted (default: all).
          only: one objective's group instead of all.

        Returns:
          {objective: {"inputs": int32 [B, S], "targets": int32 [B, T]}}, padded with 0.
        """
        out: Batch = {}
        for name, objective in self.objectives.items():
            if only not in (None, name):
                continue
            rows_B = np.arange(objective.batch_size)[(rows or {}).get(name, slice(None))]
            schedule = self._schedules[name]
            task_B, chunk_B, epoch_B = schedule.locate(step * objective.batch_size + rows_B)
            keys_B = hash_keys(schedule.keys_K[task_B], _SALT_MASK, chunk_B, epoch_B)
            out[name] = self._corrupt(name, "train", schedule.task_index_K[task_B], chunk_B, keys_B)
        return out

    def tasks_of(self, step: int) -> dict[str, list[str]]:
        """Per objective, the task name of each row of a step's batch."""
        out = {}
        for name, objective in self.objectives.items():
            schedule = self._schedules[name]
            task_B, _, _ = schedule.locate(step * objective.batch_size + np.arange(objective.batch_size))
            out[name] = [schedule.task_names[k] for k in task_B]
        return out

    def rates(self) -> dict[str, dict[str, float]]:
        """Per objective, the share of its examples that each task gets (after rounding to block places, and any rise)."""
        return {
            name: {t: float(q) / s.block for t, q in zip(s.task_names, s.quotas_K, strict=True)}
            for name, s in self._schedules.items()
        }

    def prepared_for(self, objective: str) -> str:
        """The objective whose chunks, in the prepared data, this one takes."""
        return self.objectives[objective].corruption.chunks_of

    def batches_in_an_epoch(self, objective: str) -> float:
        """Training chunks of an objective, in batches."""
        return float(self._schedules[objective].chunks_K.sum()) / self.objectives[objective].batch_size

    def epochs(self, steps: int) -> dict[str, float]:
        """For each task, how often its chunks have been visited after `steps` steps by all objectives: examples / chunks.

        By arithmetic, whatever the number of steps. 2.5 means that half of the chunks were seen three times, half twice.
        """
        out: dict[str, float] = {}
        for name, schedule in self._schedules.items():
            drawn_K = schedule.drawn(steps * self.objectives[name].batch_size)
            for task, epochs in zip(schedule.task_names, (drawn_K / schedule.chunks_K).tolist(), strict=True):
                out[task] = out.get(task, 0.0) + epochs
        return out

    def validation_batches(self, limit: int | None = None) -> dict[str, int]:
        """Per objective, how many validation batches there are (at most `limit`): the same on every process."""
        counts = {}
        for name, objective in self.objectives.items():
            if objective.corruption.kind == "contrast":  # which is told from what a queue holds
                continue
            batches = -(-len(self._validation_chunks(name)[0]) // objective.batch_size)
            counts[name] = batches if limit is None else min(batches, limit)
        return counts

    def validation_batch(self, name: str, index: int, rows: Rows | None = None) -> dict[str, np.ndarray]:
        """Validation batch `index` of one objective. Same masks every time; rows past the end are all padding."""
        batch_size = self.objectives[name].batch_size
        task_N, chunk_N = self._validation_chunks(name)
        wanted_B = (index * batch_size + np.arange(batch_size))[slice(None) if rows is None else rows]
        real_B = wanted_B < len(task_N)
        task_B, chunk_B = task_N[wanted_B[real_B]], chunk_N[wanted_B[real_B]]
        task_keys_B = np.array([string_key(self.prepared.tasks[t].name) for t in task_B], np.uint64)
        # No run seed in here: validation losses of different runs compare on identical masks.
        part = self._corrupt(name, "validation", task_B, chunk_B, hash_keys(task_keys_B, _SALT_MASK, chunk_B))
        out = {k: np.zeros((len(wanted_B), v.shape[1]), v.dtype) for k, v in part.items()}
        for k, v in part.items():
            out[k][real_B] = v
        return out

    def validation_tasks(self, name: str, index: int) -> np.ndarray:
        """Whose each row of `validation_batch(name, index)` is: int64 [B], index into `prepared.tasks`, -1 for padding."""
        batch_size = self.objectives[name].batch_size
        task_N = self._validation_chunks(name)[0][index * batch_size : (index + 1) * batch_size]
        return np.pad(task_N, (0, batch_size - len(task_N)), constant_values=-1)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - one stream a run; the table is small and read every evaluation
    def _validation_chunks(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """All validation chunks of an objective in hashed order, so that any prefix is a fair sample of languages."""
        pairs = [
            (i, chunk)
            for i, task in enumerate(self.prepared.tasks)
            if task.objective == self.prepared_for(name)
            for chunk in range(self.prepared.chunk_count(i, "validation"))
        ]
        table = np.array(pairs, np.int64).reshape(-1, 2)
        names = np.array([string_key(self.prepared.tasks[i].name) for i in table[:, 0]], np.uint64)
        order = np.argsort(hash_keys(names, _SALT_ORDER, table[:, 1]), kind="stable")
        return table[order, 0], table[order, 1]

    def _corrupt(
        self, name: str, split: str, task_B: np.ndarray, chunk_B: np.ndarray, keys_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        tokens_BL, lengths_B = self.prepared.read(split, task_B, chunk_B)
        corruption = self.objectives[name].corruption
        corrupted = corruption.corrupt(
            tokens_BL,
            lengths_B,
            keys_B,
            sentinel_start=self.sentinels[0],
            num_sentinels=self.sentinels[1] - self.sentinels[0],
            chunk_length=self.prepared.chunk_lengths[self.prepared_for(name)],
            **mask_argument(corruption, self.mask_id),
        )
        return {"inputs": corrupted.inputs_BS, "targets": corrupted.targets_BT}

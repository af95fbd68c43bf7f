"""The configuration of a training run: what gin files bind. (`ModelConfig`, `MeshConfig` and
`FilterConfig` live beside what they shape.)"""

from __future__ import annotations

import dataclasses
from typing import Any

from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.stream import Objective
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS
from deltalm_jax.fields import check_types, is_operational, operational
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.objectives import OBJECTIVES, make_objective
from deltalm_jax.parallel.mesh import MeshConfig
from deltalm_jax.training.data_order import DataOrder
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import DECODER_STARTS

SAMPLE = "sample"
RANDOM = "random"
SEQUENCE_TO_SEQUENCE = "sequence_to_sequence"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the model is trained on, and in which proportions.

    Attributes:
      mixture: name of a seqio Task or Mixture (`tasks/`, or `task_module`) to prepare.
      task_module: name of a module that registers Tasks and Mixtures of one's own (`tasks.add_task`), for the
        preparation. Training itself never imports it.
      data_dir: folder with the corpora (`cc100/CODE.txt.xz`, `ccaligned/xx_YY-en_XX.tsv.xz`), or "sample" for the
        shipped sample. Only needed until the data is prepared.
      vocabulary: SentencePiece model file, or "sample" for the shipped sample's.
      prepared_dir: where the prepared data lies; None is `prepared/<gin name>` in the working directory.
      languages: codes to restrict the corpora to; "paper" is the published files of the paper's languages, all of them;
        None takes every language found in `data_dir`.
      chunk_length: tokens in a full example (paper: 512). What it measures is said by `sizing`.
      sizing: "raw": `chunk_length` is the text's, before corruption (512 gives inputs of 461 and 341), as in the group's
        later loader. "t5": it is the corrupted inputs', closed by `</s>`, and the text is as much longer as fills them
        (568 tokens at 15 %, 766 at 50 %); counts are rounded as in T5.
      mask_sides: of translation pairs, "both" sides are masked (DeltaLM's figure) or "one", chosen by a coin for each
        pair (mT6).
      num_sentinels: sentinels of the vocabulary: the most spans an example can have. The released model has 100;
        inputs of 512 tokens by T5's sizing at 50 % need 128, and one-side masking of 512 tokens 127.
      objective_batch_sizes: examples of each objective in a global batch: the only ratio between objectives. The paper
        gives their sum, 2,048; the ratio is not stated.
      source_length, target_length: of sequence_to_sequence, tokens of a row's sources and of its targets, `</s>` included.
        A longer source is cut; an example with a longer target is left out.
      packing: of sequence_to_sequence, whether short examples share a row. The model keeps them apart.
      source_prefix: of sequence_to_sequence, text put before every source; `{target}` in it is the part of the task's
        language behind its last hyphen ("de-en"): "__{target}__ " tags a source with the language to translate to.
      noise_densities: share of tokens masked (paper: 15 % and 50 %).
      mean_span_lengths: mean length of masked spans in tokens (paper: 3).
      sampling_exponents: a language's rate is proportional to (its tokens) ** exponent. Not stated; XLM-R and mT5 used
        0.3. (A temperature T, as of multilingual translation, is the exponent 1 / T.) Of sequence_to_sequence 1, if it is not
        named.
      warm_epochs: epochs of an objective's data over which its temperature rises from 1 (XLM-T: 5, to a temperature of 5, for
        multilingual translation); of those named.
      max_epochs: how often a task's text may be seen in `OptimizerConfig.decay_steps` steps; what a small language does not
        get then goes to the others. An objective that is not named has no limit. The paper states none.
      decoder_start: "eos": the decoder starts from `</s>` and every target is predicted. "first_target": it starts from
        the first target, the first sentinel, which is then not predicted, as in the DeltaLM group's later loader.
      prepare_limit_mb: `train` prepares corpora up to this size on disk by itself; above, it prints the command. The size
        of Tasks of one's own is not known, and does not count.
      prefetch: batches made ahead of the step.
    """

    mixture: str = "deltalm_pretrain"
    task_module: str | None = operational(None)
    data_dir: str | None = operational(None)
    vocabulary: str | None = operational(None)
    prepared_dir: str | None = operational(None)
    languages: tuple[str, ...] | None = None
    chunk_length: int = 512
    sizing: str = "raw"
    mask_sides: str = "both"
    num_sentinels: int = DEFAULT_NUM_SENTINELS
    source_length: int = 256
    target_length: int = 256
    packing: bool = True
    source_prefix: str = ""
    objective_batch_sizes: dict[str, int] = dataclasses.field(default_factory=lambda: _each(1024, 1024))
    noise_densities: dict[str, float] = dataclasses.field(default_factory=lambda: _each(0.15, 0.5))
    mean_span_lengths: dict[str, float] = dataclasses.field(default_factory=lambda: _each(3.0, 3.0))
    sampling_exponents: dict[str, float] = dataclasses.field(default_factory=lambda: _each(0.3, 0.3))
    warm_epochs: dict[str, float] = dataclasses.field(default_factory=dict)
    max_epochs: dict[str, float] = dataclasses.field(default_factory=dict)
    decoder_start: str = "eos"
    prepare_limit_mb: float = operational(200.0)
    prefetch: int = operational(2)

    def __post_init__(self) -> None:
        check_types(self)
        if self.chunk_length < 8:
            raise ValueError(f"DataConfig.chunk_length must be at least 8 tokens, found {self.chunk_length}")
        if self.prefetch < 1:
            raise ValueError(f"DataConfig.prefetch must be at least 1, found {self.prefetch}")
        if not self.objective_batch_sizes:
            raise ValueError("DataConfig.objective_batch_sizes is empty: name at least one objective")
        complete = ("objective_batch_sizes", "noise_densities", "mean_span_lengths", "sampling_exponents")
        for field in (*complete, "max_epochs", "warm_epochs"):
            for name in getattr(self, field):
                if name not in OBJECTIVES:
                    raise ValueError(f"DataConfig.{field}: unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
        for name, epochs in self.warm_epochs.items():
            if not 0 <= epochs < 1000:
                raise ValueError(f"DataConfig.warm_epochs[{name!r}] must lie in [0, 1000), found {epochs}")
            if epochs and (name in self.max_epochs or self.sampling_exponents.get(name, 1.0) <= 0):
                raise ValueError(
                    f"DataConfig.warm_epochs[{name!r}]: the temperature rises to 1 / sampling_exponents[{name!r}], which "
                    "must be above 0, and rates that change cannot keep max_epochs"
                )
        for name, limit in self.max_epochs.items():
            if not limit > 0:
                raise ValueError(f"DataConfig.max_epochs[{name!r}] must be above 0, found {limit}")
        for field in complete:
            # Nothing is masked there, and its tasks are as large as they are.
            if missing := set(self.objective_batch_sizes) - set(getattr(self, field)) - {SEQUENCE_TO_SEQUENCE}:
                raise ValueError(f"DataConfig.{field} says nothing of {', '.join(sorted(missing))}")
        for name, size in self.objective_batch_sizes.items():
            if size < 1:
                raise ValueError(f"DataConfig.objective_batch_sizes[{name!r}] must be at least 1, found {size}")
        if self.decoder_start not in DECODER_STARTS:
            raise ValueError(
                f"DataConfig.decoder_start must be one of {', '.join(DECODER_STARTS)}, found {self.decoder_start!r}"
            )
        if SEQUENCE_TO_SEQUENCE in self.objective_batch_sizes and self.decoder_start != "eos":
            raise ValueError(
                f'DataConfig.decoder_start must be "eos" for {SEQUENCE_TO_SEQUENCE}: decoding starts from it, and it tells '
                f"the examples of a row apart; found {self.decoder_start!r}"
            )
        module = self.task_module
        if module is not None and (module.endswith(".py") or not all(map(str.isidentifier, module.split(".")))):
            raise ValueError(
                f'DataConfig.task_module must be the name of a module, such as "my_tasks" for my_tasks.py, found {module!r}'
            )
        for name in ("data_dir", "prepared_dir"):
            if "://" in (getattr(self, name) or ""):
                raise ValueError(
                    f"DataConfig.{name} must be a folder of a file system that every process sees, found "
                    f"{getattr(self, name)!r}: copy it to a disk, or mount it (gcsfuse for gs://)"
                )
        if self.mask_sides != "both" and "translation_span_corruption" not in self.objective_batch_sizes:
            raise ValueError(
                f"DataConfig.mask_sides is {self.mask_sides!r}, but translation_span_corruption, which alone has sides, "
                "is not among DataConfig.objective_batch_sizes"
            )
        try:
            objectives, raw_lengths = self.objectives(), self.raw_lengths()
        except ValueError as error:  # densities, span lengths, sizing, sides: named as the fields are
            raise ValueError(f"DataConfig: {error}") from error
        for name, objective in objectives.items():
            if (needed := objective.corruption.max_sentinels(raw_lengths[name])) > self.num_sentinels:
                raise ValueError(
                    f"{name} of up to {raw_lengths[name]} tokens needs {needed} sentinels, but DataConfig.num_sentinels is "
                    f"{self.num_sentinels}: raise it (the data is then prepared with as many, and ModelConfig.vocab_size "
                    "grows), lower DataConfig.chunk_length or the noise density, or raise the mean span length"
                )

    def objectives(self, planned_steps: int | None = None) -> dict[str, Objective]:
        """How each objective is drawn, in the order of `objective_batch_sizes`.

        Args:
          planned_steps: what `max_epochs` is for; None: it is not kept, which is enough for shapes.
        """

        def settings(name: str) -> dict[str, Any]:
            if name == SEQUENCE_TO_SEQUENCE:
                return {"source_length": self.source_length, "target_length": self.target_length}
            return {
                "noise_density": self.noise_densities[name],
                "mean_span_length": self.mean_span_lengths[name],
                "sizing": self.sizing,
                "mask_sides": self.mask_sides,
            }

        return {
            name: Objective(
                make_objective(name, **settings(name)),
                batch_size,
                self.sampling_exponents.get(name, 1.0),
                max_epochs=self.max_epochs.get(name) if planned_steps else None,
                planned_steps=planned_steps,
                warm_epochs=self.warm_epochs.get(name, 0.0),
            )
            for name, batch_size in self.objective_batch_sizes.items()
        }

    def packed_objectives(self) -> tuple[str, ...]:
        """Those whose rows hold several examples, which the model keeps apart."""
        return tuple(name for name in self.objective_batch_sizes if OBJECTIVES[name].packed)

    def raw_lengths(self) -> dict[str, int]:
        """Per objective, tokens in a full chunk before corruption: the length its data is prepared with."""
        return {n: o.corruption.raw_length(self.chunk_length) for n, o in self.objectives().items()}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Per objective, the static lengths of inputs and targets."""
        raw = self.raw_lengths()
        return {n: o.corruption.lengths(raw[n]) for n, o in self.objectives().items()}


def _each(span_corruption: Any, translation_span_corruption: Any) -> dict[str, Any]:
    return {"span_corruption": span_corruption, "translation_span_corruption": translation_span_corruption}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run itself.

    Attributes:
      steps: length of the run in optimizer updates (paper: 600,000). A finished run goes on if it is raised; the learning
        rate follows `OptimizerConfig.decay_steps`.
      seed: seed of initialisation, dropout, data order and masks.
      init_from: where the parameters start: "random", a model's folder (`python -m deltalm_jax.convert --to=native`), or
        another run's directory. Must be said. Read at the first step only.
      stop_at_step: stop (with a checkpoint, without the last validation) after this many steps in all; None runs on to
        `steps`.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      checkpoint_minutes: a checkpoint is also begun when the last is so old (looked at every `check_every` steps). Such a
        one, like that of a stop, is temporary: it goes when there is a newer one. None: none is begun so.
      keep_checkpoints: newest checkpoints kept, besides a temporary one.
      keep_checkpoint_every: checkpoints at multiples of this many steps are kept for good; None keeps none so.
      eval_every: steps between validations; the last step is always validated; 0: only that one.
      eval_batches: validation batches of each objective at most.
      select_by: which validation is the best, and its checkpoint kept until there is a better one: by "loss"; or, in fine-
        tuning, by a score of what the model writes for held-out sources: "bleu", "chrf++", "rougeL" … (docs/tasks.md). None:
        none is.
      select_examples: held-out examples that are decoded for it, greedily.
      patience: stop after so many validations in a row without a better one; None: run on to the end.
      log_every: steps between lines of progress where there is no terminal. `metrics.jsonl` has every step.
      check_every: steps between looks at the whole: the state's copies on all devices are compared bit by bit, processes tell
        one another how long they take, and the age of the last checkpoint is looked at.
      max_skipped_in_a_row: an update with loss or gradient that is not finite is left out; if more in a row are, the run
        stops.
      spike_factor: a loss above this many times the median of the last `spike_window` steps is a spike: the run goes back to
        its newest checkpoint, and the batches from there to the spike are left out. 0: off.
      spike_window: steps that the median is of.
      skipped_data: batches to leave out, {first: one past the last}, counted from 0; what a run left out itself is in its
        checkpoints and in RUN_DIR/rewinds.jsonl, and given here it makes another run take the same batches.
      hang_limit: seconds that a step may take before the process is taken to hang: it then prints where all its threads are,
        and ends with exit code 70. Restoring, compiling, validating and saving may take six times as long. 0: off.
      accumulation_steps: microbatches that the batch is worked off in, for less memory; loss and update are the same
        (to rounding). Each batch size must divide by this times the devices that share it.
      tensorboard: whether the numbers of `metrics.jsonl` also go to RUN_DIR/tensorboard.
      compilation_cache: whether compiled steps are kept in the run directory, so that a restart is quick.
    """

    steps: int = operational(600_000)
    seed: int = 0
    init_from: str | None = None
    stop_at_step: int | None = operational(None)
    checkpoint_every: int = operational(1000)
    checkpoint_minutes: float | None = operational(None)
    keep_checkpoints: int = operational(3)
    keep_checkpoint_every: int | None = operational(None)
    eval_every: int = operational(5000)
    eval_batches: int = operational(16)
    select_by: str | None = operational(None)
    select_examples: int = operational(200)
    patience: int | None = operational(None)
    log_every: int = operational(50)
    check_every: int = operational(100)
    max_skipped_in_a_row: int = operational(5)
    spike_factor: float = operational(0.0)
    spike_window: int = operational(100)
    skipped_data: dict[int, int] = dataclasses.field(default_factory=dict)
    hang_limit: float = operational(600.0)
    accumulation_steps: int = operational(1)
    tensorboard: bool = operational(True)
    compilation_cache: bool = operational(True)

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "steps",
            "checkpoint_every",
            "keep_checkpoints",
            "eval_batches",
            "select_examples",
            "log_every",
            "check_every",
            "spike_window",
            "accumulation_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("seed", "eval_every", "max_skipped_in_a_row"):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name} must not be negative, found {getattr(self, name)}")
        if self.patience is not None and self.select_by is None:
            raise ValueError("TrainConfig.patience waits for a better validation: say by what, TrainConfig.select_by")
        for name in ("stop_at_step", "keep_checkpoint_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"TrainConfig.{name} must be at least 1 or None, found {value}")
        if self.checkpoint_minutes is not None and self.checkpoint_minutes <= 0:
            raise ValueError(f"TrainConfig.checkpoint_minutes must be above 0 or None, found {self.checkpoint_minutes}")
        if self.hang_limit < 0:
            raise ValueError(f"TrainConfig.hang_limit must not be negative, found {self.hang_limit}")
        if self.spike_factor and self.spike_factor <= 1:
            raise ValueError(f"TrainConfig.spike_factor must be above 1, or 0 for off, found {self.spike_factor}")
        try:
            DataOrder.of(self.skipped_data)
        except ValueError as error:
            raise ValueError(f"TrainConfig.skipped_data: {error}") from error
        if self.init_from is None:
            raise ValueError(
                'TrainConfig.init_from is not set: say where the parameters start, "random" or the folder of a model'
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """All configuration of a run, and where each value came from.

    Attributes:
      name: the run's name, from the (last) gin file's.
      origins: "Class.field" → "file:line", "command line" or "default".
    """

    name: str
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    mesh: MeshConfig
    train: TrainConfig
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (inputs, targets) in self.data.shapes().items():
            if max(inputs, targets) > self.model.max_length:
                setting = f"DataConfig.chunk_length is {self.data.chunk_length}, which gives {name}"
                if name == SEQUENCE_TO_SEQUENCE:
                    setting = f"DataConfig.source_length and target_length give {name}"
                raise ValueError(
                    f"{setting} inputs of up to {inputs} and targets of up to {targets} tokens, but ModelConfig.max_length "
                    f"has positions for {self.model.max_length} tokens only: lower the first or raise the second"
                )
        if unknown := set(self.loss.objective_weights) - set(self.data.objective_batch_sizes):
            raise ValueError(
                f"LossConfig.objective_weights names {', '.join(sorted(unknown))}, but the objectives are "
                f"{', '.join(self.data.objective_batch_sizes)} (DataConfig.objective_batch_sizes)"
            )
        if not any(self.loss.weight(name) for name in self.data.objective_batch_sizes):
            raise ValueError("LossConfig.objective_weights are all 0: nothing would be learned")
        if self.train.stop_at_step is not None and self.train.stop_at_step > self.train.steps:
            raise ValueError(
                f"TrainConfig.stop_at_step ({self.train.stop_at_step}) lies beyond TrainConfig.steps ({self.train.steps})"
            )

    def objectives(self) -> dict[str, Objective]:
        """How each objective is drawn, in the order of `DataConfig.objective_batch_sizes`."""
        return self.data.objectives(self.optimizer.decay_steps)

    def step_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Per objective, what the model works on in a step: global batch, encoder length and decoder length."""
        shorter = int(self.data.decoder_start == "first_target")
        return {
            name: (self.data.objective_batch_sizes[name], inputs, targets - shorter)
            for name, (inputs, targets) in self.data.shapes().items()
        }

    def sections(self) -> dict[str, Any]:
        """{class name: instance}, in the order they are shown."""
        parts = (self.model, self.data, self.optimizer, self.loss, self.mesh, self.train, self.filters)
        return {type(part).__name__: part for part in parts}

    def values(self) -> dict[str, Any]:
        """{"Class.field": value} of every field, JSON-able."""
        return {
            f"{name}.{field.name}": _plain(getattr(section, field.name))
            for name, section in self.sections().items()
            for field in dataclasses.fields(section)
        }

    def steering(self) -> dict[str, Any]:
        """The part of `values` by which the processes of a run wait for one another: it must be the same on all of them."""
        paths = ("TrainConfig.init_from",)
        return {
            n: v for n, v in self.values().items() if n.startswith(("TrainConfig.", "MeshConfig.")) and n not in paths
        }

    def identity(self) -> dict[str, Any]:
        """The part of `values` that must stay the same when a run is resumed."""
        return {
            f"{name}.{field.name}": _plain(getattr(section, field.name))
            for name, section in self.sections().items()
            for field in dataclasses.fields(section)
            if not is_operational(field)
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""The configuration of a training run: what gin files bind. (`ModelConfig`, `MeshConfig` and
`FilterConfig` live beside what they shape.)"""

from __future__ import annotations

import dataclasses
from typing import Any

from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.stream import Objective
from deltalm_jax.fields import check_types, is_operational, operational
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.objectives import OBJECTIVES
from deltalm_jax.parallel.mesh import MeshConfig
from deltalm_jax.training.contrast import ContrastConfig
from deltalm_jax.training.data_config import SEQUENCE_TO_SEQUENCE, DataConfig
from deltalm_jax.training.data_order import DataOrder
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig

RANDOM = "random"


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
    contrast: ContrastConfig = dataclasses.field(default_factory=ContrastConfig)
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
        self._check_kinds()
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

    def _check_kinds(self) -> None:
        """Raises ValueError if an objective is not for this kind of model."""
        batch_sizes = self.data.objective_batch_sizes
        for name in batch_sizes:
            if (OBJECTIVES[name].kind == "sequence_to_sequence") == self.model.is_encoder:
                needs = "an encoder alone (ModelConfig.num_decoder_layers = 0)"
                raise ValueError(
                    f"DataConfig.objective_batch_sizes names {name}, which is for "
                    f"{'a model with a decoder' if self.model.is_encoder else needs}; found num_decoder_layers = "
                    f"{self.model.num_decoder_layers}"
                )
        contrasts = [name for name in batch_sizes if OBJECTIVES[name].kind == "contrast"]
        if len(contrasts) > 1:
            raise ValueError(f"one objective can fill the queue of keys, found {' and '.join(contrasts)}")
        if bool(contrasts) != bool(self.model.sentence_layer):
            raise ValueError(
                f"ModelConfig.sentence_layer is {self.model.sentence_layer}, and the objectives are {', '.join(batch_sizes)}"
                ": contrast of sentences needs a layer to compare them at (InfoXLM-base: 8), and no other objective has one"
            )
        if contrasts and (size := batch_sizes[contrasts[0]]) > self.contrast.queue_size:
            raise ValueError(
                f"DataConfig.objective_batch_sizes[{contrasts[0]!r}] is {size}, more keys than the queue holds: raise "
                f"ContrastConfig.queue_size ({self.contrast.queue_size}) or lower it"
            )

    @property
    def contrast_or_none(self) -> ContrastConfig | None:
        """What contrast goes by, where there is an objective of that kind."""
        return self.contrast if self.model.sentence_layer else None

    def objectives(self) -> dict[str, Objective]:
        """How each objective is drawn, in the order of `DataConfig.objective_batch_sizes`."""
        return self.data.objectives(self.optimizer.decay_steps)

    def step_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Per objective, what the model works on in a step: global batch, encoder length, and what is predicted of a row.

        Of contrast, nothing is predicted by the output layer: 0.
        """
        shorter = int(self.data.decoder_start == "first_target")
        groups, shapes = self.data.groups(), {}
        for name, (inputs, targets) in self.data.shapes().items():
            predicted = {
                "sequence_to_sequence": targets - shorter,
                "masked_language_model": groups[name].most_targets,
                "contrast": 0,
            }
            shapes[name] = self.data.objective_batch_sizes[name], inputs, predicted[groups[name].kind]
        return shapes

    def sections(self) -> dict[str, Any]:
        """{class name: instance}, in the order they are shown."""
        parts = (self.model, self.data, self.optimizer, self.loss, self.mesh, self.train, self.filters, self.contrast)
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

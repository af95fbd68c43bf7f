"""The part of a run's configuration that says what it is trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

from deltalm_jax.data.stream import Objective
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS
from deltalm_jax.fields import check_types, operational
from deltalm_jax.objectives import OBJECTIVES, MaskedLanguageModel, make_objective
from deltalm_jax.training.group_gradients import DECODER_STARTS, Group

SAMPLE = "sample"
SEQUENCE_TO_SEQUENCE = "sequence_to_sequence"
SPAN_CORRUPTIONS = ("span_corruption", "translation_span_corruption")


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
      noise_densities: share of tokens masked (paper: 15 % and 50 %); of the encoder's objectives 15 %, if they are not named.
      mean_span_lengths: mean length of masked spans in tokens (paper: 3).
      sampling_exponents: a language's rate is proportional to (its tokens) ** exponent. Not stated; XLM-R and mT5 used
        0.3. (A temperature T, as of multilingual translation, is the exponent 1 / T.) Of sequence_to_sequence 1, if it is not
        named.
      warm_epochs: epochs of an objective's data over which its temperature rises from 1 (XLM-T: 5, to a temperature of 5, for
        multilingual translation); of those named.
      max_epochs: how often a task's text may be seen in `OptimizerConfig.decay_steps` steps; what a small language does not
        get then goes to the others. An objective that is not named has no limit. The paper states none.
      sentence_length: of cross_lingual_contrast, most tokens of a row's two sentences; what is longer is cut.
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
    sentence_length: int = 256
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
            # Elsewhere there are no spans, what is masked has a default, and examples' tasks are as large as they are.
            drawn = set(SPAN_CORRUPTIONS) if field in complete[1:3] else set(OBJECTIVES) - {SEQUENCE_TO_SEQUENCE}
            if missing := (set(self.objective_batch_sizes) & drawn) - set(getattr(self, field)):
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
            if name not in SPAN_CORRUPTIONS:
                asked = {"noise_density": self.noise_densities[name]} if name in self.noise_densities else {}
                return asked | ({"side_length": self.sentence_length} if OBJECTIVES[name].kind == "contrast" else {})
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

    def groups(self) -> dict[str, Group]:
        """What the step has to know of each objective."""
        objectives, lengths = self.objectives(), self.raw_lengths()

        def most_targets(name: str) -> int:
            corruption = objectives[name].corruption
            return corruption.most_targets(lengths[name]) if isinstance(corruption, MaskedLanguageModel) else 0

        return {n: Group(OBJECTIVES[n].kind, OBJECTIVES[n].packed, most_targets(n)) for n in self.objective_batch_sizes}

    def raw_lengths(self) -> dict[str, int]:
        """Per objective, tokens in a full chunk before corruption: the length its data is prepared with."""
        return {n: o.corruption.raw_length(self.chunk_length) for n, o in self.objectives().items()}

    def chunk_lengths(self) -> dict[str, int]:
        """The same by the objective whose chunks they are, as data are prepared: several may take the same chunks."""
        return {OBJECTIVES[name].chunks_of: length for name, length in self.raw_lengths().items()}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Per objective, the static lengths of inputs and targets."""
        raw = self.raw_lengths()
        return {n: o.corruption.lengths(raw[n]) for n, o in self.objectives().items()}


def _each(span_corruption: Any, translation_span_corruption: Any) -> dict[str, Any]:
    return {"span_corruption": span_corruption, "translation_span_corruption": translation_span_corruption}

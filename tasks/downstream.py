"""The six downstream tasks of DeltaLM's paper as seqio Tasks: what is read, how it is tokenised, and what it is scored by.

`register_downstream(data_dir, vocabulary)` registers them all for a folder; docs/tasks.md says what lies where. An example
goes through two steps: text (`source`, `target`, and `references` to score against), and then `inputs` and `targets`, ids
that each end in `</s>`. A text that is too long is cut before `</s>` is put to it; the example says how much was cut.

Shapes: S inputs, T targets, R references.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.paths import absolute, as_path
from tasks.data_to_text import webnlg
from tasks.downstream_spec import DownstreamSpec
from tasks.languages import Codes, load_languages
from tasks.metrics import metric_fn
from tasks.preprocessors import encode_examples
from tasks.question_generation import xqg
from tasks.registries import add_mixture, remove_tasks
from tasks.summarization import wiki_lingua, xgiga
from tasks.text import TextTask
from tasks.translation import TARGET_TAG, WMT10, Wmt10Language, wmt10, wmt10_rates

# What `register_downstream` looks into; one of them makes a folder one of downstream tasks.
FOLDERS = ("wmt10", "xqg", "xgiga", "wiki_lingua", "webnlg")

_OBJECTIVE = "sequence_to_sequence"
_EOS, _BOS = "</s>", "<s>"

Preprocessor = Callable[..., tf.data.Dataset]


class DownstreamTask(TextTask):
    """A seqio Task from text to text, which `deltalm_jax.prepare` can prepare.

    Attributes:
      language: of the target; of translation and cross-lingual tasks "cs-en", source and target.
      metrics: what it is scored by, keys of `deltalm_jax.evaluation.metrics.METRICS`.
      source_length, target_length: most ids of `inputs` and `targets`, `</s>` included.
      source_prefix: text that stands before every source.
    """

    def __init__(
        self,
        *,
        metrics: Sequence[str],
        source_length: int,
        target_length: int,
        source_prefix: str,
        **arguments: Any,
    ):
        """`arguments` are those of `TextTask`."""
        super().__init__(**arguments)
        self.metrics = tuple(metrics)
        self.source_length = source_length
        self.target_length = target_length
        self.source_prefix = source_prefix


def register_downstream(
    data_dir: str | Path,
    vocabulary: Vocabulary | str | Path,
    *,
    target_tag: str | None = TARGET_TAG,
    wmt10_languages: Sequence[Wmt10Language] = WMT10,
) -> list[str]:
    """Registers the tasks of all six evaluations, in place of those of an earlier call, and the mixtures of WMT-10.

    Nothing is read or looked for: that comes when a task is opened, which then says what is missing.

    Args:
      data_dir: folder with `wmt10/`, `xqg/`, `xgiga/`, `wiki_lingua/`, `webnlg/` (any of them), and it may be
        `tensorflow_datasets/`; see docs/tasks.md.
      vocabulary: a vocabulary, or the path of its SentencePiece model.
      target_tag: put before the source of translations from English, `{target}` standing for the language's code; None: none,
        for models of one direction.
      wmt10_languages: years, test sets and published sizes; for corrections.

    Returns:
      Names of Tasks, then of Mixtures (`wmt10_x2en`, `wmt10_en2x`, `wmt10_all`).
    """
    vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)
    data_dir = absolute(as_path(data_dir))
    remove_tasks(n for n in list(seqio.TaskRegistry.names()) if isinstance(seqio.TaskRegistry.get(n), DownstreamTask))
    specs: list[DownstreamSpec] = [
        *wmt10(data_dir, wmt10_languages, target_tag),
        *xqg(data_dir),
        *xgiga(data_dir),
        *wiki_lingua(data_dir),
        *webnlg(data_dir),
    ]
    for spec in specs:
        fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        add_downstream_task(**fields, vocabulary=vocabulary)
    mixtures = wmt10_rates(wmt10_languages)
    for name, rates in mixtures.items():
        add_mixture(name, list(rates.items()))
    return [*(spec.name for spec in specs), *mixtures]


def add_downstream_task(
    name: str,
    source: seqio.DataSource,
    *,
    language: str,
    metrics: Sequence[str],
    vocabulary: Vocabulary | str | Path,
    source_length: int,
    target_length: int,
    preprocessors: Sequence[Preprocessor] = (),
    source_prefix: str = "",
    groups: Mapping[str, str] | None = None,
) -> DownstreamTask:
    """Registers a task from text to text over any seqio source.

    Args:
      name: of the Task; letters, digits and underscores.
      source: any seqio source. The splits that exist are its own.
      language: of the target; "cs-en" where source and target have two.
      metrics: keys of `deltalm_jax.evaluation.metrics.METRICS`; also the Task's `metric_fns`.
      vocabulary: a vocabulary, or the path of its SentencePiece model.
      source_length, target_length: most ids of `inputs` and `targets`, `</s>` included; a smaller `sequence_length` of
        seqio's goes before.
      preprocessors: seqio preprocessors that turn the source's examples into `{"source", "target"}`, strings, and where there
        are several, `references`, a vector of strings [R].
      source_prefix: text put before every source.
      groups: kind of group → group, for validation by groups of languages. Default: `tasks.languages` has script and resource
        level for the target's language, if it is one of its.

    Raises:
      ValueError: a name that is taken, or lengths without room for text.
      MetricError: an unknown metric.
    """
    for field, length in (("source_length", source_length), ("target_length", target_length)):
        if length < 2:
            raise ValueError(f"task {name}: expected {field} to have room for text and </s>, found {length}.")
    vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)
    target_language = language.rsplit("-", 1)[-1]
    if groups is None:
        codes = Codes(load_languages())
        code = codes.find(target_language)
        groups = codes.table[code].groups if code in codes.table else {}
    text = (
        *preprocessors,
        functools.partial(complete, source_prefix=source_prefix, language=target_language),
    )
    tokenized = functools.partial(
        encode_examples, name=name, vocabulary=vocabulary, source_length=source_length, target_length=target_length
    )
    feature = seqio.Feature(vocabulary.as_seqio(), add_eos=True, dtype=tf.int32)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[*text, tokenized],
        postprocess_fn=postprocess,
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[metric_fn(metric) for metric in metrics],
        task_cls=DownstreamTask,
        objective=_OBJECTIVE,
        language=language,
        groups=groups,
        vocabulary=vocabulary,
        text_preprocessors=text,
        metrics=metrics,
        source_length=source_length,
        target_length=target_length,
        source_prefix=source_prefix,
    )


def complete(dataset: tf.data.Dataset, *, source_prefix: str, language: str) -> tf.data.Dataset:
    """Examples with all fields of text: the prefix before `source`, `references` (default: the target alone), `language`."""

    def completed(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {
            **example,
            "source": tf.strings.join([source_prefix, example["source"]]),
            "references": example.get("references", example["target"][None]),
            "language": tf.constant(language),
        }

    return dataset.map(completed)


def postprocess(output: str, example: Mapping[str, Any], is_target: bool) -> str | list[str]:
    """What metrics compare: a target's references as they were read, not decoded from ids; an output's text up to `</s>`."""
    if is_target:
        return [bytes(reference).decode() for reference in example["references"]]
    return output_text(output)


def output_text(decoded: str) -> str:
    """The text of a decoded output: what stands before the first `</s>` that follows any text, without `<s>`.

    Decoders start from `</s>`, so one at the very beginning is not the end.
    """
    text = decoded.replace(_BOS, "").strip()
    while text.startswith(_EOS):
        text = text.removeprefix(_EOS).strip()
    return text.split(_EOS)[0].strip()


def count_cut(name: str, split: str, sequence_length: Mapping[str, int] | None = None) -> Counter[str]:
    """How much of a split does not fit: reads all of it.

    Args:
      name: of a Task of `add_downstream_task`.
      split: of its source.
      sequence_length: as for training; None: the Task's own lengths.

    Returns:
      "examples"; for `inputs` and `targets` each "…_cut_examples" (how many were cut) and "…_cut_ids" (ids left out).

    Raises:
      CorpusError: as the source.
    """
    counts: Counter[str] = Counter()
    dataset = seqio.TaskRegistry.get(name).get_dataset(sequence_length=sequence_length, split=split, shuffle=False)
    for example in dataset.as_numpy_iterator():
        counts["examples"] += 1
        for feature in ("inputs", "targets"):
            cut = int(example[f"{feature}_cut"])
            counts[f"{feature}_cut_examples"] += cut > 0
            counts[f"{feature}_cut_ids"] += cut
    return counts

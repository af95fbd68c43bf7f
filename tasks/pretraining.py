"""seqio Tasks and Mixtures of pretraining.

    import seqio, tasks
    mixture = seqio.get_mixture_or_task("deltalm_pretrain")
    dataset = mixture.get_dataset(sequence_length={"inputs": 461, "targets": 341}, split="train", seed=0)

One Task per language and corpus, `cc100_de`, `ccaligned_de`, with the splits train and validation; and the mixtures
`deltalm_span_corruption`, `deltalm_translation_span_corruption`, and `deltalm_pretrain` of both. Each example has
`inputs` and `targets`, int32 and without any id that the objective did not put there: no end-of-sequence id is added.

The Tasks read the corpora's own files through `deltalm_jax.data.readers`; there is no copy in between. The preparation
(`deltalm_jax.prepare`) recognises their `CorpusDataSource` and reads the files directly; training then needs no seqio.
Tasks of one's own, over any other seqio source, are registered with `add_task` (docs/own_data.md).

Trained through seqio, these Tasks mean the same but not bit for bit: seqio decides the order, and groups of documents
smaller than the preparation's are joined and packed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf
from absl import logging

from deltalm_jax.data.blocks import UNITS
from deltalm_jax.data.sampling import sampling_rates
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.objectives import SequenceToSequence, SpanCorruption, make_objective
from deltalm_jax.paths import as_path
from tasks.corpora import (
    CC100,
    CCALIGNED,
    CORPORA,
    SAMPLE_DIR,
    CorpusError,
    CorpusFiles,
    find_files,
    published_files,
    published_size,
    task_name,
)
from tasks.languages import Language, load_languages
from tasks.preprocessors import corrupt, cut_into_chunks, encode_examples, without_long_targets
from tasks.registries import add_mixture, remove_tasks
from tasks.source import CorpusDataSource
from tasks.text import TextTask

CHUNK_LENGTH = 512
# Rates inside an objective are (tokens) ** exponent. 0.3 is XLM-R's and mT5's; DeltaLM's is not published.
SAMPLING_EXPONENT = 0.3
TRANSLATION_SAMPLING_EXPONENT = 0.3
# Examples of each objective in a batch of 2,048; DeltaLM's ratio is not published.
OBJECTIVE_BATCH_SIZES = {"span_corruption": 1024, "translation_span_corruption": 1024}

PRETRAIN_MIXTURE = "deltalm_pretrain"
SAMPLE = "sample"
PAPER = "paper"


def register(
    data_dir: str | Path | None = None,
    vocabulary: Vocabulary | str | Path | None = None,
    languages: Sequence[str] | None = None,
    *,
    prepared: str | Path | Mapping[str, Any] | None = None,
    chunk_length: int = CHUNK_LENGTH,
    sizing: str = "raw",
    mask_sides: str = "both",
    sampling_exponent: float = SAMPLING_EXPONENT,
    translation_sampling_exponent: float = TRANSLATION_SAMPLING_EXPONENT,
    objective_batch_sizes: Mapping[str, int] | None = None,
) -> list[str]:
    """Registers all Tasks and Mixtures for a data folder, in place of those of an earlier call.

    Args:
      data_dir: folder laid out as `tasks.corpora` says, with any of the corpora; None: the shipped sample.
      vocabulary: a vocabulary or the path of its SentencePiece model; None or "sample": the sample's 8,000 pieces.
      languages: only these; each must be in one corpus at least. "paper" among them: the published files of XLM-R's 100
        languages in CC100 and of the 77 in CCAligned (which 77 is inferred), in `data_dir` or still to come: no file is
        looked at before a Task is read. Default: all that are there.
      prepared: folder of prepared data, or its manifest, for token counts.
      chunk_length, sizing, mask_sides: as in `deltalm_jax.training.config.DataConfig`.
      sampling_exponent: of the rates among the languages of span corruption.
      translation_sampling_exponent: of the rates among those of translation span corruption.
      objective_batch_sizes: examples of each objective in a batch; default `OBJECTIVE_BATCH_SIZES`.

    Returns:
      The names of the Mixtures. Where the folder has text for one objective only, only that one's.

    Token counts, from which the rates are computed, come from `prepared`; or, for the sample, from its
    `token_counts.json`; or, for the paper's languages, from the published sizes; or else from the sizes of the files
    (packed ones count three or four times). That is a proxy: a token is 3 to 6 bytes of text, so with exponent 0.3 a rate
    may be off by some 15 %. Prepare the data to have true ones.

    Raises:
      CorpusError: no files, or a language that is not there.
      ValueError: the manifest lacks a Task.
    """
    paper = languages is not None and PAPER in languages
    files = _published_files(data_dir, languages or ()) if paper else _find_all_files(data_dir, languages)
    if vocabulary is None:
        vocabulary = SAMPLE
        if data_dir is not None:
            logging.warning("No vocabulary given for %s: using the shipped sample's, of 8,000 pieces.", data_dir)
    vocabulary = _load_vocabulary(vocabulary)
    tokens = _token_counts(files, data_dir, prepared, paper)
    exponents = {
        "span_corruption": sampling_exponent,
        "translation_span_corruption": translation_sampling_exponent,
    }
    exponents["sequence_to_sequence"] = 1.0
    shares = dict(objective_batch_sizes or OBJECTIVE_BATCH_SIZES)

    table = load_languages()
    remove_tasks(name for name in list(seqio.TaskRegistry.names()) if corpus_of(seqio.TaskRegistry.get(name)))
    names_by_objective: dict[str, list[str]] = {}
    language_of: dict[str, str] = {}
    for corpus_name, corpus_files in files.items():
        corpus = CORPORA[corpus_name]
        names = [task_name(corpus_name, language) for language in corpus_files]
        for name, language in zip(names, corpus_files, strict=True):
            add_task(
                name,
                CorpusDataSource(corpus, corpus_files[language]),
                objective=corpus.objective,
                language=language,
                vocabulary=vocabulary,
                groups=_groups_of(language, table),
                chunk_length=chunk_length,
                sizing=sizing,
                mask_sides=mask_sides,
            )
        names_by_objective.setdefault(corpus.objective, []).extend(names)
        language_of |= dict(zip(names, corpus_files, strict=True))
    mixtures: list[str] = []
    pretrain_rates: list[tuple[str, float]] = []
    for objective, names in names_by_objective.items():
        counts, codes = [tokens[name] for name in names], [language_of[name] for name in names]
        rates = sampling_rates(counts, exponents[objective], codes)
        weighted = [(name, float(rate)) for name, rate in zip(names, rates, strict=True)]
        mixtures.append(f"deltalm_{objective}")
        add_mixture(mixtures[-1], weighted)
        if objective in shares:
            share = shares[objective] / sum(shares.values())
            pretrain_rates += [(name, rate * share) for name, rate in weighted]
    if set(names_by_objective) >= set(OBJECTIVE_BATCH_SIZES):
        mixtures.append(PRETRAIN_MIXTURE)
        add_mixture(PRETRAIN_MIXTURE, pretrain_rates)
    return mixtures


def add_task(
    name: str,
    source: seqio.DataSource,
    *,
    objective: str,
    language: str,
    vocabulary: Vocabulary | str | Path,
    preprocessors: Sequence[Callable[..., tf.data.Dataset]] = (),
    groups: Mapping[str, str] | None = None,
    chunk_length: int = CHUNK_LENGTH,
    sizing: str = "raw",
    mask_sides: str = "both",
) -> TextTask:
    """Registers a Task over any seqio source; an ordinary seqio Task, and one that `deltalm_jax.prepare` can prepare.

    Args:
      name: of the Task; letters, digits and underscores.
      source: any seqio source with the split "train". The held-out text is its split "validation"; where there is none,
        the preparation holds texts out by hash, as it does for files (for other users of seqio, all is then "train").
      objective: "span_corruption" over documents, "translation_span_corruption" over pairs, or "sequence_to_sequence" over
        examples; see `UNITS`.
      language: language code; of pairs, of the side that is not English.
      vocabulary: a vocabulary, the path of its SentencePiece model, or "sample". The preparation's has to be the same.
      preprocessors: seqio preprocessors that turn the source's examples into text: `{"text"}`, a document whose
        paragraphs are separated by line feeds, the pair `{"english", "other"}`, or the example `{"source", "target"}`;
        strings, in UTF-8. Chunks, and `inputs` and `targets`, are made from it here.
      groups: kind of group → group, for validation by groups of languages. Default: `tasks.languages` has script and
        resource level for its languages, and nothing for others.
      chunk_length, sizing, mask_sides: as in `deltalm_jax.training.config.DataConfig`, for users of seqio; a preparation
        and a training go by their own.

    Raises:
      ValueError: an unknown objective, or a name that is taken.
    """
    if objective not in UNITS:
        raise ValueError(f"task {name}: unknown objective {objective!r}; known: {', '.join(UNITS)}")
    vocabulary = _load_vocabulary(vocabulary)
    if groups is None:
        groups = _groups_of(language, load_languages())
    feature = seqio.Feature(vocabulary.as_seqio(), add_eos=False, dtype=tf.int32)
    corruption = make_objective(objective, sizing=sizing, mask_sides=mask_sides)
    steps: list[Callable[..., tf.data.Dataset]]
    if isinstance(corruption, SequenceToSequence):
        steps = [
            functools.partial(
                encode_examples,
                name=name,
                vocabulary=vocabulary,
                source_length=corruption.source_length,
                target_length=corruption.target_length,
            ),
            without_long_targets,
        ]
    else:
        assert isinstance(corruption, SpanCorruption), "that is what is left of `UNITS`"
        raw_length = corruption.raw_length(chunk_length)
        unit = UNITS[objective]
        steps = [
            functools.partial(cut_into_chunks, vocabulary=vocabulary, unit=unit, chunk_length=raw_length),
            functools.partial(
                corrupt, name=name, corruption=corruption, vocabulary=vocabulary, chunk_length=raw_length
            ),
        ]
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[*preprocessors, *steps],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
        task_cls=TextTask,
        objective=objective,
        language=language,
        groups=groups,
        vocabulary=vocabulary,
        text_preprocessors=preprocessors,
    )


def corpus_of(task: seqio.Task) -> CorpusDataSource | None:
    """The corpus behind a Task of `register`: its files are its text. None for all other Tasks."""
    source = task.source
    if isinstance(source, CorpusDataSource) and task.name == task_name(source.corpus.name, source.language):
        return source
    return None


def _groups_of(language: str, table: Mapping[str, Language]) -> dict[str, str]:
    return table[language].groups if language in table else {}


def _load_vocabulary(vocabulary: Vocabulary | str | Path) -> Vocabulary:
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    return Vocabulary.load(SAMPLE_DIR / "vocabulary.model" if vocabulary == SAMPLE else vocabulary)


def _find_all_files(data_dir: str | Path | None, languages: Sequence[str] | None) -> dict[str, dict[str, CorpusFiles]]:
    """Files by corpus and language; a corpus without files, or without the languages asked for, is left out."""
    folder = as_path(SAMPLE_DIR if data_dir is None else data_dir)
    present = {name: find_files(data_dir, name) for name in CORPORA if (folder / name).is_dir()}
    if not present:
        names = ", ".join(CORPORA)
        raise CorpusError(
            f"{folder.absolute()}: expected a folder with one or more of the folders {names} in it, found "
            f"{'none of them' if folder.is_dir() else 'no such folder'}. docs/corpora.md says what they hold: "
            "cc100/de.txt.xz, for example, or text/sw.txt for text of your own. "
            "To try things out, leave the data folder out: a small sample comes with the project."
        )
    if languages is None:
        return present
    known = {code for files in present.values() for code in files}
    if not languages or (missing := [code for code in languages if code not in known]):
        find_files(data_dir, next(iter(present)), missing if languages else [])  # raises, with the nearest codes
    chosen = {name: {c: f for c, f in files.items() if c in set(languages)} for name, files in present.items()}
    return {name: files for name, files in chosen.items() if files}


def _published_files(data_dir: str | Path | None, languages: Sequence[str]) -> dict[str, dict[str, CorpusFiles]]:
    if data_dir is None:
        raise CorpusError(
            f"languages = {PAPER!r} needs a data_dir: the folder where CC100 and CCAligned are, or will be."
        )
    more = [] if isinstance(languages, str) else [code for code in languages if code != PAPER]
    return {
        CC100.name: published_files(data_dir, CC100.name, more),
        CCALIGNED.name: published_files(data_dir, CCALIGNED.name, [code for code in more if code != "en"]),
    }


def _token_counts(
    files: Mapping[str, Mapping[str, CorpusFiles]],
    data_dir: str | Path | None,
    prepared: str | Path | Mapping[str, Any] | None,
    paper: bool,
) -> dict[str, float]:
    """Tokens of each Task, or what stands in for them: inside an objective only their ratios count."""
    by_task = {task_name(corpus, code): found for corpus, by_code in files.items() for code, found in by_code.items()}
    counts: dict[str, float]
    if prepared is not None:
        manifest = prepared
        if not isinstance(manifest, Mapping):
            manifest = dict(json.loads((as_path(manifest) / "manifest.json").read_text(encoding="utf-8")))
        counts = {name: task["splits"]["train"]["tokens"] for name, task in manifest["tasks"].items()}
    elif paper:
        counts = {task_name(corpus, code): published_size(corpus, code) for corpus, fs in files.items() for code in fs}
    elif data_dir is None:
        counts = json.loads((SAMPLE_DIR / "token_counts.json").read_text(encoding="utf-8"))
    else:
        counts = {name: found.text_bytes() for name, found in by_task.items()}
    if missing := sorted(name for name in by_task if not counts.get(name)):
        raise ValueError(
            f"No token counts for {', '.join(missing)}: they are not in the prepared data's manifest, or have no "
            "training tokens there. Prepare them, or leave the languages out."
        )
    return {name: counts[name] for name in by_task}

"""The commands find the downstream tasks by the folders of a data folder."""

from __future__ import annotations

from pathlib import Path

import seqio

import tasks
from deltalm_jax.data.mixture import Registration, inputs_of
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.evaluation.texts import from_task


def test_a_folder_of_downstream_data_alone(data_dir: Path, vocabulary: Vocabulary):
    registration = Registration(vocabulary, {"data_dir": str(data_dir), "languages": None})
    registration.register()
    (source,) = inputs_of("webnlg_en", registration)
    assert (source.task, source.objective, source.unit) == ("webnlg_en", "sequence_to_sequence", "examples")
    texts = from_task("webnlg_en", "test", registration)
    assert len(texts.sources) == len(texts.references) > 0
    assert texts.metrics == ("bleu", "chrf++", "rouge")
    assert "wmt10_x2en" in seqio.MixtureRegistry.names()


def test_beside_corpora_both_are_registered(data_dir: Path, vocabulary: Vocabulary):
    (data_dir / "text").mkdir()
    (data_dir / "text" / "sw.txt").write_text("habari\n\nnjema\n")
    try:
        Registration(vocabulary, {"data_dir": str(data_dir), "languages": None}).register()
        assert {"text_sw", "xqg_zh"} <= set(seqio.TaskRegistry.names())
    finally:
        tasks.register()

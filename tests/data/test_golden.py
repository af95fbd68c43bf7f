"""Drift of the tokeniser is noticed, wherever prepared data meet newly encoded text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from deltalm_jax.data import golden, preparation
from deltalm_jax.data.blocks import ExampleSettings
from deltalm_jax.data.filtering import Filtering
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.golden import GOLDEN_SENTENCES, drift, golden_digest
from deltalm_jax.data.prepare_part import Plan, WorkerMismatchError
from deltalm_jax.data.vocabulary import Vocabulary
from tests.support.toy_data import SAMPLE_VOCABULARY

# python -c "from tests.data.test_golden import *; print(golden_digest(Vocabulary.load(SAMPLE_VOCABULARY)))", with
# sentencepiece 0.2.1. Version 0.2.3 gives 7dd74acf6e1f….
SAMPLE_DIGEST = "8a930585f8dca4daeadb3ace3d6f7bf63341427dae34f73663d6ab8d674c1541"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


def test_the_sample_vocabulary_encodes_as_ever(vocabulary: Vocabulary) -> None:
    assert golden_digest(vocabulary) == SAMPLE_DIGEST
    assert golden_digest(Vocabulary.load(SAMPLE_VOCABULARY, num_sentinels=50)) == SAMPLE_DIGEST
    scripts = {chr(ord(c) & ~0x7F) for sentence in GOLDEN_SENTENCES for c in sentence if c.isalpha()}
    assert len(scripts) > 30  # blocks of 128 characters with letters in them


def test_drift_is_named(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {**vocabulary.describe(), "golden_encodings": golden_digest(vocabulary)}
    assert drift(described, vocabulary) is None
    assert drift(vocabulary.describe(), vocabulary) is None  # data of before say nothing
    monkeypatch.setattr(golden, "golden_digest", lambda _: "0" * 64)
    assert "encodes text differently here than version 0.2.1" in (drift(described, vocabulary) or "")


def test_a_worker_that_encodes_otherwise_refuses(vocabulary: Vocabulary, tmp_path: Path) -> None:
    described = {**vocabulary.describe(), "golden_encodings": golden_digest(vocabulary)}
    (tmp_path / "vocabulary.model").write_bytes(vocabulary.model)
    filtering = Filtering.start([], FilterConfig(), tmp_path, 0.0, 1, 1)
    plan = Plan((), tmp_path, tmp_path, described, {}, ExampleSettings(), 0.0, 1, 1, filtering)
    assert plan.load_vocabulary() == vocabulary
    for name in ("golden_encodings", "fingerprint"):
        other = dataclasses.replace(plan, vocabulary={**described, name: "0" * 64})
        with pytest.raises(WorkerMismatchError, match="encodes text differently .* install the same versions"):
            other.load_vocabulary()


def test_prepared_data_of_another_tokeniser_are_refused(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.data.test_restart import make_input, run

    source = make_input(tmp_path, files=1, lines=10)
    run(source, tmp_path / "out")
    monkeypatch.setattr(preparation, "golden_digest", lambda _: "0" * 64)
    with pytest.raises(preparation.PreparationError, match=r"ids of the golden sentences: \w+ there, 0+ .* asked for"):
        run(source, tmp_path / "out")

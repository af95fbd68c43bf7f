"""Validation: the unigram predictor and the text positions, by brute force on a toy corpus."""

from __future__ import annotations

import math
from collections import Counter

import jax
import numpy as np
import pytest

from deltalm_jax.data.stream import Objective, Stream
from deltalm_jax.objectives import SpanCorruption, TranslationSpanCorruption
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.training import evaluation
from deltalm_jax.training.evaluation import Evaluator
from tests.support.toy_data import write_toy_data

TASKS = {
    "a": ("span_corruption", 12, 13),
    "b": ("translation_span_corruption", 9, 0),
    "c": ("span_corruption", 9, 5),
    "d": ("span_corruption", 9, 3),
}
GROUPS = {"a": {"script": "Latn", "resource_level": "low"}, "c": {"script": "Cyrl"}, "d": {"script": "Latn"}}


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    prepared = write_toy_data(tmp_path_factory.mktemp("evaluation") / "data", TASKS, groups=GROUPS)
    objectives = {
        "span_corruption": Objective(SpanCorruption(), 8, 0.3),
        "translation_span_corruption": Objective(TranslationSpanCorruption(), 8, 0.3),
    }
    return Stream(prepared, objectives, seed=0)


def test_losses_and_the_unigram_predictor_by_brute_force(stream, monkeypatch):
    monkeypatch.setattr(evaluation, "_UNIGRAM_BATCHES", 5)

    def eval_step(group, params, arrays):
        """A model whose loss is the target's id, so that sums can be done by hand."""
        targets = np.asarray(arrays["targets"]).astype(np.float64)
        text = (targets > 0) & (targets < stream.sentinels[0])
        return {
            "nll": targets.sum(axis=1),
            "tokens": (targets > 0).sum(axis=1),
            "text_nll": (targets * text).sum(axis=1),
            "text_tokens": text.sum(axis=1),
        }

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    result = Evaluator(stream, eval_step, mesh, 8104, batches=10)(None)
    assert {k.split("/")[1] for k in result} == {"span_corruption"}, "no validation data, no numbers"

    targets = [
        t for i in range(3) for t in stream.validation_batch("span_corruption", i)["targets"].ravel().tolist() if t
    ]
    text = [t for t in targets if t < 8002]
    assert len(text) < len(targets)
    assert result["eval/span_corruption/loss"] == pytest.approx(np.mean(targets))
    assert result["eval/span_corruption/text_loss"] == pytest.approx(np.mean(text))

    trained = Counter(
        t for i in range(5) for t in stream.batch(i)["span_corruption"]["targets"].ravel().tolist() if 0 < t < 8002
    )
    total = sum(trained.values()) + 8001  # add-one over ids 1 … 8001, all that can be text
    wanted = -np.mean([math.log((trained[t] + 1) / total) for t in text])
    assert result["eval/span_corruption/unigram_loss"] == pytest.approx(wanted)

    rows: dict[str, list[int]] = {"script/Latn": [], "script/Cyrl": [], "resource_level/low": []}
    for index in range(3):
        batch = stream.validation_batch("span_corruption", index)
        for row_inputs, row_targets in zip(batch["inputs"], batch["targets"], strict=True):
            # A toy chunk's first id names its task, wherever the mask has put it.
            ids = {int(t) for t in (*row_inputs, *row_targets) if 4 <= t < 8}
            for task in ids:
                for kind, group in GROUPS[list(TASKS)[task - 4]].items():
                    rows[f"{kind}/{group}"] += [int(t) for t in row_targets if t]
    for group, ids in rows.items():
        assert result[f"eval/span_corruption/{group}/loss"] == pytest.approx(np.mean(ids)), group
        text = [t for t in ids if t < 8002]
        assert result[f"eval/span_corruption/{group}/text_loss"] == pytest.approx(np.mean(text)), group
    assert sum(key.count("/") == 4 for key in result) == 6

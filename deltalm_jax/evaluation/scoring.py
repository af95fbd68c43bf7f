"""Outputs on disk, their scores, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.decoding.job import Job, run
from deltalm_jax.evaluation.metrics import require, score
from deltalm_jax.evaluation.page import as_html
from deltalm_jax.evaluation.texts import EvaluationError, EvaluationSet
from deltalm_jax.saved_model import SavedModel

SOURCES, OUTPUTS, SCORES, PAGE = "sources.txt", "outputs.jsonl", "scores.json", "index.html"


def evaluate(
    texts: EvaluationSet, job: Job, metrics: Sequence[str], folder: Path, saved: SavedModel | None = None
) -> dict[str, Any]:
    """Decodes the sources and scores what comes out.

    In `folder`: sources.txt, outputs.jsonl (written by `decoding.job`, which goes on with it), scores.json, index.html.

    Args:
      texts: what to decode.
      job: with what and how; its input and output are set here.
      metrics: names of `deltalm_jax.evaluation.metrics.METRICS`.
      folder: made if absent.
      saved: as of `decoding.job.run`.

    Returns:
      What scores.json holds.

    Raises:
      MetricError: a metric that cannot be computed here; before anything is decoded.
      UserError: from decoding.
    """
    require(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SOURCES, "".join(f"{source}\n" for source in texts.sources))
    if (folder / SCORES).exists():  # finished, and asked for again: perhaps another model, or otherwise decoded
        (folder / SCORES).unlink()
        (folder / OUTPUTS).unlink(missing_ok=True)
    job = dataclasses.replace(job, input=folder / SOURCES, output=folder / OUTPUTS, output_format="jsonl")
    counts = run(job, saved)
    hypotheses = read_outputs(folder / OUTPUTS)
    result = {
        "task": texts.name,
        "split": texts.split,
        "checkpoint": str(job.checkpoint),
        "written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "examples": len(hypotheses),
        "scores": score_texts(hypotheses, texts.references, metrics),
        "outputs": {**about_outputs(texts, hypotheses), "sources_cut": counts.cut},
        "decoding": {
            field.name: value
            for field in dataclasses.fields(job)
            if isinstance(value := getattr(job, field.name), int | float | str) and value != field.default
        },
    }
    write_atomically(folder / SCORES, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / PAGE, as_html(result, texts, hypotheses))
    return result


def score_texts(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Every metric's scores and signatures: {name: {"score", "signature"}}."""
    scores: dict[str, dict[str, Any]] = {}
    for name in metrics:
        scores |= {key: dict(found) for key, found in score(name, hypotheses, references).items()}
    return scores


def about_outputs(texts: EvaluationSet, hypotheses: Sequence[str]) -> dict[str, Any]:
    """What scores do not tell: how many are empty, copies of the source, or repeat themselves; and how long they are."""
    words = sum(len(hypothesis.split()) for hypothesis in hypotheses)
    expected = sum(len(references[0].split()) for references in texts.references)
    return {
        "empty": sum(not hypothesis.strip() for hypothesis in hypotheses),
        "copies_of_source": sum(
            hypothesis.strip() == source.strip() != ""
            for hypothesis, source in zip(hypotheses, texts.sources, strict=True)
        ),
        "repetitive": sum(map(_repeats, hypotheses)),
        "length_ratio": words / max(expected, 1),
    }


def _repeats(text: str) -> bool:
    """Whether some four words in a row come up four times: a decoder that goes round in circles."""
    words = text.split()
    return max(Counter(zip(*(words[start:] for start in range(4)), strict=False)).values(), default=0) >= 4


def read_outputs(path: Path) -> list[str]:
    """The best hypothesis of each line of a file that `deltalm_jax.generate --output_format=jsonl` wrote.

    Raises:
      EvaluationError: the file is no such file; names the line.
    """
    texts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            hypotheses = json.loads(line)["hypotheses"]
            texts.append(str(hypotheses[0]["text"]) if hypotheses else "")
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: not as deltalm_jax.generate writes it ({error}); remove the file and start again"
            ) from error
    return texts

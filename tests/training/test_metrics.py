"""`metrics.jsonl`: cut back on resume, whole lines only, and the numbers of a line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deltalm_jax.training.metrics import MetricsFile, NonFiniteError, Reporter, evaluation_lines, metrics_line


def step_metrics(loss: float = 2.0) -> dict[str, np.ndarray]:
    return {
        "loss": np.float32(loss),
        "loss/span_corruption": np.float32(3.0),
        "learning_rate": np.float32(0.5),
        "grad_norm": np.float32(1.5),
        "input_tokens": np.int32(60),
        "target_tokens": np.float32(40),
        "batch_digest": np.array([1, 2**32 - 1], np.uint32),
    }


def test_a_line():
    assert metrics_line(7, step_metrics(), seconds=2.0, waited=0.5) == {
        "step": 7,
        "loss": 2.0,
        "loss/span_corruption": 3.0,
        "learning_rate": 0.5,
        "grad_norm": 1.5,
        "tokens_per_second": 50.0,
        "target_tokens_per_second": 20.0,
        "data_wait_fraction": 0.25,
        "step_seconds": 2.0,
        "batch_digest": "00000001ffffffff",
    }


def test_resuming_cuts_back_and_drops_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 1}\n{"step": 4, "lo')
    file = MetricsFile(path, resume_step=2)
    file.write({"step": 3, "loss": 1.25})
    file.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 2},
        {"step": 3, "loss": 1.25},
    ]


def test_every_line_is_json_that_any_reader_takes(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    file.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": "nan", "grad_norm": "inf"}


def test_a_step_is_reported_one_step_late_and_flushed_with_its_validation(tmp_path, capsys):
    reporter = Reporter(tmp_path, 0, 3, log_every=1, speaks=True)

    def written() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    reporter.step(1, step_metrics(), 0.0)
    assert written() == []
    reporter.step(2, step_metrics(), 0.0)
    assert written() == [1]
    reporter.flush({"eval/span_corruption/loss": 4.0})
    reporter.close()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["eval/span_corruption/loss"]) == (2, 4.0)
    assert "loss 2.000" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_is_written_then_raised(tmp_path, bad):
    reporter = Reporter(tmp_path, 0, 3, log_every=1, speaks=True)
    reporter.step(1, step_metrics(bad), 0.0)
    with pytest.raises(NonFiniteError, match="step 1: loss"):
        reporter.flush({})
    assert '"step": 1' in (tmp_path / "metrics.jsonl").read_text()


def test_other_processes_are_silent(tmp_path, capsys):
    reporter = Reporter(tmp_path, 0, 3, log_every=1, speaks=False)
    reporter.step(1, step_metrics(), 0.0)
    reporter.flush({})
    reporter.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("text_loss", "words"), [(6.0, "25.0% below it"), (10.0, "25.0% above it")])
def test_a_validation_reads_well(text_loss, words):
    evaluation = {"eval/a/loss": 5.0, "eval/a/text_loss": text_loss, "eval/a/unigram_loss": 8.0}
    (line,) = evaluation_lines(evaluation)
    assert line == f"validation a: loss 5.000; on text {text_loss:.3f} nats, unigram predictor 8.000 ({words})"

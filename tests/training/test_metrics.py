"""What is written of each step: cut back on resume, whole lines only, the numbers of a line, and TensorBoard's copy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.training.flops import Throughput, flops_per_step
from deltalm_jax.training.guards import Guard, LossSpike, NonFiniteError
from deltalm_jax.training.metrics import MetricsFile, TensorBoardFile, metrics_line
from deltalm_jax.training.reporting import Display, Reporter, evaluation_lines

MODEL = ModelConfig(hidden_size=64, num_heads=1, num_encoder_layers=1, num_decoder_layers=1, vocab_size=1000)
SHAPES = {"span_corruption": (2, 32, 24)}
UNKNOWN = Throughput(MODEL, SHAPES, None, "no peak known for devices of kind 'abacus'")


def step_metrics(loss: float = 2.0, skipped: int = 0) -> dict[str, np.ndarray]:
    return {
        "skipped": np.int32(skipped),
        "skipped_in_a_row": np.int32(skipped),
        "loss": np.float32(loss),
        "loss/span_corruption": np.float32(3.0),
        "learning_rate": np.float32(0.5),
        "grad_norm": np.float32(1.5),
        "input_tokens": np.int32(60),
        "input_tokens/span_corruption": np.int32(60),
        "target_tokens": np.float32(40),
        "target_tokens/span_corruption": np.float32(40),
        "padding_share": np.float32(0.125),
        "batch_digest": np.array([1, 2**32 - 1], np.uint32),
    }


def test_a_line():
    work = flops_per_step(MODEL, {"span_corruption": (2, 30, 20)})  # real tokens of each example
    padded = flops_per_step(MODEL, SHAPES)
    speed = Throughput(MODEL, SHAPES, peak_flops=2 * work.total)
    line = metrics_line(7, step_metrics(), seconds=2.0, waited=0.5, throughput=speed)
    assert line == {
        "step": 7,
        "loss": 2.0,
        "loss/span_corruption": 3.0,
        "learning_rate": 0.5,
        "grad_norm": 1.5,
        "tokens_per_second": 50.0,
        "target_tokens_per_second": 20.0,
        "padding_share": 0.125,
        "data_wait_fraction": 0.25,
        "step_seconds": 2.0,
        "mfu": 0.25,
        "mfu_full_attention": pytest.approx(0.25 * work.total_full_attention / work.total),
        "hfu": pytest.approx(0.25 * padded.total_full_attention / work.total),
        "skipped": 0,
        "skipped_in_a_row": 0,
        "batch_digest": "00000001ffffffff",
    }


def test_mfu_is_null_with_a_reason_where_the_peak_is_not_known():
    line = metrics_line(7, step_metrics(), seconds=2.0, waited=0.5, throughput=UNKNOWN)
    assert json.loads(json.dumps(line))["mfu"] is None
    assert line["mfu_reason"] == "no peak known for devices of kind 'abacus'"


def test_speed_on_the_screen_is_the_mean_of_the_last_steps(capsys):
    """Weighed by their time, without the first, which compiles: 10 tokens in 1 s and 90 in 9 s, 30 in 1 s and 10 in 3 s."""
    display = Display(5, 0, 2)
    for step, (tokens, seconds) in enumerate(((1, 100), (10, 1), (90, 9), (30, 1), (10, 3)), 1):
        line = {"step": step, "loss": 1.0, "tokens_per_second": tokens / seconds, "step_seconds": seconds}
        display.step(line | {"mfu": tokens / seconds / 100, "data_wait_fraction": 0.0})
    display.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("loss 1.000  ")[2].split("  ")[:2] for line in lines] == [
        ["0 tokens/s", "MFU 0.0%"],
        ["10 tokens/s", "MFU 10.0%"],
        ["12 tokens/s", "MFU 12.0%"],
        ["10 tokens/s", "MFU 10.0%"],
    ]


def test_forced_colours_do_not_make_a_bar_in_a_file(capsys, monkeypatch):
    """Notebooks and build servers set FORCE_COLOR; what is redrawn many times a second is of no use there."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display(1, 0, 1)
    display.step(
        {"step": 1, "loss": 1.0, "mfu": None, "tokens_per_second": 1.0, "step_seconds": 1.0, "data_wait_fraction": 0.0}
    )
    display.close()
    assert capsys.readouterr().out == "step      1/1  loss 1.000  1 tokens/s  waiting for data 0%  …\n"


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


def make_reporter(folder, start=0, speaks=True, tensorboard=True, guard=None):
    guard = guard or Guard(0, 0.0, 100)
    return Reporter(
        folder, start, 3, log_every=1, tensorboard=tensorboard, throughput=UNKNOWN, guard=guard, speaks=speaks
    )


def read_tensorboard(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard would show: name → step → value, read by TensorFlow from the event files in order of time."""
    import tensorflow as tf

    found: dict[str, dict[int, float]] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.HasField("session_log"):  # a purge: what came before of this step and later ones is void
                found = {n: {s: v for s, v in steps.items() if s < event.step} for n, steps in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_gets_the_numbers_and_forgets_what_a_resumed_run_does_again(tmp_path):
    first = TensorBoardFile(tmp_path / "tensorboard", 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step), "mfu": None, "batch_digest": "00ff"})
    first.close()
    second = TensorBoardFile(tmp_path / "tensorboard", 1)
    second.write({"step": 2, "loss": 20.0})
    second.close()
    assert read_tensorboard(tmp_path) == {"loss": {1: 1.0, 2: 20.0}}


@pytest.mark.parametrize("tensorboard", [True, False])
def test_tensorboard_can_be_left_out(tmp_path, tensorboard):
    make_reporter(tmp_path, tensorboard=tensorboard).close()
    assert (tmp_path / "tensorboard").exists() == tensorboard


def test_a_step_is_reported_one_step_late_and_flushed_with_its_validation(tmp_path, capsys):
    reporter = make_reporter(tmp_path)

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
def test_an_update_left_out_is_shown_and_one_too_many_written_then_raised(tmp_path, capsys, bad):
    reporter = make_reporter(tmp_path, guard=Guard(2, 0.0, 100))
    for number in (1, 2):
        reporter.step(number, step_metrics(bad, number), 0.0)
        reporter.flush({})
    assert (
        f"WARNING: step 2: loss {bad}, gradient norm 1.5: the update is left out (2 in a row" in capsys.readouterr().out
    )
    reporter.step(3, step_metrics(bad, 3), 0.0)
    with pytest.raises(NonFiniteError, match="step 3: loss .* 3 updates in a row were left out"):
        reporter.flush({})
    assert '"step": 3' in (tmp_path / "metrics.jsonl").read_text()


def look(guard: Guard, step: int, loss: float, skipped: int = 0) -> str | None:
    return guard.look({"step": step, "loss": loss, "grad_norm": 1.0, "skipped": skipped, "skipped_in_a_row": skipped})


def test_a_spike_is_measured_by_the_median_of_the_losses_before():
    guard = Guard(2, 3.0, 4, recent=[9.0, 2.0, 2.0])  # the last of an earlier life
    assert look(guard, 4, 30.0) is None, "nothing is a spike before the window is full"
    for step, loss in enumerate((2.0, 5.9, 2.0, float("inf")), 5):
        assert (look(guard, step, loss, skipped=int(loss > 100)) is None) == (loss < 100)
    assert list(guard.recent) == [30.0, 2.0, 5.9, 2.0], "an update left out is no part of the past"
    with pytest.raises(LossSpike, match="step 9: the loss leapt to 12, the median before it is 3.95") as spike:
        look(guard, 9, 12.0)
    assert (spike.value.step, spike.value.loss) == (9, 12.0)
    off = Guard(2, 0.0, 4)
    assert all(look(off, step, 10.0**step) is None for step in range(9))


def test_mean_times_are_of_the_steps_since_the_last_call(tmp_path):
    reporter = make_reporter(tmp_path)
    assert reporter.mean_times() == (0.0, 0.0, 0.0)
    for step, waited in ((1, 0.25), (2, 0.75)):
        reporter.step(step, step_metrics(), waited)
    whole, host, waited = reporter.mean_times()
    assert waited == 0.5
    assert 0 < host <= whole
    assert reporter.mean_times() == (0.0, 0.0, 0.0)


def test_other_processes_are_silent(tmp_path, capsys):
    reporter = make_reporter(tmp_path, speaks=False)
    reporter.step(1, step_metrics(), 0.0)
    reporter.flush({})
    reporter.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("text_loss", "words"), [(6.0, "25.0% below it"), (10.0, "25.0% above it")])
def test_a_validation_reads_well(text_loss, words):
    evaluation = {"eval/a/loss": 5.0, "eval/a/text_loss": text_loss, "eval/a/unigram_loss": 8.0}
    evaluation |= {"eval/a/script/Cyrl/loss": 1.0, "eval/a/script/Cyrl/text_loss": 6.125, "epochs/cc100_a": 3.0}
    evaluation |= {"eval/a/resource_level/low/text_loss": 7.0, "eval/a/script/Latn/text_loss": 5.5}
    first, *groups = evaluation_lines(evaluation, by_group=True)
    assert first == f"validation a: loss 5.000; on text {text_loss:.3f} nats, unigram predictor 8.000 ({words})"
    assert groups == ["  on text by script: Cyrl 6.12, Latn 5.50", "  on text by resource level: low 7.00"]
    assert evaluation_lines(evaluation, by_group=False) == [first]

"""Stopped at any point and started again, a run ends bit for bit where an undisturbed one does. Dropout is on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from deltalm_jax.train import main
from deltalm_jax.training.ownership import owned
from tests.support import runs
from tests.support.toy_data import write_toy_data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


@pytest.fixture(scope="module")
def undisturbed(place):
    """40 steps in one go."""
    done = runs.run(place / "whole", place / "data")
    assert done.returncode == 0, done.stderr
    return place / "whole"


def assert_same_run(ours, theirs, step=40):
    ours_lines, theirs_lines = runs.metrics(ours), runs.metrics(theirs)
    assert [line["step"] for line in ours_lines] == list(range(1, step + 1))
    for a, b in zip(ours_lines, theirs_lines[:step], strict=True):
        assert {k: a[k] for k in runs.SAME_METRICS} == {k: b[k] for k in runs.SAME_METRICS}
        assert {k: v for k, v in a.items() if k.startswith("eval/")} == {
            k: v for k, v in b.items() if k.startswith("eval/")
        }
    ours_state, theirs_state = runs.state(ours, step), runs.state(theirs, step)
    assert ours_state.keys() == theirs_state.keys()
    assert len(ours_state) > 100
    for name, value in ours_state.items():
        assert value.tobytes() == theirs_state[name].tobytes(), name


def wait_for_step(process, run_dir, step, limit=120.0):
    deadline = time.monotonic() + limit
    while not any(line["step"] >= step for line in complete_lines(run_dir)):
        assert process.poll() is None, f"ended early:\n{process.communicate()}"
        assert time.monotonic() < deadline, f"step {step} was not reached in {limit:.0f} s"
        time.sleep(0.01)


def complete_lines(run_dir):
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def start(place, name, *more):
    return subprocess.Popen(
        runs.command(place / name, place / "data", *more), env=runs.environment(), cwd=place,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_what_the_undisturbed_run_left(undisturbed):
    lines = runs.metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 41))
    wanted = {
        *runs.SAME_METRICS,
        "step",
        "tokens_per_second",
        "target_tokens_per_second",
        "data_wait_fraction",
        "step_seconds",
    }
    assert all(wanted <= line.keys() for line in lines)
    assert len({line["batch_digest"] for line in lines}) == 40
    assert {k for k in lines[19] if k.startswith("eval/")} == {
        f"eval/{o}/{m}"
        for o in ("span_corruption", "translation_span_corruption")
        for m in ("loss", "text_loss", "unigram_loss")
    }
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["30", "35", "40"], (
        "the newest three are kept"
    )


def test_killed_and_started_again_is_bit_equal(place, undisturbed):
    process = start(place, "killed")
    wait_for_step(process, place / "killed", 22)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = runs.run(place / "killed", place / "data")
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stdout
    assert_same_run(place / "killed", undisturbed)


@pytest.mark.parametrize(
    # Ctrl-C at other moments: test_signals.py.
    ("sent", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stop_saves_says_how_to_go_on_and_is_bit_equal(place, undisturbed, sent, code):
    """SIGTERM is preemption, SIGINT is Ctrl-C. The run goes on by the command that the message gives."""
    # Checkpoints far apart: the one at the stop can only come from the signal.
    process = start(place, sent.name, "TrainConfig.checkpoint_every=1000")
    wait_for_step(process, place / sent.name, 7)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    assert f"{sent.name}: stopped after step" in out
    (saved,) = (int(p.name) for p in (place / sent.name / "checkpoints").iterdir())
    assert saved == runs.metrics(place / sent.name)[-1]["step"] >= 7
    told = shlex.split(out.partition("to go on:\n")[2])
    assert told[:3] == ["python", "-m", "deltalm_jax.train"]
    again = subprocess.run(
        [sys.executable, *told[1:]], env=runs.environment(), cwd=place, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    assert f"resuming at step {saved}" in again.stdout
    assert_same_run(place / sent.name, undisturbed)


def test_a_second_sigterm_does_not_end_the_last_save(place, undisturbed):
    """Launchers often send two. The save is made slow, so that the second falls into it."""
    script = (
        "import sys, time; from deltalm_jax.training.checkpoint import Checkpoints as C; commit = C._commit;"
        "C._commit = lambda *a: (print('committing', flush=True), time.sleep(2), commit(*a));"
        "from deltalm_jax.train import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = runs.command(place / "twice", place / "data", "TrainConfig.checkpoint_every=1000")
    process = subprocess.Popen(
        [arguments[0], "-c", script, *arguments[3:]], env=runs.environment(), cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for_step(process, place / "twice", 3)
    process.send_signal(signal.SIGTERM)
    for line in process.stdout:
        if line.startswith("committing"):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert len(list((place / "twice" / "checkpoints").glob("*/record.json"))) == 1


def refusal(run_dir, data, capsys, *bindings):
    """What the command says; in this process, as nothing is compiled."""
    words = runs.command(run_dir, data, "TrainConfig.compilation_cache=False", *bindings)[3:]
    code = main(words)
    assert code == 2
    return capsys.readouterr().err


def test_a_second_run_in_the_same_directory_is_refused(place, capsys):
    process = start(place, "owned", "TrainConfig.steps=100000", "TrainConfig.eval_every=0")
    try:
        wait_for_step(process, place / "owned", 1)
        error = refusal(place / "owned", place / "data", capsys)
        assert f"process {process.pid}, since" in error
        assert "choose another --run_dir" in error
    finally:
        process.kill()
        process.communicate()
    with owned(place / "owned", None):  # or a lock would outlive its owner
        pass


def test_more_steps_go_on_from_a_finished_run_quickly_and_without_tensorflow(place, undisturbed, tmp_path):
    subprocess.run(["cp", "-r", str(undisturbed), str(tmp_path / "run")], check=True)
    script = (
        "import sys; from deltalm_jax.train import main; code = main(sys.argv[1:]);"
        "heavy = sorted({'tensorflow', 'seqio', 'apache_beam', 'tensorflow_datasets', 'torch'} & set(sys.modules));"
        "print('imported:', heavy); sys.exit(code)"
    )
    python, _, _, *flags = runs.command(tmp_path / "run", place / "data", "TrainConfig.steps=45")
    began = time.monotonic()
    done = subprocess.run(
        [python, "-c", script, *flags], env=runs.environment(), capture_output=True, text=True, timeout=120,
        cwd=place, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    assert "resuming at step 40" in done.stdout
    assert [line["step"] for line in runs.metrics(tmp_path / "run")] == list(range(1, 46))
    assert seconds < 30, f"five steps, a validation and a save after a restart took {seconds:.1f} s"


def test_stopping_at_a_step_does_not_move_the_schedule(place, undisturbed):
    first = runs.run(place / "parts", place / "data", "TrainConfig.stop_at_step=20")
    assert first.returncode == 0, first.stderr
    assert runs.metrics(place / "parts")[-1]["step"] == 20
    second = runs.run(place / "parts", place / "data")
    assert second.returncode == 0, second.stderr
    assert_same_run(place / "parts", undisturbed)


def newest_file(run_dir, step):
    files = [p for p in (run_dir / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    # By themselves: tests/training/test_checkpoint_record.py.
    "damage",
    ["flip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cut", "delete")), "no record", "empty folder"],
)
def test_a_damaged_newest_checkpoint_is_passed_over_loudly(place, undisturbed, damage, tmp_path):
    subprocess.run(["cp", "-r", str(undisturbed), str(tmp_path / "run")], check=True)
    run_dir = tmp_path / "run"
    if damage == "empty folder":
        (run_dir / "checkpoints" / "99").mkdir()
    elif damage == "no record":
        (run_dir / "checkpoints" / "40" / "record.json").unlink()
    else:
        path = newest_file(run_dir, 40)
        if damage == "flip":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-7])
        else:
            path.unlink()
    done = runs.run(run_dir, place / "data")
    assert done.returncode == 0, done.stderr
    if damage == "empty folder":
        assert "step 40 of 40 is reached already" in done.stdout
        return
    assert "resuming at step 35" in done.stdout
    if damage != "no record":
        assert "WARNING: checkpoint 40 is passed over" in done.stdout
        assert str(path) in done.stdout
    assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("TrainConfig.seed=3", "TrainConfig.seed: 0 in the checkpoint, 3 now"),
        ("OptimizerConfig.learning_rate=0.5", "OptimizerConfig.learning_rate: 0.002 in the checkpoint, 0.5 now"),
        ("ModelConfig.compute_dtype='bfloat16'", "compute_dtype: 'float32' in the checkpoint, 'bfloat16' now"),
        (
            "DataConfig.objective_batch_sizes={'span_corruption': 16, 'translation_span_corruption': 8}",
            "DataConfig.objective_batch_sizes: {'span_corruption': 8, 'translation_span_corruption': 8} in the checkpoint",
        ),
        ("ModelConfig.num_encoder_layers=3", "ModelConfig.num_encoder_layers: 2 in the checkpoint, 3 now"),
    ],
)
def test_going_on_as_another_run_is_refused_with_the_difference(place, undisturbed, change, line, capsys):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    error = refusal(undisturbed, place / "data", capsys, change)
    assert line in error
    assert error.count("\n") < 8, "one clear error, no trace"
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_other_data_is_refused(undisturbed, tmp_path, capsys):
    write_toy_data(tmp_path / "data", runs.TOY_TASKS | {"cc100_z": ("span_corruption", 4, 0)})
    assert "data: " in refusal(undisturbed, tmp_path / "data", capsys)

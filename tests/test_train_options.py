"""The options of training as the command passes them on: one run with all of them, against the step called by hand."""

from __future__ import annotations

import json

import jax
import pytest

from deltalm_jax.data.stream import Stream
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import put_batch
from deltalm_jax.train import main, parse_arguments
from deltalm_jax.training.eval_step import make_eval_step
from deltalm_jax.training.evaluation import Evaluator
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.step import initial_state, make_train_step
from tests.support import runs
from tests.support.toy_data import write_toy_data

OPTIONS = [
    "TrainConfig.steps=4",
    "TrainConfig.eval_every=2",
    "TrainConfig.accumulation_steps=2",
    "DataConfig.decoder_start=first_target",
    "LossConfig.label_smoothing=0.1",
    "LossConfig.z_loss=0.001",
    "LossConfig.objective_weights={'span_corruption': 2.5}",
    "OptimizerConfig.learning_rate=0.02",
    "OptimizerConfig.warmup_steps=1",
    "OptimizerConfig.ema_decay=0.5",
    "OptimizerConfig.layer_decay=0.5",
    "OptimizerConfig.learning_rate_factors={'bias': 0.0}",
    "OptimizerConfig.name=muon",
    "ModelConfig.remat=sublayer_outputs",
]
GROUPS = {"cc100_a": {"script": "Latn"}, "cc100_b": {"script": "Cyrl"}}


@pytest.fixture(scope="module", autouse=True)
def own_cache():
    """Here a run has the compilation cache that it has by itself."""
    with pytest.MonkeyPatch.context() as changes:
        changes.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, own_cache):
    """(run directory, output, data, configuration) of a run with every option."""
    place = tmp_path_factory.mktemp("options")
    data = write_toy_data(place / "data", runs.TOY_TASKS, groups=GROUPS)
    done = runs.run(place / "run", place / "data", *OPTIONS, "--profile_steps=2,3")
    assert done.returncode == 0, done.stderr
    return place / "run", done.stdout, data, load(["pretrain_tiny.gin"], [*runs.SMALL, *OPTIONS])


def test_every_option_reaches_the_step_and_the_validation(finished):
    run_dir, _, data, config = finished
    stream = Stream(data, config.objectives(), config.train.seed)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shared = {"compute_dtype": "float32", "decoder_start": "first_target"}
    step = make_train_step(
        config.model, config.optimizer, config.loss, mesh, seed=config.train.seed, accumulation_steps=2, **shared
    )
    evaluate = Evaluator(
        stream,
        make_eval_step(config.model, config.loss, mesh, sentinels=stream.sentinels, **shared),
        mesh,
        config.model.vocab_size,
        config.train.eval_batches,
    )
    state = initial_state(config.model, config.optimizer, config.train.seed, mesh)
    sizes = config.data.objective_batch_sizes
    lines = runs.metrics(run_dir)
    assert len(lines) == 4
    for index, line in enumerate(lines):
        with jax.set_mesh(mesh):
            state, metrics = step(state, put_batch(stream.batch(index), sizes, mesh))
        for name in ("loss", "grad_norm", "padding_share", "nll/span_corruption"):
            assert line[name] == pytest.approx(float(metrics[name]), rel=1e-4), (index, name)
    for line, done in ((lines[1], 2), (lines[3], 4)):
        epochs = {key.removeprefix("epochs/"): value for key, value in line.items() if key.startswith("epochs/")}
        assert epochs == stream.epochs(done)
    wanted = evaluate(state["ema"])
    found = {key: value for key, value in lines[3].items() if key.startswith("eval/")}
    assert found.keys() == wanted.keys()
    assert {"eval/span_corruption/script/Cyrl/loss", "eval/span_corruption/script/Latn/text_loss"} <= found.keys()
    for key in found:
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key
    last = evaluate(state["params"])["eval/span_corruption/loss"]
    assert abs(last - wanted["eval/span_corruption/loss"]) > 1e-3 * last, "the average is another model"


def test_predicted_epochs_and_rates_are_on_record(finished):
    run_dir, out, data, config = finished
    stream = Stream(data, config.objectives(), config.train.seed)
    record = json.loads((run_dir / "data.json").read_text())
    assert {task: entry["epochs"] for task, entry in record.items()} == stream.epochs(4)
    assert record["ccaligned_c"]["rate"] == 1.0
    assert "epochs in 4 steps, fewest and most: " in out


def test_the_steps_asked_for_are_traced(finished):
    run_dir, out, _, _ = finished
    assert f"steps 2 to 3 are recorded in {run_dir / 'profile'}" in out
    assert any(path.stat().st_size > 10_000 for path in (run_dir / "profile").rglob("*.xplane.pb"))


def test_tensorboard_files_are_written(finished):
    assert any(path.stat().st_size > 1_000 for path in (finished[0] / "tensorboard").iterdir())


def test_a_restart_finds_the_step_compiled_and_says_that_the_traced_steps_are_past(finished):
    """What is compiled comes from the run's cache: nothing new is written there."""
    run_dir, _, data, _ = finished
    cache = {path.name for path in (run_dir / "compilation_cache").iterdir() if path.name.endswith("-cache")}
    assert any("train_step" in name for name in cache)
    again = runs.run(run_dir, data.folder, *OPTIONS, "TrainConfig.steps=5", "--profile_steps=2,3")
    assert again.returncode == 0, again.stderr
    assert "resuming at step 4 of 5" in again.stdout
    assert "WARNING: no trace is recorded: steps (2, 3) do not all lie in 5 to 5" in again.stdout
    assert {path.name for path in (run_dir / "compilation_cache").iterdir() if path.name.endswith("-cache")} == cache


def test_a_dry_run_on_prepared_data_tells_all_and_writes_nothing(finished, tmp_path):
    _, _, data, config = finished
    told = runs.run(tmp_path / "run", data.folder, *OPTIONS, "--dry_run").stdout
    stream = Stream(data, config.objectives(), config.train.seed)
    for binding in OPTIONS:
        key, _, value = binding.partition("=")
        value = value if value[0] in "{0123456789" else repr(value)
        assert f"{key} = {value}  # command line" in told
    assert "learning rate ×" in told
    kernel = next(line for line in told.splitlines() if "encoder/layers/self_attention/query/kernel" in line)
    assert kernel.split()[1:] == ["2", "×", "16", "×", "16", "whole", "0.5", "1"], "the factor of each layer"
    for part in ("parameters", "muon", "moving average", "gradients", "logits of a loss block, at most"):
        assert f"{part} 0." in told or f"{part} 1." in told, part
    assert "in 2 microbatches of 4, 4 examples" in told
    (row,) = (line.split() for line in told.splitlines() if line.split()[:2] == ["span_corruption", "8"])
    assert row[2:5] == ["32", "29", "4"], (
        "raw tokens, inputs, targets: one target fewer, for the decoder starts from it"
    )
    # 2.5 · 4 targets beside 20.
    assert row[5] == "33.3%"
    assert f"cc100_a {stream.rates()['span_corruption']['cc100_a']:.1%}, cc100_b" in told
    assert "epochs in 4 steps, fewest and most: " in told
    assert told.count("first example of step 1 (task ") == 2
    assert not (tmp_path / "run").exists()


def test_profile_steps_that_make_no_sense_are_refused(capsys):
    for value in ("5", "3,2", "0,4", "a,b"):
        with pytest.raises(SystemExit) as stopped:
            parse_arguments(["--gin_file=pretrain_tiny.gin", f"--profile_steps={value}"])
        assert stopped.value.code == 2
        assert f"expected two steps such as 10,15, the first from 1, found '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("TrainConfig.accumulation_steps=3", "does not divide over slices × data × fsdp = 8 devices × 3 microbatches"),
        ("OptimizerConfig.learning_rate_factors={'encodr': 0.1}", "'encodr' is found in no parameter's path"),
        ("LossConfig.objective_weights={'masked_lm': 2.0}", "names masked_lm, but the objectives are span_corruption"),
        (
            "LossConfig.objective_weights={'span_corruption': 0.0, 'translation_span_corruption': 0.0}",
            "are all 0: nothing would be learned",
        ),
        ("DataConfig.decoder_start=bos", "decoder_start must be one of eos, first_target, found 'bos'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, binding, message):
    write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    assert main(runs.command(tmp_path / "run", tmp_path / "data", binding)[3:]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error

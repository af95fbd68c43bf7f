"""A model that learns twenty pairs by heart, through the commands that a user has: train, generate, evaluate.

What is off by one anywhere on the way (shift, `</s>`, mask, packing, prefix, vocabulary) shows as a BLEU below 100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

import tasks
from deltalm_jax import evaluate, load_model
from deltalm_jax.decoding import Generator, SearchOptions
from deltalm_jax.evaluation.scoring import about_outputs, read_outputs, score_texts
from deltalm_jax.evaluation.seqio_evaluator import no_scores, predict_fn
from deltalm_jax.evaluation.texts import EvaluationError, EvaluationSet, from_files
from tasks.downstream import add_downstream_task

_CONFIG = """
ModelConfig.vocab_size = 8104
ModelConfig.hidden_size = 64
ModelConfig.feed_forward_size = 128
ModelConfig.num_heads = 4
ModelConfig.num_encoder_layers = 2
ModelConfig.num_decoder_layers = 1
ModelConfig.max_length = 128
ModelConfig.scan_layers = False
ModelConfig.dropout_rate = 0.0
DataConfig.mixture = "deltalm_sequence_to_sequence"
DataConfig.vocabulary = "sample"
DataConfig.source_length = 128
DataConfig.target_length = 128
DataConfig.source_prefix = "__{target}__ "
DataConfig.objective_batch_sizes = {"sequence_to_sequence": 6}
OptimizerConfig.learning_rate = 4e-3
OptimizerConfig.warmup_steps = 20
OptimizerConfig.decay_steps = 160
TrainConfig.steps = 160
TrainConfig.init_from = "random"
TrainConfig.eval_every = 80
TrainConfig.select_by = "bleu"
TrainConfig.select_examples = 12
TrainConfig.tensorboard = False
"""
_NAMES = ("Anna", "Bruno", "Clara", "David", "Emma")
_VERBS = (("liest", "reads"), ("sieht", "sees"))
_THINGS = (("das Haus", "the house"), ("ein Buch", "a book"))
# Twenty pairs; the second direction tells whether the prefix is where it belongs.
PAIRS = [
    (f"{name} {verb[0]} {thing[0]}.", f"{name} {verb[1]} {thing[1]}.")
    for name in _NAMES
    for verb in _VERBS
    for thing in _THINGS
]


ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}


def command(module: str, *flags: str, cwd: Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, input=input, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data in both directions and a finished run."""
    folder = tmp_path_factory.mktemp("finetuning")
    examples = folder / "data" / "examples"
    (examples / "validation").mkdir(parents=True)
    for name, pairs in (("de-en", PAIRS), ("en-de", [(b, a) for a, b in PAIRS])):
        rows = "".join(f"{source}\t{target}\n" for source, target in pairs)
        (examples / f"{name}.tsv").write_text(rows)
        (examples / "validation" / f"{name}.tsv").write_text(rows)
    (folder / "toy.gin").write_text(_CONFIG)
    done = command("deltalm_jax.train", "--gin_file=toy.gin", "--gin.DataConfig.data_dir=data", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_run_scored_what_it_wrote_and_kept_the_best(finetuned: Path):
    run = finetuned / "runs" / "toy"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["select/bleu"] for line in lines if "select/bleu" in line}
    assert list(scores) == [80, 160]
    assert max(scores.values()) == pytest.approx(100)
    best = json.loads((run / "checkpoints" / "160" / "record.json").read_bytes())["about"]["best"]
    assert best["value"] == max(scores.values())
    assert (run / "checkpoints" / str(best["step"])).is_dir()


def test_twenty_pairs_by_heart(finetuned: Path):
    for task in ("examples_de_en", "examples_en_de"):
        done = command(
            "deltalm_jax.evaluate", "--checkpoint=runs/toy", f"--task={task}", "--split=validation", "--data_dir=data",
            "--max_length=60", f"--output=out/{task}", cwd=finetuned,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        scores = json.loads((finetuned / "out" / task / "scores.json").read_bytes())["scores"]
        assert scores["bleu"]["score"] == pytest.approx(100)
        assert scores["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
        assert scores["chrf++"]["score"] == pytest.approx(100)
        page = (finetuned / "out" / task / "index.html").read_text()
        assert page.count(scores["bleu"]["signature"]) == 1
        assert page.count("Emma") > 4


def test_files_are_scored_without_a_task_and_generate_writes_the_same(
    finetuned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (finetuned / "in.de").write_text("".join(f"{source}\n" for source, _ in PAIRS[:5]))
    (finetuned / "in.en").write_text("".join(f"{target}\n" for _, target in PAIRS[:5]))
    flags = ("--source=in.de", "--reference=in.en", "--metrics=bleu,script_latin", "--max_length=60")
    refused = command("deltalm_jax.evaluate", "--checkpoint=runs/toy", *flags, cwd=finetuned)
    assert refused.returncode == 2
    assert "source_prefix='__{target}__ '" in refused.stderr
    done = command("deltalm_jax.evaluate", "--checkpoint=runs/toy", *flags, "--source_prefix=__en__ ", cwd=finetuned)
    assert done.returncode == 0, done.stderr
    assert "bleu 100.00" in done.stdout
    assert "script_latin 100.00" in done.stdout
    monkeypatch.chdir(finetuned)
    assert evaluate.main(["--checkpoint=runs/toy/checkpoints/160", *flags, "--source_prefix=__en__ "]) == 0
    again = ["--checkpoint=runs/toy", *flags, "--source_prefix=__en__ ", "--beam_size=1"]
    assert evaluate.main(again) == 0, "what is finished is made anew"
    assert "bleu 100.00" in capsys.readouterr().out
    written = read_outputs(finetuned / "runs" / "toy" / "evaluation" / "in.de" / "outputs.jsonl")
    text = "".join(f"{source}\n" for source, _ in PAIRS[:5])
    generated = command(
        "deltalm_jax.generate", "--checkpoint=runs/toy", "--source_prefix=__en__ ", "--max_length=60",
        cwd=finetuned, input=text,
    )  # fmt: skip
    assert generated.stdout.splitlines() == written == [target for _, target in PAIRS[:5]]


def test_seqios_evaluator_gives_the_same_scores(finetuned: Path):
    """References and outputs differ in one of twenty, so that the score is none that comes by itself."""
    model = load_model(finetuned / "runs" / "toy")
    rows = {"source": [source for source, _ in PAIRS], "target": [target for _, target in PAIRS]}
    rows["target"][3] = "Anna reads nothing at all."
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(rows), splits=["test"]
    )
    task = add_downstream_task(
        "by_heart", source, language="en", metrics=["bleu", "chrf++"], vocabulary=model.vocabulary,
        source_length=64, target_length=64, source_prefix="__en__ ",
    )  # fmt: skip
    try:
        generator = Generator(model, SearchOptions())
        evaluator = seqio.Evaluator(
            "by_heart",
            seqio.EncDecFeatureConverter(pack=False),
            eval_split="test",
            sequence_length={"inputs": 64, "targets": 64},
        )
        found, _ = evaluator.evaluate(
            compute_metrics=True, predict_fn=predict_fn(generator, max_length=60), score_fn=no_scores
        )
        values = found.result()["by_heart"]
    finally:
        seqio.TaskRegistry.remove(task.name)
    expected = score_texts(
        [target for _, target in PAIRS], [(target,) for target in rows["target"]], ["bleu", "chrf++"]
    )
    assert 80 < expected["bleu"]["score"] < 99
    for name in expected:
        assert values[name].value == pytest.approx(expected[name]["score"])


def test_a_reader_that_goes_away_ends_generate(finetuned: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "deltalm_jax.generate", "--checkpoint=runs/toy", "--window_lines=1", "--max_length=60"],
        cwd=finetuned, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("__en__ Anna liest das Haus.\n" * 2000)
    process.stdin.close()
    assert process.stdout.readline() == "Anna reads the house.\n"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert "nobody reads the output any more" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=cc100_de"], "--task=cc100_de: expected a Task with sources and targets, found another kind of Task"),
        (["--task=examples_de_en"], "--split=test: examples_de_en has the splits train, validation"),
        (["--task=examples_de_en", "--split=validation", "--metrics=blue"], "did you mean bleu"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_decoding(
    finetuned: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finetuned)
    data = [] if "cc100" in flags[0] else ["--data_dir=data"]
    assert evaluate.main(["--checkpoint=runs/toy", *flags, *data]) == 2
    assert message in capsys.readouterr().err
    tasks.register()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(EvaluationError, match=r"2 lines in .*a and 1 in .*b"):
        from_files(tmp_path / "a", [tmp_path / "b"])
    (tmp_path / "b").write_bytes(b"eins\n\xff\n")
    with pytest.raises(EvaluationError, match=r"b, line 2: no UTF-8"):
        from_files(tmp_path / "a", [tmp_path / "b"])


def test_what_scores_do_not_tell():
    texts = EvaluationSet("x", "", ("a b", "c", "d", "e"), (("A B",), ("C",), ("D D",), ("E",)), ("bleu",))
    found = about_outputs(texts, ["a b", "", "1 2 3 4 " * 4, "E"])
    assert found == {"empty": 1, "copies_of_source": 1, "repetitive": 1, "length_ratio": 19 / 6}

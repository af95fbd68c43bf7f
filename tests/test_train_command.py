"""The training command as a user meets it: what it prints, and one clear error, before any device work, for each mistake."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys

import numpy as np
import pytest

from deltalm_jax.data.chunks import PreparedData, PreparedDataError, write_manifest
from deltalm_jax.data.shards import encode_record, write_shard
from deltalm_jax.train import main
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.prepared import open_or_prepare
from tests.support import runs
from tests.support.toy_data import write_toy_data


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "data"
    write_toy_data(folder, runs.TOY_TASKS)
    return folder


@pytest.fixture
def no_devices(monkeypatch):
    """Fails the test if anything asks jax for a device."""
    import jax

    def refuse(*_, **__):
        raise AssertionError("a device was touched before the error was found")

    for name in ("devices", "device_count", "default_backend", "local_devices"):
        monkeypatch.setattr(jax, name, refuse)


def fails(capsys, *arguments: str) -> str:
    """Runs the command, which must end with code 2 and one message; returns the message."""
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    return err


def toy_arguments(tmp_path, folder, *bindings: str) -> list[str]:
    return runs.command(tmp_path / "run", folder, *bindings)[3:]


@pytest.mark.usefixtures("no_devices")
class TestMistakes:
    def test_unknown_gin_file(self, capsys):
        assert "Did you mean pretrain_tiny.gin" in fails(capsys, "--gin_file=pretrain_tinny.gin")

    def test_misspelt_field(self, capsys):
        message = fails(capsys, "--gin_file=pretrain_tiny.gin", "--gin.TrainConfig.stepz=3")
        assert "TrainConfig has no field 'stepz'; did you mean 'steps'" in message

    @pytest.mark.parametrize(
        ("flags", "needed"),
        [
            (["--process_id=3"], "need --coordinator=HOST:PORT"),
            (["--coordinator=localhost:1", "--num_processes=2"], "needs --num_processes and --process_id"),
        ],
    )
    def test_half_an_address_is_noticed_before_data_are_prepared(self, capsys, tmp_path, flags, needed):
        out = tmp_path / "out"
        assert needed in fails(capsys, "--gin_file=pretrain_tiny.gin", f"--gin.DataConfig.prepared_dir={out}", *flags)
        assert not out.exists()

    def test_missing_corpus_is_not_set(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        message = fails(capsys, "--gin_file=pretrain_base.gin")
        assert "DataConfig.data_dir is not set" in message
        assert "cc100/CODE.txt.xz" in message

    def test_missing_corpus_folder(self, capsys, tmp_path):
        message = fails(
            capsys, "--gin_file=pretrain_base.gin", f"--gin.DataConfig.data_dir={tmp_path}/nowhere",
            "--gin.DataConfig.vocabulary=x.model", f"--gin.DataConfig.prepared_dir={tmp_path}/out",
        )  # fmt: skip
        assert f"there is no folder {tmp_path}/nowhere" in message

    def test_vocabulary_not_said(self, capsys, tmp_path):
        message = fails(
            capsys, "--gin_file=pretrain_base.gin", f"--gin.DataConfig.data_dir={tmp_path}",
            f"--gin.DataConfig.prepared_dir={tmp_path}/out",
        )  # fmt: skip
        assert "DataConfig.vocabulary is not set" in message

    def test_a_large_corpus_is_not_prepared_in_passing(self, capsys, tmp_path):
        (tmp_path / "cc100").mkdir()
        with open(tmp_path / "cc100" / "en.txt.xz", "wb") as file:
            file.truncate(300_000_000)
        message = fails(
            capsys, "--gin_file=pretrain_base.gin", f"--gin.DataConfig.data_dir={tmp_path}",
            "--gin.DataConfig.vocabulary=x.model", f"--gin.DataConfig.prepared_dir={tmp_path}/out",
        )  # fmt: skip
        assert "300 MB of files" in message
        assert (
            f"python -m deltalm_jax.prepare --mixture=deltalm_pretrain --data_dir={tmp_path} --vocabulary=x.model "
            f"--chunk_length=512 --output={tmp_path}/out" in message
        )

    def test_wrong_vocabulary(self, capsys, tmp_path, toy):
        message = fails(capsys, *toy_arguments(tmp_path, toy, "ModelConfig.vocab_size=250104"))
        assert "ModelConfig.vocab_size is 250104, but" in message
        assert "was prepared with 8104" in message

    def test_another_chunk_length(self, capsys, tmp_path, toy):
        message = fails(capsys, *toy_arguments(tmp_path, toy, "DataConfig.chunk_length=16"))
        assert "DataConfig.chunk_length is 16, but" in message

    def test_chunks_longer_than_the_positions(self, capsys, tmp_path, toy):
        message = fails(capsys, *toy_arguments(tmp_path, toy, "DataConfig.chunk_length=600"))
        assert "DataConfig.chunk_length is 600, which gives span_corruption inputs of up to 540" in message
        assert "ModelConfig.max_length has positions for 32 tokens only" in message

    def test_a_missing_shard(self, capsys, tmp_path):
        write_toy_data(tmp_path / "data", runs.TOY_TASKS)
        shard = next((tmp_path / "data" / "cc100_a").glob("train*"))
        shard.unlink()
        message = fails(capsys, *toy_arguments(tmp_path, tmp_path / "data"))
        assert str(shard) in message

    def test_an_edited_manifest(self, capsys, tmp_path):
        write_toy_data(tmp_path / "data", runs.TOY_TASKS)
        path = tmp_path / "data" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["tasks"]["cc100_a"]["objective"] = "translation_span_corruption"
        path.write_text(json.dumps(manifest))
        assert "digest does not match" in fails(capsys, *toy_arguments(tmp_path, tmp_path / "data"))

    def test_several_processes_need_prepared_data(self, tmp_path):
        """The command itself then tells the other processes, and ends (tests/faults/test_hangs.py)."""
        config = load(["pretrain_tiny.gin"], [f"DataConfig.prepared_dir={tmp_path}/none"])
        with pytest.raises(PreparedDataError, match="prepare it before starting several processes"):
            open_or_prepare(config, alone=False)


def write_corpus(folder, text: bytes = b"Hallo Welt.\n\nNoch ein Dokument.\n", pairs: bytes = b"Hello\tHallo\t1.1\n"):
    (folder / "cc100").mkdir(parents=True)
    (folder / "ccaligned").mkdir()
    (folder / "cc100" / "de.txt.xz").write_bytes(lzma.compress(text))
    (folder / "ccaligned" / "de_DE-en_XX.tsv.xz").write_bytes(lzma.compress(pairs))
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("empty language", ("de.txt.xz", "no training text for cc100_de")),
        ("truncated xz", ("de.txt.xz", "ends too early")),
    ],
)
def test_mistakes_found_while_preparing_reach_the_user(tmp_path, damage, words):
    """Preparation runs in a process of its own: its one message must be seen, and the exit code must not be 0."""
    corpus = write_corpus(
        tmp_path / "corpus", b"\n\n" if damage == "empty language" else b"Ein Satz mit Worten.\n" * 5000
    )
    if damage == "truncated xz":
        path = corpus / "cc100" / "de.txt.xz"
        path.write_bytes(path.read_bytes()[:-40])
    done = runs.run(
        tmp_path / "run", tmp_path / "out", f"DataConfig.data_dir={corpus}", "DataConfig.vocabulary=sample",
    )  # fmt: skip
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_id_out_of_range_names_the_task_and_the_record(tmp_path, capsys):
    folder = tmp_path / "data"
    write_toy_data(folder, runs.TOY_TASKS)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["tasks"]["cc100_b"]["splits"]["train"]
    # All of them, so that one is in the first batch and no step is compiled; each with an id that tells it.
    bad = [np.array([4, 5, 6, 8104 + i], np.int32) for i in range(entry["chunks"])]
    shard = write_shard(folder, entry["shards"][0]["file"], [encode_record(b) for b in bad])
    entry["shards"][0] |= {"bytes": shard.bytes, "xxh3": shard.xxh3}
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("digest", "format")})
    assert PreparedData.open(folder).verify() > 3, "nothing else is wrong with it"
    assert main([str(a) for a in toy_arguments(tmp_path, folder)]) == 2
    err = capsys.readouterr().err
    assert "task cc100_b" in err
    found = re.search(r"record (\d+)\b.*\bid (\d+)", err, re.DOTALL)
    assert found, err
    assert int(found[2]) == 8104 + int(found[1])


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path, toy, capsys):
    """Eight simulated devices here, and twelve examples of the second objective."""
    sizes = "DataConfig.objective_batch_sizes={'span_corruption': 8, 'translation_span_corruption': 12}"
    message = fails(capsys, *toy_arguments(tmp_path, toy, sizes))
    assert (
        "objective_batch_sizes['translation_span_corruption'] is 12, which does not divide over slices × data × fsdp = 8"
        in message
    )


def test_dry_run_of_the_base_config(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "deltalm_jax.train", "--gin_file=pretrain_base.gin", "--dry_run"],
        env=runs.environment(), capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "362,981,376 parameters" in out
    for name, inputs, targets in (("span_corruption", 461, 101), ("translation_span_corruption", 341, 341)):
        (row,) = (line.split() for line in out.splitlines() if line.split()[:2] == [name, "1,024"])
        assert row[2:5] == ["512", str(inputs), str(targets)]
    # spec: 3 · (2 · P · tokens + attention) a sequence, summed here term by term for 461/101 and 341/341.
    assert f"{step_teraflops():,.2f} TFLOP a step" in out
    assert out.count("inputs:") == out.count("targets:") == 2
    assert "the shipped sample's text and vocabulary" in out
    assert "<mask_0>" in out
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


def step_teraflops() -> float:
    """The published formula, written out with numbers for DeltaLM-base."""
    d, f, vocabulary = 768, 3072, 250_104
    attention_matrices, ffn = 4 * d * d, 2 * d * f
    total = 0.0
    for s, t in ((461, 101), (341, 341)):
        linear = 2 * (
            12 * (attention_matrices + ffn) * s  # encoder
            + 6 * (attention_matrices + 2 * ffn) * t  # decoder: self-attention and both feed-forwards
            + 6 * 2 * d * d * t  # cross-attention: query and output
            + 6 * 2 * d * d * s  # cross-attention: key and value of the source
            + d * vocabulary * t
        )
        scores = 4 * d * (12 * s * s + 6 * t * t / 2 + 6 * s * t)
        total += 1024 * 3 * (linear + scores)
    return total / 1e12


def test_help_needs_no_jax_and_shows_examples():
    script = (
        "import sys\nfrom deltalm_jax.train import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: print('jax' in sys.modules, e.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=runs.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False 0\n")
    assert "--gin_file=pretrain_base.gin --dry_run" in done.stdout

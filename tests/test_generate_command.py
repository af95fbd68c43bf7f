"""`python -m deltalm_jax.generate`: the same lines, in order, whatever happens in between."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import deltalm_jax
from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary
from deltalm_jax.decoding import generate, job
from deltalm_jax.decoding.resumable_output import ResumableOutput
from deltalm_jax.decoding.vocabulary_masks import script_mask, text_mask
from deltalm_jax.generate import main
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.saved_model import open_model
from deltalm_jax.weights.model_folder import write_model
from tests.support.runs import environment
from tests.support.toy_data import SAMPLE_VOCABULARY

TEXTS = [
    "Habari ya asubuhi",
    "",
    "All human beings are born free and equal",
    "  ",
    "Sote tu huru",
    "x",
    "Ni lini",
    "yo",
]
FLAGS = ["--beam_size=2", "--max_length=4", "--window_lines=3"]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, vocabulary: Vocabulary) -> pathlib.Path:
    """A model whose hypotheses differ from source to source."""
    config = ModelConfig(
        vocab_size=vocabulary.size + 8,
        hidden_size=16,
        feed_forward_size=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        max_length=16,
    )
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        constant = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)
        drawn = random.normal(0, 0.5, leaf.shape) if constant is None else np.full(leaf.shape, constant)
        return drawn.astype(np.float32)

    params = jax.tree.map_with_path(values, shapes)
    path = tmp_path_factory.mktemp("model")
    write_model(path, config, params, vocabulary, {})
    return path


@pytest.fixture
def written(folder: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., bytes]:
    """Runs the command on lines and returns what it has written."""

    def run(*flags: str, lines: Any = TEXTS, output: str = "out", code: int = 0) -> bytes:
        content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        (tmp_path / "in").write_bytes(content)
        files = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / output}"]
        assert main([f"--checkpoint={folder}", *files, *FLAGS, *flags]) == code
        return (tmp_path / output).read_bytes() if (tmp_path / output).exists() else b""

    return run


def test_a_line_for_each_line(written, folder, vocabulary, capsys):
    """Each is what its source alone gives, in words; blank lines stay blank."""
    found = written().decode().split("\n")
    assert len(found) == len(TEXTS) + 1
    model = deltalm_jax.load_model(folder)
    filler = list(range(vocabulary.sentinel_start + vocabulary.num_sentinels, model.config.vocab_size))
    assert len(filler) >= 8
    for text, line in zip(TEXTS, found, strict=False):
        if not text.strip():
            assert line == ""
            continue
        source = [*vocabulary.encode(text.strip()), EOS_ID]
        [[hypothesis]] = generate(model, [source], beam_size=2, max_length=4, banned_tokens=filler)
        assert line == vocabulary.decode([t for t in hypothesis.tokens if t not in (2, 3)])
    assert len(set(found)) > 4
    assert "done: 8 lines (2 blank) to line 8" in capsys.readouterr().err


def test_all_hypotheses_as_json(written):
    found = [json.loads(line) for line in written("--output_format=jsonl", "--num_return=2").splitlines()]
    plain = written(output="plain").decode().split("\n")
    assert [entry["line"] for entry in found] == list(range(1, 9))
    for entry, text, best in zip(found, TEXTS, plain, strict=False):
        scores = [h["score"] for h in entry["hypotheses"]]
        assert len(scores) == (2 if text.strip() else 0)
        assert scores == sorted(scores, reverse=True)
        assert entry["rule"] == "fairseq"
        assert not scores or entry["hypotheses"][0]["text"] == best


def test_an_ended_run_goes_on_and_writes_the_same(written, tmp_path, monkeypatch):
    """Ended after the second window, and with half a line of the third in the file."""
    expected = written(output="expected")
    write = ResumableOutput.write

    def ends(self: ResumableOutput, output: Any, lines: Any) -> None:
        if self.lines == 6:
            self._file.write(b"half a li")
            raise KeyboardInterrupt
        write(self, output, lines)

    monkeypatch.setattr(ResumableOutput, "write", ends)
    half = written(code=130)
    monkeypatch.undo()
    assert half.endswith(b"half a li")
    assert json.loads((tmp_path / "out.progress.json").read_text())["lines"] == 6
    calls = []
    monkeypatch.setattr(ResumableOutput, "write", lambda self, *pieces: (calls.append(pieces), write(self, *pieces)))
    assert written() == expected
    assert len(calls) == 1, "the first two windows are not decoded again"
    assert not (tmp_path / "out.progress.json").exists()


@pytest.mark.parametrize(
    ("flags", "lines", "message"),
    [
        (["--length_penalty=0.5"], TEXTS, "other settings:\n  length_penalty: 1.0 then, 0.5 now"),
        ([], ["Another", *TEXTS[1:]], "begun with another input: its first 3 lines differ"),
        (["damage"], TEXTS, r"the first \d+ bytes of .* are not those"),
        (["complete"], TEXTS, "is there already, and complete"),
    ],
)
def test_what_does_not_go_on_is_refused(written, tmp_path, monkeypatch, capsys, flags, lines, message):
    write = ResumableOutput.write

    def ends(self: ResumableOutput, output: Any, lines: Any) -> None:
        if self.lines == 3:
            raise KeyboardInterrupt
        write(self, output, lines)

    monkeypatch.setattr(ResumableOutput, "write", ends)
    before = written(code=130)
    monkeypatch.undo()
    if flags == ["damage"]:
        before = b"?" + before[1:]
        (tmp_path / "out").write_bytes(before)
    elif flags == ["complete"]:
        (tmp_path / "out.progress.json").unlink()
    capsys.readouterr()
    assert written(*[flag for flag in flags if flag.startswith("--")], lines=lines, code=2) == before
    assert re.search(message, capsys.readouterr().err)


def test_sources_that_are_too_long(written, capsys):
    lines = ["yo", "free and equal " * 9, "x"]
    cut = written(lines=lines, output="cut").splitlines()
    assert "1 too long and cut" in capsys.readouterr().err
    skipped = written("--too_long=skip", lines=lines, output="skip").splitlines()
    assert "1 too long and skipped" in capsys.readouterr().err
    assert skipped == [cut[0], b"", cut[2]]
    assert cut[1]
    assert written("--too_long=fail", lines=lines, output="fail", code=2) == b""
    assert "line 2 of the input has" in capsys.readouterr().err


def test_input_that_is_no_utf_8_is_named(written, capsys):
    assert written(lines=b"yo\nx\nlini\nab\xffc\n", code=2).count(b"\n") == 3
    assert "line 4 of the input is no UTF-8: byte 3 of it is 0xff" in capsys.readouterr().err


def test_no_line_end_at_the_end_and_no_lines(written):
    assert written(lines=b"yo\nx", output="a") == written(lines=b"yo\nx\n", output="b")
    assert written(lines=b"", output="c") == b""
    assert written(lines=b"\n\n", output="d") == b"\n\n"


def test_prefixes(written, vocabulary):
    plain, tagged = written(output="plain"), written("--source_prefix=free ", output="tagged")
    assert plain != tagged == written(lines=[t and f"free {t}" for t in map(str.strip, TEXTS)], output="by hand")
    forced = written("--target_prefix=free and", output="forced").decode().splitlines()
    assert all(line.startswith("free and") for line, text in zip(forced, TEXTS, strict=True) if text.strip())


def test_only_what_is_allowed(written, vocabulary, tmp_path):
    found = written("--allowed_script=Latin", output="latin").decode()
    letters = [c for c in found if unicodedata.category(c)[0] == "L"]
    assert len(letters) > 10
    assert all("LATIN" in unicodedata.name(c) for c in letters)
    (tmp_path / "text").write_text("All human\nbeings yo\n")
    tokens = {*vocabulary.encode("All human"), *vocabulary.encode("beings yo")}
    found = written(f"--allowed_tokens_from={tmp_path / 'text'}", output="words").decode()
    assert {t for line in found.splitlines() for t in vocabulary.encode(line)} <= tokens | set(
        vocabulary.encode("".join(vocabulary.decode([t]) for t in tokens))
    )
    assert np.flatnonzero(text_mask(vocabulary, 9000, ["All human", "beings yo"])).tolist() == sorted({EOS_ID} | tokens)


@pytest.mark.parametrize(("script", "name"), [("Latin", "LATIN"), ("Arabic", "ARABIC"), ("Cyrl", "CYRILLIC")])
def test_the_pieces_of_a_script(vocabulary, script: str, name: str):
    mask = script_mask(vocabulary, vocabulary.size, [script])
    pieces = vocabulary.pieces()
    for token, allowed in enumerate(mask):
        if EOS_ID < token <= vocabulary.num_pieces and not pieces[token - 1][1]:
            letters = [c for c in pieces[token - 1][0] if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo")]
            of_script = all(name in unicodedata.name(c, "") or c in "ªº" for c in letters)
            assert allowed == of_script or not letters, pieces[token - 1]
        else:
            assert allowed == (token == EOS_ID)
    assert 50 < mask.sum() < vocabulary.num_pieces


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beam_size=0"], "--beam_size must be at least 1, found 0"),
        (
            ["--beam_size=2", "--num_return=3", "--output_format=jsonl"],
            "--num_return must be between 1 and --beam_size=2",
        ),
        (["--num_return=2"], "--output_format=jsonl"),
        (["--top_k=3"], "--temperature"),
        (["--temperature=-1"], "Sampling.temperature"),
        (["--early_stopping"], "early_stopping must be False under rule='fairseq'"),
        (["--batch_tokens=0"], "--batch_tokens must be at least 1, found 0"),
        (["--min_length=9"], "--min_length must be between 0 and --max_length=4"),
        (["--max_length=99", "--min_length=30"], "--min_length=30: the model has positions for 15"),
        (["--allowed_script=Klingon"], "'Klingon' is no script"),
        (["--target_prefix=All human beings are born free and equal"], "--target_prefix has"),
        (["--checkpoint=nowhere"], "nowhere: there is no such folder: name a model of"),
        (["--input=nowhere"], "--input=nowhere cannot be read"),
        (["--num_processes=2"], "--coordinator"),
    ],
)
def test_mistakes_have_one_message_and_exit_code_2(written, capsys, flags, message):
    assert written(*flags, code=2) == b""
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


def test_what_is_said_of_checkpoints_does_not_go_to_stdout(written, capsys, monkeypatch):
    """There the output may be."""
    monkeypatch.setattr(job, "open_model", lambda path: (print("WARNING: passed over"), open_model(path))[1])
    written()
    said = capsys.readouterr()
    assert said.out == ""
    assert "WARNING: passed over" in said.err


def command(folder: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "deltalm_jax.generate", f"--checkpoint={folder}", *FLAGS, *flags]


def test_a_pipe_and_draws(folder, written):
    """From stdin to stdout in a process of its own, as here; what is drawn hangs on the seed."""
    flags = ["--temperature=1", "--top_p=0.9", "--seed=4"]
    text = "\n".join(TEXTS).encode()
    done = subprocess.run(
        command(folder, *flags), input=text, env=environment(devices=8), capture_output=True, timeout=120, check=True
    )
    assert done.stdout == written(*flags, output="four")
    assert done.stdout != written(*flags[:2], "--seed=5", output="five")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, written, tmp_path):
    lines = TEXTS * 8
    expected = written("--batch_tokens=16", lines=lines, output="expected")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'two'}", "--batch_tokens=16"]
    processes = [
        subprocess.Popen(
            command(
                folder, *files, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"
            ),
            env=environment(devices=2), stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "two").read_bytes() == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_run_that_is_ended_from_outside_goes_on(folder, written, tmp_path, number: int, code: int):
    lines = TEXTS * 60
    expected = written(lines=lines, output="expected")
    files = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    process = subprocess.Popen(command(folder, *files), env=environment(devices=8), stderr=subprocess.PIPE, text=True)
    progress = tmp_path / "out.progress.json"
    while process.poll() is None and not (progress.exists() and json.loads(progress.read_text())["lines"]):
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert (code < 0) or "the same command goes on" in error
    assert 0 < json.loads(progress.read_text())["lines"] < len(lines)
    assert written(lines=lines) == expected

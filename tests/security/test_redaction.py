"""Secrets are in nothing that a command prints or a run records, and all else stays as it is."""

from __future__ import annotations

import configparser
import importlib
import io
import json
import os
import pathlib
import pty
import subprocess
import sys
import threading
import urllib.parse

import pytest

from deltalm_jax.redaction import RedactedStream, Redactor, same_but_for_secrets
from deltalm_jax.training.checkpoint import CheckpointError
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.resuming import check_identity
from tests.support import runs

CANARY = "canary0Canary1Canary2"
# What is printed, and what becomes of it.
FORMS = {
    "loading with hf_canary0Canary1Canary2 now": "loading with [redacted] now",
    "ghp_canary0Canary1Canary2.": "[redacted].",
    "github_pat_canary0Canary1_Canary2": "[redacted]",
    "AKIACANARYCANARYCANA, eu": "[redacted], eu",
    "AIzaCanary0Canary1Canary2Canary3Canary4": "[redacted]",
    "sk-proj-canary0Canary1Canary2": "[redacted]",
    "xoxb-1234-canary0Canary1": "[redacted]",
    "Authorization: Bearer canary0Canary1": "Authorization: [redacted]",
    "authorization: Basic Y2FuYXJ5": "authorization: [redacted]",
    "curl -H 'Bearer canary0Canary1'": "curl -H 'Bearer [redacted]'",
    "https://me:canary@host/file": "https://me:[redacted]@host/file",
    "no folder https:/me:can:ary@host/file": "no folder https:/me:[redacted]@host/file",
    "https://host/file?part=1&access_token=canary&part=2": "https://host/file?part=1&access_token=[redacted]&part=2",
    "--token=canary --password canary --api-key canary --steps 3": (
        "--token=[redacted] --password [redacted] --api-key [redacted] --steps 3"
    ),
    "DataConfig.password = 'can ary'": "DataConfig.password = '[redacted]'",
    '{"api_key": "can, ary", "token": "canary", "size": 3}': '{"api_key": "[redacted]", "token": "[redacted]", "size": 3}',
    '"{\\"secret\\": \\"can ary\\", \\"size\\": 3}"': '"{\\"secret\\": \\"[redacted]\\", \\"size\\": 3}"',
    "{'aws_secret_access_key': 'canary'}": "{'aws_secret_access_key': '[redacted]'}",
    "-----BEGIN RSA PRIVATE KEY-----\ncanary\ncanary\n-----END RSA PRIVATE KEY-----\nand more": (
        "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----\nand more"
    ),
}
# What this project prints, or might.
HARMLESS = [
    "step  1,000/1,000  loss 4.058  16,695 tokens/s  waiting for data 0%  0:00 left",
    '{"input_tokens": 5, "token": 12, "target_tokens_per_second": 3.5}',
    "pad_token=0, mask_token=250001, eos_token='</s>'",
    '"mask_token": "<mask>"',
    "every token: what it stands for",
    "--max_length_per_token X  so many more",
    "password=None secret=''",
    'to go on:\n  python -m deltalm_jax.train --gin_file=pretrain_tiny.gin \'--gin.DataConfig.languages=["de", "fr"]\'',
    "the coordinator is 10.0.0.1:1234; see https://host:8080/a@b and gs://bucket/path",
    "task-oriented, risk-averse, desk-bound_and_otherwise_long",
    "the bearer token of the server",
]


@pytest.mark.parametrize("text", FORMS)
def test_known_forms_are_redacted(text):
    assert Redactor({}).text(text) == FORMS[text]
    assert Redactor({}).text(FORMS[text]) == FORMS[text], "and once is enough"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert Redactor({}).text(text) == text


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "GITHUBTOKEN", "MY_SECRET_VALUE", "db_password", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "X_CREDENTIALS"],
)  # fmt: skip
def test_values_of_the_environment_go_by_their_names(name):
    assert Redactor({name: "opensesame"}).text("saying opensesame!") == "saying [redacted]!"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", "seven77"), ("TOKENIZERS_PARALLELISM", "opensesame"), ("KEYBOARD", "opensesame"), ("HOME", "opensesame"),
     ("GOOGLE_APPLICATION_CREDENTIALS", __file__), ("SSH_KEY_DIR", str(pathlib.Path(__file__).parent))],
)  # fmt: skip
def test_short_values_other_names_and_paths_of_files_stay(name, value):
    assert Redactor({name: value}).text(f"saying {value}!") == f"saying {value}!"


def test_a_value_is_found_however_it_is_written():
    value = 'p"a\\ss w\nö/r%d'
    redactor = Redactor({"PASSWORD": value})
    for written in (value, repr(value), json.dumps({"a": value}), f"?q={urllib.parse.quote(value, safe='')}"):
        assert "ss" not in redactor.text(written), written


def test_lines_of_a_long_value_are_found_one_by_one():
    key = "first-line-of-the-key-0001\nsecond-line-of-the-key-02"
    assert Redactor({"SSH_KEY": key}).text("got second-line-of-the-key-02") == "got [redacted]"


def test_of_two_values_the_longer_goes_first():
    assert Redactor({"A_KEY": "opensesame", "B_KEY": "opensesame-and-more"}).text("opensesame-and-more") == "[redacted]"


def test_records_are_redacted_inside():
    record = {"a": ["https://u:canary@h", 3, None, {"b": ("--token=canary", 1.5)}], "opensesame": True}
    assert Redactor({"A_KEY": "opensesame"}).record(record) == {
        "a": ["https://u:[redacted]@h", 3, None, {"b": ["--token=[redacted]", 1.5]}],
        "[redacted]": True,
    }


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        ("https://u:[redacted]@h/x", "https://u:canary@h/x", True),
        ("https://u:[redacted]@h/x", "https://u:[redacted]@h/x", True),
        ("https://u:[redacted]@h/x", "https://u:canary@h/y", False),
        ("a.c", "abc", False),
        ({"a": 1, "b": [1.0, "[redacted]"]}, {"a": 1, "b": (1, "x")}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        ([1, 2], [1, 2, 3], False),
        (None, "x", False),
    ],
)
def test_records_are_compared_but_for_what_was_redacted(recorded, now, same):
    assert same_but_for_secrets(recorded, now) is same


def test_a_run_goes_on_though_the_environment_tells_other_secrets():
    """What is redacted at the one start and not at the other is the same run; what is different elsewhere is not."""
    now = load(["pretrain_tiny.gin"], ["TrainConfig.init_from=models/opensesame/base"]).identity()
    recorded = Redactor({"STORE_KEY": "opensesame"}).record(now)
    assert recorded["TrainConfig.init_from"] == "models/[redacted]/base"
    assert check_identity(recorded, now, pathlib.Path("run")) == []
    with pytest.raises(CheckpointError, match=r"models/\[redacted\]/base' in the checkpoint"):
        check_identity(recorded, now | {"TrainConfig.init_from": "models/opensesame/large"}, pathlib.Path("run"))


class TestStream:
    def make(self):
        under = io.StringIO()
        return under, RedactedStream(under, Redactor({"A_KEY": "opensesame"}))

    def test_a_secret_in_pieces(self):
        under, stream = self.make()
        print("say open", end="", file=stream)
        print("sesame", "now", file=stream)
        assert under.getvalue() == "say [redacted] now\n"

    def test_an_unfinished_line_waits_for_flush(self):
        under, stream = self.make()
        stream.write("opensesame? ")
        assert under.getvalue() == ""
        stream.flush()
        assert under.getvalue() == "[redacted]? "

    def test_all_else_is_the_streams_own(self, tmp_path):
        with open(tmp_path / "file", "w", encoding="latin-1") as under:
            stream = RedactedStream(under, Redactor({}))
            assert (stream.fileno(), stream.encoding, stream.isatty()) == (under.fileno(), "latin-1", False)

    def test_lines_of_several_threads_stay_whole(self):
        under, stream = self.make()
        threads = [
            threading.Thread(target=lambda i=i: [stream.write(f"{i}" * 50 + "\n") for _ in range(200)])
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = under.getvalue().splitlines()
        assert sorted(set(lines)) == [f"{i}" * 50 for i in range(4)]
        assert len(lines) == 800


def commands() -> list[str]:
    """Modules of the installed commands."""
    parser = configparser.ConfigParser()
    parser.read(runs.ROOT / "setup.cfg")
    return [line.partition("=")[2].strip().partition(":")[0]
            for line in parser["options.entry_points"]["console_scripts"].strip().splitlines()]  # fmt: skip


@pytest.mark.parametrize("module", commands())
def test_every_command_redacts_what_it_prints(module, capsys, monkeypatch):
    """Whatever happens, it does after the flags were looked at; what they print themselves is redacted too."""

    def parse(arguments):
        print(f"out {CANARY}")
        print(f"err {CANARY}", file=sys.stderr)
        raise SystemExit(2)

    monkeypatch.setenv("SOME_TOKEN", CANARY)
    command = importlib.import_module(module)
    monkeypatch.setattr(command, "parse_arguments", parse)
    with pytest.raises(SystemExit):
        command.main([])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("out [redacted]\n", "err [redacted]\n")


def test_a_live_bar_on_a_terminal_goes_on(tmp_path):
    """rich has to see a terminal behind the wrapper: it moves the cursor, and prints lines above the bar."""
    script = (
        "from deltalm_jax import redaction; redaction.install()\n"
        "from deltalm_jax.training.reporting import Display\n"
        "display = Display(10, 0, 1)\n"
        f"display.say('above {CANARY}')\n"
        "print('printed')\n"
        "line = dict(step=5, loss=1.0, tokens_per_second=2.0, mfu=None, data_wait_fraction=0.0, step_seconds=1.0)\n"
        "display.step(line)\n"
        "display.close()\n"
    )
    master, slave = pty.openpty()
    env = runs.environment() | {"TERM": "xterm-256color", "A_TOKEN": CANARY, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # all is read
            break
        shown += block
    os.close(master)
    text = shown.decode()
    assert done.returncode == 0, text
    assert "\x1b[" in text, "the bar is live"
    assert "5/10" in text
    assert "above [redacted]" in text
    assert "printed" in text
    assert CANARY not in text

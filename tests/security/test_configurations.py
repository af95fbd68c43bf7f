"""Configuration files of strangers: what they say is read, none of it is run, and no other file is opened for it."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from deltalm_jax.training.gin_files import ConfigError, load

MINIMAL = 'TrainConfig.init_from = "random"\n'


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory in which modules lie that leave a file behind when they are imported."""
    canary = tmp_path / "canary"
    for name in ("mine", "tasksy", "deltalm_jaxx"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef f(*_): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine", "tasksy", "deltalm_jaxx"):
        sys.modules.pop(name, None)


def read(place: pathlib.Path, text: str, **more) -> None:
    (place / "strange.gin").write_text(MINIMAL + text + "\n")
    load(["strange.gin"], **more)


CODE = [
    "import os\nos.system.command = 'touch canary'",
    "import mine",
    "import mine.f",
    "from mine import f",
    "import tasksy",
    "import deltalm_jaxx as deltalm_jax",
    "from __gin__ import dynamic_registration\nimport mine",
    "import __main__",
    "mine.f.a = 1",
    "TrainConfig.steps = @mine.f()",
    "TrainConfig.steps = @mine.f",
    "TrainConfig.init_from = %mine.f",
    "m/mine.f.a = 1",
    "TrainConfig.steps = __import__('mine')",
    "TrainConfig.steps = __import__('os').system('touch canary')",
    "TrainConfig.steps = (lambda: open('canary', 'w'))()",
    "TrainConfig.steps = [x for x in (1, open('canary', 'w'))][0]",
    "TrainConfig.steps = 1 if open('canary', 'w') else 2",
    "DataConfig.languages = [open('canary', 'w')]",
    "DataConfig.languages = {'de': eval(\"open('canary', 'w')\")}",
    'TrainConfig.steps = f\'{open("canary", "w")}\'',
    "DataConfig.task_module = 'mine'",
    "DataConfig.task_module = '.mine'",
    "DataConfig.task_module = 'mine:f'",
    "DataConfig.task_module = 'tasks;import mine'",
    "FilterConfig.language_identifier = 'mine:f'",
    "FilterConfig.language_identifier = 'tasks.languages:__import__(\"mine\")'",
    "parse_value.x = 1",
    "gin.external_configurable.fn = 'mine.f'",
]


@pytest.mark.parametrize("text", CODE)
def test_code_is_not_run(place, text):
    with pytest.raises(ConfigError):
        read(place, text)
    assert not (place / "canary").exists()
    assert "mine" not in sys.modules


def test_the_canary_is_alive(place):
    """What is allowed by name does run: an import, when it is read."""
    read(place, "import mine", allow_imports=["mine"])
    assert (place / "canary").exists()


@pytest.mark.parametrize("key", ["DataConfig.task_module=mine", "FilterConfig.language_identifier=mine:f"])
def test_a_module_on_the_command_line_wants_to_be_allowed_too(place, key):
    (place / "strange.gin").write_text(MINIMAL)
    with pytest.raises(ConfigError, match="add --allow_import=mine"):
        load(["strange.gin"], [key])
    load(["strange.gin"], [key], ["mine"])
    assert not (place / "canary").exists(), "reading a configuration imports none of them"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/x.gin", "strange.gin:1: include .*nothing is fetched from a network"),
        ("gs://bucket/x.gin", "strange.gin:1: include .*nothing is fetched from a network"),
        ("{outside}", "strange.gin:1: include .*name a file in the working directory, beside this one or shipped"),
        ("../outside.gin", "strange.gin:1: include .*without '..'"),
        ("folder/../../outside.gin", "strange.gin:1: include .*without '..'"),
        ("pretrain_tinny.gin", "strange.gin:1: include: .*not found; looked at .*Did you mean pretrain_tiny.gin"),
    ],
)
def test_includes_are_of_the_places_that_are_said(place, tmp_path_factory, name, message):
    outside = place.parent / "outside.gin"
    outside.write_text(MINIMAL)
    (place / "strange.gin").write_text(f'include "{name.format(outside=outside)}"\n')
    with pytest.raises(ConfigError, match=message):
        load(["strange.gin"])


@pytest.mark.parametrize("name", ["beside.gin", "below/beside.gin", "pretrain_tiny.gin"])
def test_includes_from_there_are_read(place, monkeypatch, name):
    (place / "below").mkdir()
    for path in ("beside.gin", "below/beside.gin"):
        (place / path).write_text(MINIMAL)
    (place / "strange.gin").write_text(f'include "{name}"\n')
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load([str(place / "strange.gin")]).train.init_from == "random"


def test_a_macro_that_nothing_uses_is_a_mistake(place):
    """A field without its class, most likely: gin takes it for a macro, and nothing would happen."""
    with pytest.raises(ConfigError, match=r"strange.gin:2: 'steps' is used nowhere: .* Class.steps"):
        read(place, "steps = 10")


def test_a_macro_may_be_used_by_a_value_that_a_later_file_replaces(place):
    (place / "base.gin").write_text("length = 10\nTrainConfig.steps = %length\n" + MINIMAL)
    (place / "strange.gin").write_text('include "base.gin"\nTrainConfig.steps = 20\n')
    assert load(["strange.gin"]).train.steps == 20
    assert load(["base.gin"], ["TrainConfig.log_every=%length"]).train.log_every == 10


def test_a_file_that_is_no_text(place):
    (place / "strange.gin").write_bytes(b"\xff\xfe" + os.urandom(100))
    with pytest.raises(ConfigError, match="strange.gin: cannot be read as UTF-8 text"):
        load(["strange.gin"])

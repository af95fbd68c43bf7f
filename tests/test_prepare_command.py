"""`python -m deltalm_jax.prepare`: from a folder of corpora, or the shipped sample, to a summary or one clear error."""

from __future__ import annotations

import lzma
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deltalm_jax import prepare, train
from deltalm_jax.data.blocks import Input
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.mixture import Registration, inputs_of
from deltalm_jax.data.preparation import Prepared
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.prepared import check
from tasks import corpora

ROOT = Path(prepare.__file__).parents[1]
VOCABULARY = corpora.SAMPLE_DIR / "vocabulary.model"


pytestmark = pytest.mark.usefixtures("sample_registered_again")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two languages of both corpora, as published: compressed, English on either side, a broken row."""
    folder = tmp_path / "corpora"
    (folder / "cc100").mkdir(parents=True)
    (folder / "ccaligned").mkdir()
    for code in ("de", "fr"):
        documents = "\n\n".join(f"Absatz {i} in {code}.\nUnd noch einer." for i in range(40))
        (folder / "cc100" / f"{code}.txt.xz").write_bytes(lzma.compress(documents.encode()))
    rows = "".join(f"Satz {i}\tsentence {i}\t1.1\n" for i in range(60)) + "no columns here\n"
    (folder / "ccaligned" / "de_DE-en_XX.tsv.xz").write_bytes(lzma.compress(rows.encode()))
    rows = "".join(f"sentence {i}\tphrase {i}\n" for i in range(60))
    (folder / "ccaligned" / "en_XX-fr_XX.tsv").write_text(rows)
    return folder


def arguments(data_dir: Path, *more: str) -> list[str]:
    output = f"--output={data_dir.parent / 'out'}"
    return [f"--data_dir={data_dir}", f"--vocabulary={VOCABULARY}", "--validation_fraction=0.2", output, *more]


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    """The error line; there is nothing after it, and no trace."""
    printed = capfd.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ")
    assert not any("Traceback" in line for line in printed)
    return printed[-1]


def test_a_folder_of_corpora(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(arguments(data_dir)) == 0
    data = PreparedData.open(data_dir.parent / "out")
    assert [task.name for task in data.tasks] == ["cc100_de", "cc100_fr", "ccaligned_de", "ccaligned_fr"]
    assert [task.language for task in data.tasks] == ["de", "fr", "de", "fr"]
    units = [sum(split.units for split in task.splits.values()) for task in data.tasks]
    assert units == [40, 40, 60, 60]
    assert data.tasks[2].splits["train"].dropped == {"columns": 1}
    # The same English sentences are held out in both languages.
    assert data.tasks[2].splits["validation"].units == data.tasks[3].splits["validation"].units > 0

    printed = capfd.readouterr().out
    tokens = sum(task.tokens("train") for task in data.tasks[2:])
    assert "translation_span_corruption" in printed
    assert f"{tokens:,}" in printed
    assert f"--gin.DataConfig.prepared_dir={data.folder}" in printed
    assert "nothing to do" not in printed

    assert prepare.main(arguments(data_dir)) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert prepare.main(arguments(data_dir, "--chunk_length=128")) == 2
    assert "chunk_length of span_corruption: 512 there, 128 asked for" in error_of(capfd)


def test_filters_are_flags_and_their_table_is_printed(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    filters = [
        "--filter.paragraph_min_letters=10",
        "--filter.deduplicate_paragraphs=True",
        "--filter.pair_min_margin=1.2",
    ]
    cc100 = ["--mixture=deltalm_span_corruption"]
    assert prepare.main(arguments(data_dir, *cc100, *filters)) == 0
    data = PreparedData.open(data_dir.parent / "out")
    assert data.manifest["settings"]["filters"] == {
        "paragraph_min_letters": 10, "pair_min_margin": 1.2, "deduplicate_paragraphs": True,
    }  # fmt: skip
    for task in data.tasks:
        dropped = sum((Counter(part.dropped) for part in task.splits.values()), Counter[str]())
        # "Und noch einer." stands in all forty documents; "Absatz 7 in de." has ten letters.
        assert dropped == {"filter_deduplicate_paragraphs": 39}
    printed = capfd.readouterr().out
    assert "before and after the filters" in printed
    assert "deduplicate_paragraphs" in printed
    assert prepare.main(arguments(data_dir, *cc100, *filters)) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert prepare.main(arguments(data_dir, *cc100, *filters[:2])) == 2
    assert "filter pair_min_margin: 1.2 there, default asked for" in error_of(capfd)
    for wrong, message in [
        ("--filter.paragraph_min_letter=2", "no filter 'paragraph_min_letter'; did you mean 'paragraph_min_letters'?"),
        ("--filter.test_sets=/nowhere/flores.txt", "test_sets: /nowhere/flores.txt: No such file"),
        ("--filter.language_identifier=no_such:f", "module 'no_such' cannot be imported"),
    ]:
        assert prepare.main(arguments(data_dir, *cc100, wrong)) == 2
        assert message in error_of(capfd)


def test_lengths_by_objective_and_sentinels(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lengths = {"span_corruption": 70, "translation_span_corruption": 94}
    flag = "--chunk_length=" + ",".join(f"{name}={length}" for name, length in lengths.items())
    assert prepare.main(arguments(data_dir, flag, "--num_sentinels=128")) == 0
    data = PreparedData.open(data_dir.parent / "out")
    assert data.chunk_lengths == lengths
    assert data.manifest["vocabulary"]["num_sentinels"] == 128
    for task, length in ((0, 70), (2, 94)):
        tokens_BL, lengths_B = data.read("train", np.array([task]), np.array([0]))
        assert tokens_BL.shape[1] == length >= lengths_B[0] > length - 15
    # 64 inputs by T5's sizing: what the printed command asks for.
    printed = capfd.readouterr().out
    assert "sizing" in printed
    assert "--gin.DataConfig.chunk_length=64" in printed
    assert "--gin.DataConfig.num_sentinels=128" in printed
    assert f"--gin.ModelConfig.vocab_size={data.vocabulary_size}" in printed


def test_languages_and_one_task(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(arguments(data_dir, "--languages=fr", "--mixture=deltalm_span_corruption")) == 0
    assert [task.name for task in PreparedData.open(data_dir.parent / "out").tasks] == ["cc100_fr"]
    # The command that comes next trains on just that: one mixture, one objective.
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("next: "))
    flags, bindings = train.parse_arguments(shlex.split(line.removeprefix("next: python -m deltalm_jax.train")))
    config = load(flags.gin_file, bindings)
    assert config.data.objective_batch_sizes == {"span_corruption": 32}
    check(config, PreparedData.open(data_dir.parent / "out"))
    again = arguments(data_dir, "--mixture=ccaligned_de", "--overwrite")
    assert prepare.main(again) == 0
    assert [task.name for task in PreparedData.open(data_dir.parent / "out").tasks] == ["ccaligned_de"]


def test_a_cut_file_ends_the_command_with_one_line(data_dir: Path) -> None:
    """In a process of its own: exit code, and nothing but the message on the terminal."""
    path = data_dir / "cc100" / "fr.txt.xz"
    path.write_bytes(path.read_bytes()[:-20])
    command = [sys.executable, "-m", "deltalm_jax.prepare", *arguments(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    head, error = done.stderr.strip().splitlines()
    assert head.startswith("deltalm_pretrain: 4 tasks")
    assert error.startswith(f"error: task cc100_fr: {path}: the .xz data ends too early")
    # What the other files gave is kept for the next time.
    assert sorted(p.name for p in data_dir.parent.iterdir()) == ["corpora", "out.partial"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--mixture=deltalm_pretran", "unknown mixture or task 'deltalm_pretran'. Did you mean deltalm_pretrain"),
        ("--mixture=cc100_da", "Did you mean cc100_de"),
        ("--languages=de,xx", "no file for 'xx'"),
        ("--languages=", "--languages is empty: name some, such as de,fr, or leave it out"),
        ("--vocabulary=/nowhere/spm.model", "/nowhere/spm.model"),
        ("--data_dir=/nowhere", "/nowhere"),
        ("--chunk_length=3", "chunk_length of translation_span_corruption must be at least 5, found 3"),
        ("--chunk_length=span_corruption=64", "chunk_length says nothing of translation_span_corruption"),
        ("--runner=NoSuchRunner", "the Beam runner NoSuchRunner failed"),
    ],
)
def test_mistakes_give_one_line(data_dir: Path, capfd: pytest.CaptureFixture[str], change: str, message: str) -> None:
    assert prepare.main(arguments(data_dir, change)) == 2
    assert message in error_of(capfd)
    assert not (data_dir.parent / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=x", "--data_dir=y"], "--vocabulary is needed"),
        ([], "--output"),
        (["--output=x", "--chunk_length=long"], "expected a number, or span_corruption=N"),
        (["--output=x", "--chunk_length=span=9"], "unknown objective 'span'"),
        (["--output=x", "--chunk_length=span_corruption=9,span_corruption=8"], "named twice"),
        (["--output=x", "--num_workers=0"], "at least 1, found 0"),
        (["--output=x", "--task_module=mine.py"], '"my_tasks" for my_tasks.py), found mine.py'),
        (["--output=x", "--beam_options=--region=r"], "for another --runner"),
    ],
)
def test_flags_that_cannot_be(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.parse_arguments(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_sample_is_complete() -> None:
    """Every shipped file becomes an input, with its validation file."""
    inputs = inputs_of("deltalm_pretrain", Registration(Vocabulary.load(VOCABULARY)))
    shipped = {path for path in corpora.SAMPLE_DIR.rglob("*") if path.name.endswith((".txt.xz", ".tsv.xz"))}
    assert {
        path for source in inputs if isinstance(source, Input) for paths in source.files.values() for path in paths
    } == shipped
    assert len(shipped) > 300
    groups = {source.task: source.groups for source in inputs}
    assert groups["cc100_th"] == groups["ccaligned_th"] == {"script": "Thai", "resource_level": "high"}


def test_progress_off_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from deltalm_jax.data.preparation import Progress

    monkeypatch.setattr(prepare, "_LINE_SECONDS", 0.0)
    with prepare._progress(Console(stderr=True)) as say:
        say(Progress(10, 1, 0))
        say(Progress(10, 1, 0))
        say(Progress(10, 10, 4))
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "finished 1 of 10 parts; 0 shards written",
        "finished 10 of 10 parts; 4 shards written",
    ]


def test_summary_names_languages_without_validation(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    assert prepare.main([*arguments(data_dir), "--validation_fraction=0", "--mixture=cc100_de"]) == 0
    capsys.readouterr()
    prepare.show(Prepared(PreparedData.open(data_dir.parent / "out"), made=True), 1.0, Console())
    assert "without validation text: cc100_de" in capsys.readouterr().out

"""`python -m deltalm_jax.vocabulary`: train, extend and report, from a folder of corpora."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deltalm_jax.data.fertility import fit
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.vocabulary import main
from tasks.corpora import SAMPLE_DIR

pytestmark = pytest.mark.usefixtures("sample_registered_again")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Three languages of the sample as a folder of one's own: two with documents, one with pairs too."""
    for name in ("cc100/sw.txt.xz", "cc100/yo.txt.xz", "ccaligned/en_XX-yo_NG.tsv.xz"):
        path = tmp_path / "corpora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (source,) = (SAMPLE_DIR / name).parent.glob(path.name)
        path.write_bytes(source.read_bytes())
    return tmp_path / "corpora"


def test_train_extend_and_report(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, longer, numbers = tmp_path / "sw.model", tmp_path / "longer.model", tmp_path / "numbers.json"
    text = [f"--data_dir={data_dir}", "--mixture=deltalm_span_corruption"]
    small = ["--num_threads=1", "--character_coverage=1"]
    assert main(["train", *text, *small, "--languages=sw", "--num_pieces=700", f"--output={model}"]) == 0
    told = json.loads((tmp_path / "sw.json").read_text())
    assert told["vocabulary"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert told["trainer"]["num_pieces"] == Vocabulary.load(model).num_pieces == 700
    assert told["sample"].keys() == {"sw"}
    assert told["sample"]["sw"]["read_in_full"]
    assert told["sample"]["sw"]["share"] == 1
    assert "1 languages out of" in capsys.readouterr().err

    arguments = [
        "extend",
        f"--vocabulary={model}",
        f"--data_dir={data_dir}",
        *small,
        "--languages=yo",
        "--num_pieces=90",
    ]
    assert main([*arguments, f"--output={longer}", "--user_symbols=<note>"]) == 0
    told = json.loads((tmp_path / "longer.json").read_text())
    assert told["sample"].keys() == {"yo"}, "English comes along with pairs, and is not what was asked for"
    assert told["extends"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    old, new = Vocabulary.load(model), Vocabulary.load(longer)
    assert new.num_pieces - old.num_pieces == told["new_pieces"] == 91
    assert f"<mask> is {new.mask_id} and was {old.mask_id}" in capsys.readouterr().err

    report = ["report", *text, f"--vocabulary={model}", f"--other={longer}", f"--json={numbers}", "--sample_kb=5"]
    assert main(report) == 0
    shown = capsys.readouterr().out
    told = json.loads(numbers.read_text())
    assert told["languages"].keys() == {"sw", "yo"}
    assert told["changed"]["yo"] > told["changed"]["sw"]
    for code, vocabularies in told["languages"].items():
        assert all(0 < one["utf8_bytes"] <= 5000 for one in vocabularies)
        assert code in shown
        for one in vocabularies:
            assert f"{one['tokens'] / one['words']:.2f}" in shown
    assert told["languages"]["yo"][1]["tokens"] < told["languages"]["yo"][0]["tokens"]
    assert fit(new, ["<note>"]).tokens <= 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=x"], "give it the ending .model"),
        (["--output=nowhere/x.model"], "there is no folder nowhere"),
        (["--output=there.model"], "there.model: exists already"),
        (["--output=x.model", "--num_pieces=10"], "num_pieces must be at least 260, found 10"),
        (["--output=x.model", "--languages=xx"], "no file for 'xx'"),
        (["--output=x.model", "--languages=yo", "--num_pieces=90000"], "cannot train 90,000 pieces"),
    ],
)
def test_what_cannot_be_is_one_message(
    flags: list[str],
    message: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.model").write_text("kept")
    assert main(["train", f"--data_dir={data_dir}", *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpora", "there.model"]
    assert (tmp_path / "there.model").read_text() == "kept"

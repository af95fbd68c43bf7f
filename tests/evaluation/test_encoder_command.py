"""`python -m deltalm_jax.evaluate` of an encoder alone, and of the text that it is measured on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from deltalm_jax import evaluate
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.evaluation.held_out import read_held_out
from deltalm_jax.evaluation.texts import EvaluationError
from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.weights.model_folder import write_model
from tasks.corpora import SAMPLE_DIR

ENCODER = dataclasses.replace(
    PRESETS["tiny"], hidden_size=32, feed_forward_size=64, num_heads=2, num_encoder_layers=2, num_decoder_layers=0,
    sentence_layer=1, max_length=64,
)  # fmt: skip


def write(folder: Path, config: ModelConfig) -> Path:
    folder.mkdir()
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    write_model(folder, config, init_params(config, jax.random.key(0)), vocabulary, {"from": "a test"})
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "encoder", ENCODER)


@pytest.fixture(scope="module")
def deltalm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(ENCODER, num_decoder_layers=1, sentence_layer=0)
    return write(tmp_path_factory.mktemp("models") / "deltalm", config)


@pytest.fixture
def own_text(tmp_path: Path) -> Path:
    """A folder with Swahili of one's own: two documents, twelve pairs and a copy; of German, three pairs."""
    for name, text in {
        "text/sw.txt": "Habari.\n",
        "text/validation/sw.txt": "Habari za asubuhi.\nKaribu sana.\n\nAsante.\n",
        "parallel/sw-en.tsv": "Karibu\tWelcome\n",
        "parallel/validation/sw-en.tsv": "".join(f"Namba {i}\tNumber {i}\n" for i in range(12)) + "Namba 3\tThree\n",
        "parallel/de-en.tsv": "Guten Tag\tGood day\n",
        "parallel/validation/de-en.tsv": "".join(f"Zahl {i}\tNumber {i}\n" for i in range(3)),
    }.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    return tmp_path / "data"


def test_of_the_sample_the_declaration_alone_is_searched():
    held_out = read_held_out(None, ["de", "ja"])
    assert held_out.corpora == ("cc100", "ccaligned")
    assert list(held_out.pairs) == list(held_out.documents) == ["de", "ja"]
    assert {len(pairs) for pairs in held_out.pairs.values()} == {21}
    english = [[pair[0] for pair in pairs] for pairs in held_out.pairs.values()]
    assert english[0] == english[1], "the same paragraphs of every language"
    assert english[0][0].startswith("Everyone has the right to take part in the government of his country")
    assert "set forth herein" in english[0][-1], "the end of article 30"
    assert len(held_out.documents["de"]) > 2, "messages too, where translations are not looked for"
    assert {len(read_held_out(None, ["de"], 4).pairs["de"]), len(read_held_out(None, ["de"], 1).documents["de"])} == {
        4,
        1,
    }


def test_of_other_data_everything_that_is_held_out(own_text: Path):
    held_out = read_held_out(own_text)
    assert held_out.corpora == ("text", "parallel")
    assert held_out.documents == {"sw": [["Habari za asubuhi.", "Karibu sana."], ["Asante."]]}
    assert list(held_out.pairs) == ["de", "sw"]
    assert len(held_out.pairs["sw"]) == 13
    assert held_out.pairs["sw"][0] == ("Number 0", "Namba 0")
    with pytest.raises(EvaluationError, match=r"no text in fr\. There are: de, sw"):
        read_held_out(own_text, ["de", "fr"])
    with pytest.raises(EvaluationError, match="expected corpora in it"):
        read_held_out(own_text / "text")
    (own_text / "parallel" / "validation" / "de-en.tsv").unlink()
    with pytest.raises(EvaluationError, match="nothing is held out in de"):
        read_held_out(own_text, ["de"])


def test_the_command_measures_an_encoder_on_the_sample(encoder: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main([f"--checkpoint={encoder}", "--languages=de,en,sw", "--limit=15"]) == 0
    shown = capsys.readouterr().out
    folder = encoder / "evaluation" / "encoder"
    scores = json.loads((folder / "scores.json").read_bytes())
    assert str(folder) in shown.replace("\n", "")
    for part in ("masked pieces", "hidden state 2", "projected, cosine", "Declaration of Human Rights"):
        assert part in " ".join(shown.split())
        assert part in (folder / "index.html").read_text()
    assert list(scores["masked"]["languages"]) == ["de", "en", "sw"]
    assert scores["masked"]["chunk_length"] == 64
    assert scores["masked"]["all"]["positions"] == sum(x["positions"] for x in scores["masked"]["languages"].values())
    assert 8 < scores["masked"]["all"]["loss"] < 11, "a random model, of 8,104 pieces"
    found = scores["retrieval"]
    assert {language: x["pairs"] for language, x in found["languages"].items()} == {"de": 15, "sw": 15}
    assert {way: len(x["from_english"]) for way, x in found["average"].items() if isinstance(x, dict)} == {
        "mean": 3,
        "first": 3,
        "projected_cosine": 1,
        "projected_inner_product": 1,
    }
    both = [found["languages"][language]["mean"]["to_english"][1] for language in ("de", "sw")]
    assert found["average"]["mean"]["to_english"][1] == pytest.approx(sum(both) / 2)
    assert scores["data"] == "the shipped sample"
    assert scores["limit"] == 15


def test_the_command_measures_an_encoder_on_text_of_ones_own(
    encoder: Path, own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main([f"--checkpoint={encoder}", f"--data_dir={own_text}", f"--output={tmp_path / 'out'}"]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert list(scores["masked"]["languages"]) == ["sw"]
    assert scores["retrieval"]["languages"]["sw"]["pairs"] == 12
    assert scores["retrieval"]["left_out"] == {"de": 3}
    assert "fewer than 10 different pairs: de (3)." in " ".join(capsys.readouterr().out.split())


def test_of_a_deltalm_the_encoder_is_searched(deltalm: Path, own_text: Path, tmp_path: Path):
    flags = [f"--checkpoint={deltalm}", f"--data_dir={own_text}", f"--output={tmp_path / 'out'}"]
    assert evaluate.main([*flags, "--encoder"]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert "masked" not in scores
    assert len(scores["retrieval"]["average"]["mean"]["from_english"]) == 3
    assert "projected_cosine" not in scores["retrieval"]["average"]


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("encoder", ["--task=xqg_zh"], "an encoder alone writes no texts, found --task. Leave that out"),
        ("encoder", ["--beam_size=3", "--max_length=9"], "writes no texts, found --beam_size and --max_length. Leave"),
        ("encoder", ["--source=a", "--reference=b", "--metrics=bleu"], "found --source and --reference and --metrics"),
        ("encoder", ["--languages=qq"], "no text in qq"),
        ("deltalm", [], "expected either --task, or --source and --reference; or --encoder"),
        ("deltalm", ["--languages=de"], "add --encoder"),
        ("deltalm", ["--encoder", "--split=test"], "leave out --split"),
    ],
)
def test_what_does_not_go_together_is_refused(
    model: str, flags: list[str], message: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main([f"--checkpoint={request.getfixturevalue(model)}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--encoder", "--task=a"], ["--languages=de", "--source=a", "--reference=b"], ["--task=a", "--source=b"]]
)
def test_flags_that_exclude_each_other_need_no_model(flags: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--checkpoint=none", *flags])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err

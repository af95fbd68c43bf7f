"""Metrics: against the reference programs' own results, against brute force, and by what must hold of any metric."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import seqio

from deltalm_jax.evaluation.metrics import meteor as meteor_module
from tasks.metrics import METRICS, MetricError, metric_fn, require, score

GOLDEN = json.loads((Path(__file__).parent / "metrics_golden.json").read_text(encoding="utf-8"))
PAIRS: list[dict[str, Any]] = GOLDEN["pairs"]
SENTENCES = {
    "en": "The small dog runs along the river.",
    "fr": "L'été, le petit chien court près de la rivière.",
    "ru": "Маленькая собака бежит вдоль реки.",
    "zh": "小狗沿着河边奔跑。",
    "hi": "छोटा कुत्ता नदी के किनारे दौड़ता है।",
    "gu": "નાનો કૂતરો નદી કિનારે દોડે છે.",
}
SACRE = ("bleu", "bleu_zh", "bleu_char", "bleu_intl", "chrf++")
SCORED_HERE = [name for name in METRICS if name not in ("bertscore", "comet", "meteor_nltk")]


def value(name: str, hypothesis: str, *references: str, key: str | None = None) -> float:
    return score(name, [hypothesis], [list(references)])[key or name]["score"]


# The oracle of ROUGE: its definition, with the longest common subsequence by recursion.


def f1(overlap: int, of_hypothesis: int, of_reference: int) -> float:
    if not overlap:
        return 0.0
    precision, recall = overlap / of_hypothesis, overlap / of_reference
    return 2 * precision * recall / (precision + recall)


def ngram_f1(hypothesis: Sequence[str], reference: Sequence[str], n: int) -> float:
    found = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in (hypothesis, reference)]
    overlap = sum(min(count, found[1][gram]) for gram, count in found[0].items())
    return f1(overlap, sum(found[0].values()), sum(found[1].values()))


def lcs_f1(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    @functools.cache
    def longest(i: int, j: int) -> int:
        if i == len(hypothesis) or j == len(reference):
            return 0
        if hypothesis[i] == reference[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return f1(longest(0, 0), len(hypothesis), len(reference))


def rouge_of(hypothesis: Sequence[str], reference: Sequence[str]) -> list[float]:
    return [
        100 * found
        for found in (ngram_f1(hypothesis, reference, 1), ngram_f1(hypothesis, reference, 2), lcs_f1(hypothesis, reference))
    ]  # fmt: skip


def test_the_golden_table_is_large_and_varied() -> None:
    assert len(PAIRS) >= 30
    assert {pair["language"] for pair in PAIRS} >= {"en", "fr", "ru", "zh", "hi", "gu"}
    assert sum("rouge1" in pair for pair in PAIRS) >= 8


@pytest.mark.parametrize("name", SACRE)
def test_single_pairs_score_as_the_sacrebleu_command_scores_them(name: str) -> None:
    for pair in PAIRS:
        found = value(name, pair["hypothesis"], pair["reference"])
        assert found == pytest.approx(pair[name], abs=1e-5), pair["hypothesis"]


@pytest.mark.parametrize("name", ["bleu", "chrf++"])
def test_corpora_score_as_the_sacrebleu_command_scores_them(name: str) -> None:
    for language, expected in GOLDEN["corpora"].items():
        pairs = [pair for pair in PAIRS if pair["language"] == language]
        found = score(name, [pair["hypothesis"] for pair in pairs], [[pair["reference"]] for pair in pairs])
        assert found[name]["score"] == pytest.approx(expected[name], abs=1e-5), language


def test_rouge_of_ascii_is_that_of_the_rouge_score_command() -> None:
    for pair in (pair for pair in PAIRS if "rouge1" in pair):
        found = score("rouge", [pair["hypothesis"]], [[pair["reference"]]])
        assert [found[v]["score"] for v in ("rouge1", "rouge2", "rougeL")] == pytest.approx(
            [pair[v] for v in ("rouge1", "rouge2", "rougeL")], abs=1e-4
        )


def test_rouge_is_what_brute_force_says_of_words_split_by_hand() -> None:
    for pair in PAIRS:
        found = score("rouge", [pair["hypothesis"]], [[pair["reference"]]])
        expected = rouge_of(pair["hypothesis_words"].split(), pair["reference_words"].split())
        assert [found[v]["score"] for v in ("rouge1", "rouge2", "rougeL")] == pytest.approx(expected), pair


def test_character_rouge_is_what_brute_force_says() -> None:
    for pair in PAIRS:
        found = score("rouge_characters", [pair["hypothesis"]], [[pair["reference"]]])
        sides = [
            list(unicodedata.normalize("NFC", "".join(pair[side].lower().split())))
            for side in ("hypothesis", "reference")
        ]
        expected = rouge_of(*sides)
        keys = ("rouge1_characters", "rouge2_characters", "rougeL_characters")
        assert [found[key]["score"] for key in keys] == pytest.approx(expected), pair


@pytest.mark.parametrize("language", SENTENCES)
def test_a_text_scores_100_against_itself(language: str) -> None:
    text = SENTENCES[language]
    bleu = "bleu_zh" if language == "zh" else "bleu"
    rouge, ending = ("rouge_characters", "_characters") if language == "zh" else ("rouge", "")
    assert value(bleu, text, text) == pytest.approx(100)
    assert value("chrf++", text, text) == pytest.approx(100)
    for variant in ("rouge1", "rouge2", "rougeL"):
        assert value(rouge, text, text, key=variant + ending) == pytest.approx(100)


@pytest.mark.parametrize("language", ["en", "fr", "ru", "hi", "gu"])
def test_permuted_words_keep_rouge_1_and_lower_bleu(language: str) -> None:
    text = SENTENCES[language]
    permuted = " ".join(reversed(text.split()))
    assert value("rouge", permuted, text, key="rouge1") == pytest.approx(100)
    assert value("rouge", permuted, text, key="rougeL") < 60
    assert value("bleu", permuted, text) < 60


def test_permuted_chinese_characters_keep_character_rouge_1_and_lower_bleu() -> None:
    text = SENTENCES["zh"]
    permuted = text[::-1]
    assert value("rouge_characters", permuted, text, key="rouge1_characters") == pytest.approx(100)
    assert value("bleu_zh", permuted, text) < 60


def test_words_with_another_vowel_sign_or_accent_are_other_words() -> None:
    for first, second in (("कि", "की"), ("કિ", "કી"), ("pêche", "péché"), ("мир", "мяр")):
        assert value("rouge", first, second, key="rouge1") == 0.0
    # One accent, written in one code point or two, is one accent.
    assert value("rouge", "été", unicodedata.normalize("NFD", "été"), key="rouge1") == 100.0


def test_an_empty_hypothesis_is_scored_and_gets_nothing() -> None:
    for name in SCORED_HERE:
        if name.startswith("script_"):
            continue
        for found in score(name, [""], [["a reference"]]).values():
            assert found["score"] == 0.0, name
    # Among others it counts as an example with 0.
    halved = score("rouge", ["same words", ""], [["same words"], ["other"]])
    assert halved["rouge1"]["score"] == pytest.approx(50.0)


@pytest.mark.parametrize("name", [*METRICS])
def test_unequal_and_zero_lengths_raise_with_both_numbers(name: str) -> None:
    with pytest.raises(MetricError, match=r"found 2 hypotheses and 1 lists of references"):
        score(name, ["a", "b"], [["a"]])
    with pytest.raises(MetricError, match=r"found 1 hypotheses and 3 lists of references"):
        score(name, ["a"], [["a"], ["b"], ["c"]])
    with pytest.raises(MetricError, match=r"found 0 hypotheses and 0 lists"):
        score(name, [], [])


def test_references_that_are_none_are_refused() -> None:
    with pytest.raises(MetricError, match=r"hypothesis 1, found 0 of which none has any text"):
        score("bleu", ["a", "b"], [["a"], []])
    with pytest.raises(MetricError, match=r"hypothesis 0, found 2 of which none has any text"):
        score("rouge", ["a"], [["", " "]])
    with pytest.raises(MetricError, match=r"list of references for hypothesis 0, found the string 'abc'"):
        score("bleu", ["abc"], ["abc"])
    with pytest.raises(MetricError, match=r"hypothesis 0 to be a string, found NoneType"):
        score("bleu", [None], [["abc"]])  # type: ignore[list-item]


SIGNATURES = {
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "bleu_zh": "nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0",
    "bleu_char": "nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:2.6.0",
    "bleu_intl": "nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:2.6.0",
    "chrf++": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
    "rouge1": "nrefs:1|best:max|case:lc|norm:nfc|tok:words|stem:no|measure:f1|average:mean|rouge-score:0.1.2",
    "rougeL_characters": (
        "nrefs:1|best:max|case:lc|norm:nfc|tok:characters|stem:no|measure:f1|average:mean|rouge-score:0.1.2"
    ),
    "script_japanese": "letters:over-half|scripts:Hiragana+Katakana+Han|average:share-of-outputs",
}


def test_signatures_are_the_expected_strings() -> None:
    found = {key: entry for name in SCORED_HERE for key, entry in score(name, ["one"], [["one"]]).items()}
    assert {key: found[key]["signature"] for key in SIGNATURES} == SIGNATURES
    several = score("bleu", ["a", "b"], [["a", "c"], ["b", "d"]])["bleu"]["signature"]
    assert several.startswith("nrefs:2|")
    for name in ("bleu", "chrf++", "rouge"):
        for entry in score(name, ["a", "b"], [["a"], ["b", "c"]]).values():
            assert entry["signature"].startswith("nrefs:var|"), name


def test_of_several_references_rouge_takes_the_best_for_each_variant() -> None:
    hypothesis, references = "a b c d", ["d c b a", "a b x y z w"]
    found = score("rouge", [hypothesis], [references])
    single = [rouge_of(hypothesis.split(), reference.split()) for reference in references]
    expected = [max(of_variant) for of_variant in zip(*single, strict=True)]
    assert [found[v]["score"] for v in ("rouge1", "rouge2", "rougeL")] == pytest.approx(expected)
    assert single[0][0] > single[1][0]
    assert single[0][1] < single[1][1]  # not one reference for all three


def test_several_references_for_bleu_are_taken_together_and_for_chrf_the_best() -> None:
    # By hand: all of 1-, 2-, 3- and 4-grams of the hypothesis stand in one reference or the other, lengths are equal.
    assert value("bleu", "a b c d e f", "a b c d x x", "x x c d e f") < 100
    assert value("bleu", "a b c d e f g", "a b c d e x x", "x b c d e f g", "a x x x x x x") == pytest.approx(100)
    best = max(value("chrf++", "the cat", reference) for reference in ("a dog", "the cap"))
    assert value("chrf++", "the cat", "a dog", "the cap") == pytest.approx(best)
    # An example with fewer references than others is none the worse for it.
    assert score("bleu", ["a b c d", "e f g h"], [["x", "a b c d"], ["e f g h"]])["bleu"]["score"] == pytest.approx(100)


def test_the_share_of_outputs_in_a_script() -> None:
    outputs = ["Bonjour à tous", "你好，世界", "你好 hello everyone", "2019!", "", "Привет", "猫 is 猫猫猫"]
    references = [["x"]] * len(outputs)
    found = {s: score(f"script_{s}", outputs, references)[f"script_{s}"]["score"] for s in ("latin", "han", "cyrillic")}
    assert found == {k: pytest.approx(100 * v / 7) for k, v in {"latin": 2, "han": 2, "cyrillic": 1}.items()}
    for text, share in (("да abc", 0), ("да ab", 0), ("да a", 100)):  # two letters of five, of four, of three
        assert value("script_cyrillic", text, "x") == share
    assert value("script_japanese", "ひらがなと漢字", "x") == 100
    assert value("script_han", "ひらがなとカタカナの漢字", "x") == 0
    for script, language in (("devanagari", "hi"), ("gujarati", "gu"), ("han", "zh"), ("cyrillic", "ru")):
        assert value(f"script_{script}", SENTENCES[language], "x") == 100


class NoSynonyms:
    """A WordNet without any word in it."""

    def synsets(self, word: str) -> list[Any]:
        return []

    def get_version(self) -> str:
        return "none"


def test_meteor_is_nltks_and_called_so() -> None:
    found = meteor_module.meteor_nltk(["the cat sat"], [["a dog", "the cat sat"]], wordnet=NoSynonyms())
    # By hand: 3 matches in 1 chunk; fmean 1; penalty 0.5 * (1/3)**3.
    assert found["meteor_nltk"]["score"] == pytest.approx(100 * (1 - 0.5 / 27))
    assert found["meteor_nltk"]["signature"] == (
        "nrefs:2|best:max|case:lc|norm:nfc|tok:words|stem:porter|wordnet:none|average:mean|nltk:3.10.4"
    )


def test_meteor_without_wordnet_is_an_error_and_not_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    for attempt in (
        lambda: score("meteor_nltk", ["a"], [["a"]]),
        lambda: require(["bleu", "meteor_nltk"]),
    ):
        with pytest.raises(MetricError, match=r"corpora/wordnet in one of .*nltk\.downloader wordnet") as caught:
            attempt()
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["bertscore", "comet"])
def test_metrics_by_a_model_say_that_none_is_given(name: str) -> None:
    with pytest.raises(MetricError, match=rf"^{name}: no model given"):
        score(name, ["a"], [["a"]])
    with pytest.raises(MetricError, match=rf"^{name}: no model given"):
        require([name])


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    for attempt in (lambda: score("blue", ["a"], [["a"]]), lambda: require(["blue"]), lambda: metric_fn("blue")):
        with pytest.raises(MetricError, match=r"Unknown metric 'blue', did you mean bleu"):
            attempt()
    require(SCORED_HERE)


def test_metrics_are_metric_functions_of_seqio() -> None:
    def rows(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        raise AssertionError("nothing is read here")

    task = seqio.Task(
        "metrics_of_seqio",
        seqio.FunctionDataSource(rows, splits=["test"]),
        output_features={},
        metric_fns=[metric_fn("bleu"), metric_fn("rouge")],
    )
    assert len(task.predict_metric_fns) == 2
    assert not task.score_metric_fns
    bleu, rouge = task.predict_metric_fns
    values = bleu(targets=[["the cat sat on it"]], predictions=["the cat sat on it"])
    assert values["bleu"] == seqio.metrics.Scalar(pytest.approx(100))
    assert values["bleu_signature"] == seqio.metrics.Text(SIGNATURES["bleu"])
    assert set(rouge([["a"]], ["a"])) == {
        key + ending for key in ("rouge1", "rouge2", "rougeL") for ending in ("", "_signature")
    }
    with pytest.raises(MetricError, match="found 2 hypotheses and 1 lists"):
        bleu([["a"]], ["a", "b"])

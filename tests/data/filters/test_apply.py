"""What each filter drops and keeps, by cases made by hand in several scripts; and what is counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.apply import apply_filters
from deltalm_jax.data.filters.languages import IdentifierError
from deltalm_jax.data.filters.pairs import overlaps, too_different
from deltalm_jax.data.filters.test_sets import read_test_sets
from tests.data.filters.texts import SCRIPTS, TEXTS

EN, DE, RU, AR, FA, HI, MY, KM, TH, ML, ZH, JA = (
    TEXTS[code] for code in ("en", "de", "ru", "ar", "fa", "hi", "my", "km", "th", "ml", "zh-Hans", "ja")
)
MENU = "1 | 2 | 3 | 4 >> a"
LIST = [f"{n}. {word} und so weiter" for n, word in enumerate(DE.split() * 2)]  # 66 words; "und so weiter" in each line


def filtered(
    items: Sequence[Any], language: str, test_ngrams: np.ndarray | None = None, **settings: Any
) -> tuple[list[Any], Counter[str]]:
    counts = Counter[str]()
    unit = "pairs" if items and isinstance(items[0], tuple) else "documents"
    script = SCRIPTS.get(language)
    left = apply_filters(items, unit, language, script, FilterConfig(**settings), test_ngrams, counts)
    return left, counts


def identify_by_first_word(texts: list[str]) -> list[tuple[str, float]]:
    """A stand-in for a language identifier: texts say themselves what they are, "de:0.8 …"."""
    words = [text.split()[0].split(":") if ":" in text else ["xx", "1"] for text in texts]
    return [(code, float(score)) for code, score in words]


def identify_too_few(texts: list[str]) -> list[tuple[str, float]]:
    return [("de", 1.0)] * (len(texts) - 1)


def identify_badly(texts: list[str]) -> list[Any]:
    return ["de"] * len(texts)


HERE = __name__

DOCUMENTS: list[tuple[dict[str, Any], str, list[list[str]], list[list[str]], int]] = [
    ({"paragraph_min_letters": 5}, "de", [["Ja!", DE, "Gut."], ["12345678"]], [[DE]], 3),
    ({"paragraph_min_letters": 24}, "my", [[MY[:12], MY]], [[MY]], 1),  # marks count
    ({"paragraph_max_characters": 70}, "de", [[DE, DE + DE]], [[DE]], 1),
    ({"paragraph_min_letter_share": 0.6}, "de", [[MENU, DE], ["* * *"]], [[DE]], 2),
    *(({"paragraph_min_letter_share": 0.8}, code, [[text]], [[text]], 0) for code, text in TEXTS.items()),
    ({"paragraph_min_script_share": 0.5}, "hi", [[EN, HI], [f"{HI} (rights)"]], [[HI], [f"{HI} (rights)"]], 1),
    ({"paragraph_min_script_share": 0.5}, "de", [[ZH], [DE], ["1, 2, 3"]], [[DE], ["1, 2, 3"]], 1),
    *(({"paragraph_min_script_share": 1.0}, code, [[text]], [[text]], 0) for code, text in TEXTS.items()),
    (
        {"document_max_duplicate_paragraphs": 0.3},
        "de",
        [["a", "b", "a"], ["a", "b", "c", "a"]],
        [["a", "b", "c", "a"]],
        1,
    ),
    ({"document_max_duplicate_characters": 0.2}, "de", [["a", DE, DE], [DE, "a", "a"]], [[DE, "a", "a"]], 1),
    ({"document_max_top_ngrams": (0.2, 0.2)}, "de", [LIST, [DE, *LIST[:3]]], [[DE, *LIST[:3]]], 1),
    ({"document_min_letters": 100}, "de", [[DE], [DE, DE]], [[DE, DE]], 1),
    ({"document_max_characters": 100}, "de", [[DE], [DE, DE]], [[DE]], 1),
]
IDENTIFIED: list[tuple[dict[str, Any], str, list[list[str]], list[list[str]], int]] = [
    ({}, "de", [["de:0.9 eins", "en:1 two"], ["en:0.9 one"], ["de:0.4 drei"]], [["de:0.9 eins", "en:1 two"]], 2),
    ({"language_min_score": 0.3}, "de", [["de:0.4 eins"], ["de:0.2 zwei"]], [["de:0.4 eins"]], 1),
    ({"language_level": "paragraph"}, "de", [["de:0.9 eins", "en:1 two"]], [["de:0.9 eins"]], 1),
    ({}, "zh-Hans", [["zh:0.9 一"], ["zh_Hans:0.9 二"], ["zh-hant:0.9 三"]], [["zh:0.9 一"], ["zh_Hans:0.9 二"]], 1),
]
PAIRS: list[tuple[dict[str, Any], str, list[tuple[str, str]], list[tuple[str, str]], int]] = [
    ({"side_min_letters": 3}, "de", [("Yes!", "1."), ("12", "zwölf"), ("two", "zwei")], [("two", "zwei")], 2),
    ({"side_max_characters": 64}, "de", [(EN, DE), (EN, DE + "."), (EN * 2, DE)], [(EN, DE)], 2),
    ({"side_min_letter_share": 0.6}, "de", [(EN, "%1 $2 (3)"), ("[x] 1+1", DE), (EN, DE)], [(EN, DE)], 2),
    (
        {"pair_drop_swapped": True},
        "ru",
        [(RU, EN), (EN, RU), (EN, EN), ("1", "2")],
        [(EN, RU), (EN, EN), ("1", "2")],
        1,
    ),
    ({"side_min_script_share": 0.5}, "ru", [(RU, EN), (EN, RU), (EN, EN), (RU, RU)], [(EN, RU)], 3),
    ({"side_min_script_share": 0.5}, "de", [(EN, DE), (EN, RU)], [(EN, DE)], 1),
    ({"pair_drop_copies": True}, "de", [(EN, EN.upper() + " "), (EN, DE), ("ＡＢ", "ab")], [(EN, DE)], 2),
    ({"pair_max_overlap": 0.5}, "de", [(EN, "Alle human beings are born frei."), (EN, DE)], [(EN, DE)], 1),
]


@pytest.mark.parametrize(("settings", "language", "documents", "left", "number"), DOCUMENTS)
def test_documents(settings, language, documents, left, number) -> None:
    check(settings, language, documents, left, number)


@pytest.mark.parametrize(("settings", "language", "documents", "left", "number"), IDENTIFIED)
def test_documents_by_an_identifier(settings, language, documents, left, number) -> None:
    name = {"language_identifier": f"{HERE}:identify_by_first_word"}
    assert filtered(documents, language, **name, **settings)[0] == left
    assert filtered(documents, language, **name, **settings)[1]["filter_language_identifier"] == number


@pytest.mark.parametrize(("settings", "language", "pairs", "left", "number"), PAIRS)
def test_pairs(settings, language, pairs, left, number) -> None:
    check(settings, language, pairs, left, number)


def check(settings: dict[str, Any], language: str, items: Any, left: Any, number: int) -> None:
    (field,) = settings
    found, counts = filtered(items, language, **settings)
    assert found == left
    assert counts[f"filter_{field}"] == number
    # Nothing is dropped without these settings, and everything that is dropped is counted.
    assert filtered(items, language)[0] == items
    before, after = (sum(len(text) for item in all_ for text in item) for all_ in (items, found))
    assert counts[f"characters/filter_{field}"] == before - after
    assert (counts["before/units"], counts["before/characters"]) == (len(items), before)
    assert len(items) - len(found) == (counts["filter_emptied_documents"] if field.startswith("paragraph") else number)


def test_every_field_of_a_filter_is_tried_here_or_in_a_preparation() -> None:
    tried = {name for settings, *_ in (*DOCUMENTS, *IDENTIFIED, *PAIRS) for name in settings}
    elsewhere = {
        "remove_format_characters", "normalize", "scripts", "pair_max_length_ratio", "pair_min_margin", "language_identifier",
        "test_sets", "test_set_ngram", "deduplicate_documents", "deduplicate_paragraphs", "deduplicate_pairs",
        "minhash_bands", "minhash_rows", "minhash_ngram",
    }  # fmt: skip
    assert tried | elsewhere == {field.name for field in dataclasses.fields(FilterConfig)}
    assert not tried & elsewhere


def test_the_first_filter_counts_and_each_paragraph_once() -> None:
    documents = [["x", "1 2 3 4 5 6 7 8 9 abcdef", DE]]
    left, counts = filtered(documents, "de", paragraph_min_letters=3, paragraph_min_letter_share=0.5)
    assert left == [[DE]]
    assert counts["filter_paragraph_min_letters"] == counts["filter_paragraph_min_letter_share"] == 1


def test_documents_are_judged_by_what_is_left_of_them() -> None:
    left, _ = filtered([["*", "*", "*", DE]], "de", paragraph_min_letters=2, document_max_duplicate_paragraphs=0.3)
    assert left == [[DE]]


def test_format_characters_go_and_joiners_stay() -> None:
    text = "\u202bSchif\u00adfahrt\u200f \ufeff" + FA
    left, counts = filtered([[text, FA]], "fa", remove_format_characters=True)
    assert left == [["Schiffahrt " + FA, FA]]
    assert "\u200c" in FA
    assert counts["filter_remove_format_characters"] == 1
    assert counts["characters/filter_remove_format_characters"] == len(text) - len(left[0][0]) == 4


def test_normal_forms() -> None:
    texts = ["e\u0301", "ﬁ", "é"]
    assert filtered([texts], "fr")[0] == [texts]
    left, counts = filtered([texts], "fr", normalize="NFC")
    assert left == [["é", "ﬁ", "é"]]
    assert counts["filter_normalize"] == 1
    left, counts = filtered([(texts[0], texts[1])], "fr", normalize="NFKC")
    assert left == [("é", "fi")]
    assert counts["filter_normalize"] == 2


def test_pairs_by_an_identifier_on_both_sides() -> None:
    settings = {"language_identifier": f"{HERE}:identify_by_first_word"}
    pairs = [
        ("en:1 a", "de:1 b"),
        ("de:1 c", "en:1 d"),
        ("en:1 e", "fr:1 f"),
        ("fr:1 g", "de:1 h"),
        ("en:.4 i", "de:1 j"),
    ]
    left, counts = filtered(pairs, "de", **settings)
    assert left == pairs[:1]
    assert counts["filter_language_identifier"] == 4
    left, counts = filtered(pairs, "de", pair_drop_swapped=True, **settings)
    assert left == pairs[:1]
    assert (counts["filter_pair_drop_swapped"], counts["filter_language_identifier"]) == (1, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:identify", "no_such_module.*cannot be imported"),
        (f"{HERE}:no_such_function", "no function 'no_such_function'"),
        (f"{HERE}:identify_too_few", "for each of 2 texts, found 1 of them"),
        (f"{HERE}:identify_badly", "found 'de'"),
    ],
)
def test_an_identifier_that_is_none_is_named(name: str, message: str) -> None:
    with pytest.raises(IdentifierError, match=message):
        filtered([[DE], [DE]], "de", language_identifier=name)


def test_words_in_common() -> None:
    english = ["a b c d e", "a b c", "x y z w", "", "b a b a c c d d"]
    other = ["a b c x y", "a b c", "a b c d", "a b c d", "d c b a q"]
    assert overlaps(english, other).tolist() == [3 / 5, 0, 0, 0, 1]


def test_length_ratio_spares_the_short() -> None:
    pairs = [([1] * 8, [1]), ([1] * 9, [1] * 3), ([1] * 10, [1] * 3), ([1] * 3, [1] * 10), ([1] * 100, [])]
    assert too_different(pairs, 3) == [False, False, True, True, False]


def test_texts_of_test_sets(tmp_path) -> None:
    long_text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    path = tmp_path / "test.tsv"
    path.write_text(f"{long_text}\t{ZH}\n\nShort text.\t{JA}\n")
    n = 13
    ngrams = read_test_sets([str(path)], n)
    words = long_text.split()
    documents = [
        [" ".join(words[2:]) + " and more", "nothing"],  # 13 words in common
        [" ".join(words[3:])],  # twelve
        [long_text.upper().replace(" ", ", ")],  # whatever stands between the words
        ["SHORT TEXT!"],  # whole
        ["A short text."],
        [f"是的：{JA}"],  # JA has more than 26 letters
        [ZH[:12]],
    ]
    left, counts = filtered(documents, "en", ngrams, test_set_ngram=n, test_sets=(str(path),))
    assert left == [["nothing"], documents[1], documents[4], documents[6]]
    assert counts["filter_test_sets"] == 4
    assert filtered(documents, "en", read_test_sets([str(path)], 12), test_set_ngram=12, test_sets=("x",))[0] == [
        ["nothing"], documents[4], documents[6],
    ]  # fmt: skip
    pairs = [(EN, "anders"), ("other", long_text), (EN, DE)]
    left, counts = filtered(pairs, "de", ngrams, test_set_ngram=n, test_sets=(str(path),))
    assert left == [pairs[0], pairs[2]]
    assert counts["filter_test_sets"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a readable corpus file"),
        (b"", "found no text"),
        (b"a\n\xff\n", "cannot be read .invalid_utf8: 1"),
    ],
)
def test_test_sets_that_cannot_be_read_are_refused(tmp_path, content, message) -> None:
    if content is not None:
        (tmp_path / "set.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_test_sets([str(tmp_path / "set.txt")], 13)


@pytest.mark.parametrize("unit", ["documents", "pairs"])
def test_nothing_of_nothing(unit: str) -> None:
    settings = FilterConfig(
        paragraph_min_letters=1, paragraph_min_script_share=0.5, document_max_top_ngrams=(0.1,), document_min_letters=1,
        side_min_letters=1, side_min_script_share=0.5, pair_drop_copies=True, pair_max_overlap=0.5, pair_drop_swapped=True,
        language_identifier=f"{HERE}:identify_by_first_word",
    )  # fmt: skip
    assert apply_filters([], unit, "ru", "Cyrl", settings, np.zeros(1, np.uint64), Counter()) == []

"""Words, n-grams and their hashes against plain strings; repetition against a count of its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import regex

from deltalm_jax.data.filters.repetition import MIN_WORDS, duplicate_shares, top_ngram_shares
from deltalm_jax.data.filters.words import Words, folded
from tests.data.filters.texts import TEXTS, UNSPACED

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words are, by a regular expression: an unspaced letter with its marks, or a run of other word characters."""
    pattern = rf"(?:(?=[{_UNSPACED}])[\p{{L}}\p{{N}}]\p{{M}}*)|(?:\p{{M}}|(?![{_UNSPACED}])[\p{{L}}\p{{N}}])+"
    return [match.span() for match in regex.finditer(pattern, text)]


def ngrams_of(text: str, n: int, whole: bool = False) -> list[tuple[int, int]]:
    spans = words_of(text)
    single = sum(bool(regex.match(rf"(?=[{_UNSPACED}])\P{{M}}", text[a:])) for a, b in spans)
    n = 2 * n if 2 * single > len(spans) else n
    n = min(n, max(len(spans), 1)) if whole else n
    return [(spans[i][0], spans[i + n - 1][1]) for i in range(len(spans) - n + 1)]


def random_texts(seed: int, count: int) -> list[str]:
    generator = np.random.default_rng(seed)
    pieces = [*" .,-  \u200d\u0301\u0e48", *"aébж1漢字カなกิမ္မာ", "the", "ก็", "ال", "\u0300"]
    return ["".join(generator.choice(pieces, generator.integers(0, 40))) for _ in range(count)]


def test_words_are_those_of_a_regular_expression() -> None:
    texts = [*TEXTS.values(), "", "...", *random_texts(0, 300)]
    words = Words(texts)
    begin = 0
    for number, text in enumerate(texts):
        found = slice(words.first_T[number], words.last_T[number])
        spans = zip((words.start_W[found] - begin).tolist(), (words.end_W[found] - begin).tolist(), strict=True)
        assert list(spans) == words_of(text), repr(text)
        begin += len(text)
    assert [language for language, flag in zip(TEXTS, words.unspaced_T.tolist(), strict=False) if flag] == [
        language for language in TEXTS if language in UNSPACED
    ]


@pytest.mark.parametrize(("n", "whole"), [(1, False), (2, False), (5, False), (5, True), (13, True)])
def test_ngrams_and_equal_hashes_for_equal_words_only(n: int, whole: bool) -> None:
    texts = [*TEXTS.values(), "", *random_texts(1, 300)]
    ngrams = Words(texts).ngrams(n, whole)
    begin, place = 0, 0
    by_hash: dict[int, tuple[str, ...]] = {}
    for number, text in enumerate(texts):
        for a, b in ngrams_of(text, n, whole):
            assert (ngrams.text_G[place], ngrams.start_G[place], ngrams.end_G[place]) == (number, begin + a, begin + b)
            content = tuple(text[a:b][i:j] for i, j in words_of(text[a:b]))
            assert by_hash.setdefault(int(ngrams.hash_G[place]), content) == content
            place += 1
        begin += len(text)
    assert place == len(ngrams.hash_G)
    assert len(set(by_hash.values())) == len(by_hash)


def test_a_hash_does_not_depend_on_the_other_texts() -> None:
    alone = Words([TEXTS["hi"]]).ngrams(3).hash_G.tolist()
    assert Words([TEXTS["en"], "", TEXTS["hi"], TEXTS["ja"]]).ngrams(3).hash_G.tolist().count(alone[0]) == 1
    among = Words([TEXTS["en"], "", TEXTS["hi"], TEXTS["ja"]]).ngrams(3)
    assert among.hash_G[among.text_G == 2].tolist() == alone


def test_folded() -> None:
    assert folded("  Straße\u00a0 ﬁne\tÉ ") == "strasse fine é"
    assert folded("ＡＢＣ１") == "abc1"


def test_hashes_are_what_they_were() -> None:
    """Prepared data depend on them: of words, and of an n-gram."""
    words = Words(["all human beings", "人人"])
    assert [hex(h) for h in words.hash_W.tolist()] == GOLDEN_WORDS
    assert [hex(h) for h in words.ngrams(3).hash_G.tolist()] == GOLDEN_NGRAM


def top_share(text: str, n: int) -> float:
    """The largest count * length among the most frequent n-grams, over the text's length."""
    spans = ngrams_of(text, n)
    words = words_of(text)
    unspaced = len(spans) and ngrams_of(text, 1)[0] != words[0]
    if len(words) < MIN_WORDS * (2 if unspaced else 1):
        return 0.0
    table = Counter(tuple(text[a:b][i:j] for i, j in words_of(text[a:b])) for a, b in spans)
    length = {}
    for a, b in spans:
        key = tuple(text[a:b][i:j] for i, j in words_of(text[a:b]))
        length[key] = max(length.get(key, 0), b - a)
    if not table or max(table.values()) < 2:
        return 0.0
    most = max(table.values())
    return max(most * length[key] for key, count in table.items() if count == most) / len(text)


def test_share_of_the_most_frequent_ngram() -> None:
    generator = np.random.default_rng(2)
    few, many = ["oak", "elm", "fir", "ash"], [f"w{i}" for i in range(400)]
    texts = [" ".join(generator.choice(table, size)) for table in (few, many) for size in (10, 49, 50, 51, 300)]
    texts += ["".join(generator.choice(list("人口手足山川"), size)) for size in (99, 100, 300)] + ["", TEXTS["en"] * 9]
    words = Words(texts)
    for n in (1, 2, 3, 4):
        expected = [top_share(text, n) for text in texts]
        assert top_ngram_shares(words, n).tolist() == pytest.approx(expected)
        assert any(expected)


def test_repeated_paragraphs_of_a_document() -> None:
    documents = [["a", "b", "c"], ["aa", "b", "aa", "aa"], ["x"], ["y", "y"]]
    paragraphs, characters = duplicate_shares(documents)
    assert paragraphs.tolist() == [0, 0.5, 0, 0.5]
    assert characters.tolist() == pytest.approx([0, 4 / 7, 0, 0.5])


GOLDEN_WORDS = [
    "0x62678ec6736662bf",
    "0x7d847663b9e9f63d",
    "0x25d8722625e28e1d",
    "0xf4c771e698b4069f",
    "0xf4c771e698b4069f",
]
GOLDEN_NGRAM = ["0xc563fb3780be5f02"]

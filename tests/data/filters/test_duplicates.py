"""Keys of equal and of similar texts, against sets and against the true Jaccard similarity."""

from __future__ import annotations

import numpy as np

from deltalm_jax.data.filters.duplicates import document_keys, pair_keys, paragraph_keys, repeated
from tests.data.filters.texts import TEXTS

BANDS, ROWS, N = 14, 8, 5


def test_repeated_is_what_a_set_says() -> None:
    generator = np.random.default_rng(0)
    groups = [generator.integers(0, 50, size).astype(np.uint64) for size in (30, 0, 1, 40, 7)]
    groups[0][0] = groups[4][0] = 2**64 - 1
    seen: set[int] = set()
    expected = []
    for group in groups:
        flags = []
        for key in group.tolist():
            flags.append(key in seen)
            seen.add(key)
        expected.append(flags)
    assert [flags.tolist() for flags in repeated(groups)] == expected
    assert repeated([]) == []


def test_paragraphs_and_pairs_are_equal_up_to_case_space_and_compatibility() -> None:
    paragraphs = ["Ein Haus.", "ein  HAUS. ", "Ein Haus", "ＥＩＮ Haus.", *TEXTS.values()]
    keys, places = paragraph_keys(paragraphs)
    assert places.tolist() == list(range(len(paragraphs)))
    assert keys[0] == keys[1] == keys[3]
    assert len(set(keys.tolist())) == len(paragraphs) - 2
    keys, _ = pair_keys([("A b", "C"), ("a  B", "c"), ("C", "A b"), ("A b C", ""), ("A", "b C")])
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 4


def similar(generator: np.random.Generator, words: list[str], share: float) -> list[str]:
    """The words with a run of them replaced, so that about `share` of the 5-grams stay."""
    count = round((1 - share) * len(words) / (1 + share))  # of 2n - x grams in all, x are in common
    begin = int(generator.integers(0, len(words) - count + 1))
    return words[:begin] + [f"neu{n}" for n in generator.integers(0, 10**9, count)] + words[begin + count :]


def jaccard(a: list[str], b: list[str]) -> float:
    grams = [{tuple(words[i : i + N]) for i in range(len(words) - N + 1)} for words in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_similar_documents_meet_as_often_as_theory_says() -> None:
    generator = np.random.default_rng(1)
    pairs = []
    for share in np.repeat([0.3, 0.5, 0.7, 0.8, 0.9, 0.97], 60).tolist():
        words = [f"w{n}" for n in generator.integers(0, 10**6, 200)]
        pairs.append((words, similar(generator, words, share)))
    keys, places = document_keys([[" ".join(words)] for pair in pairs for words in pair], BANDS, ROWS, N)
    rows = keys.reshape(-1, BANDS)
    assert places.tolist() == np.repeat(np.arange(2 * len(pairs)), BANDS).tolist()
    met = (rows[::2] == rows[1::2]).any(1)
    similarity = np.array([jaccard(a, b) for a, b in pairs])
    probability = 1 - (1 - similarity**ROWS) ** BANDS
    for low, high in ((0, 0.45), (0.45, 0.6), (0.6, 0.75), (0.75, 0.85), (0.85, 1)):
        bin_ = (similarity > low) & (similarity <= high)
        deviation = np.sqrt((probability * (1 - probability))[bin_].sum()) + 1e-9
        assert bin_.sum() >= 40
        assert abs(met[bin_].sum() - probability[bin_].sum()) <= 3 * deviation + 1, (low, high)
    assert met[similarity > 0.9].all()
    assert not met[similarity < 0.3].any()


def test_case_spaces_and_paragraphs_make_no_difference() -> None:
    text = TEXTS["de"] + " " + TEXTS["ru"]
    halves = [TEXTS["de"].upper(), "  " + TEXTS["ru"]]
    keys, _ = document_keys(
        [[text], halves, [TEXTS["de"]], [TEXTS["zh-Hans"]], ["人" + TEXTS["zh-Hans"][1:]]], BANDS, ROWS, N
    )
    rows = keys.reshape(-1, BANDS)
    assert (rows[0] == rows[1]).all()
    assert not (rows[0] == rows[2]).any()


def test_short_documents_have_keys_and_empty_ones_none() -> None:
    keys, places = document_keys([["ja"], ["..."], ["Ja!"], [], ["nein"]], BANDS, ROWS, N)
    assert sorted(set(places.tolist())) == [0, 2, 4]
    rows = keys.reshape(-1, BANDS)
    assert (rows[0] == rows[1]).all()
    assert not (rows[0] == rows[2]).any()


def test_a_long_document_is_hashed_in_pieces(monkeypatch) -> None:
    words = " ".join(f"w{n}" for n in range(3000))
    whole, _ = document_keys([[words]], BANDS, ROWS, N)
    monkeypatch.setattr("deltalm_jax.data.filters.duplicates._NGRAMS_AT_A_TIME", 100)
    assert (document_keys([[words]], BANDS, ROWS, N)[0] == whole).all()


def test_bands_rows_and_n_count() -> None:
    document = [" ".join(TEXTS.values())]
    keys = {
        (b, r, n): document_keys([document], b, r, n)[0].tolist()
        for b, r, n in [(14, 8, 5), (7, 8, 5), (14, 4, 5), (14, 8, 4)]
    }
    assert [len(row) for row in keys.values()] == [14, 7, 14, 14]
    first = [row[0] for row in keys.values()]
    assert len(set(first)) == 4


def test_keys_are_what_they_were() -> None:
    """Which documents go depends on them."""
    keys, _ = document_keys([[TEXTS["en"], TEXTS["my"]]], 2, 3, 5)
    assert [hex(key) for key in keys.tolist()] == GOLDEN
    assert hex(int(paragraph_keys([TEXTS["en"]])[0][0])) == GOLDEN_PARAGRAPH


GOLDEN = ["0x2014bcd12e1c70f6", "0xd95b69b58e015dd5"]
GOLDEN_PARAGRAPH = "0xa97853c42940a7e"

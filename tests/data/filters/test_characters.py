"""Counts of characters against `unicodedata` and regular expressions, text by text."""

from __future__ import annotations

import re
import unicodedata

import pytest
import regex

from deltalm_jax.data.filters.characters import FORMAT_CHARACTERS, Characters, script_pattern
from tests.data.filters.texts import SCRIPTS, TEXTS


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


MIXED = [*TEXTS.values(), "", " ", "123 456", "a1!", "…", "e\u0301", "\u200b", "𝒳 𠀀 😀", "\u00a0\u3000x"]


def test_letters_and_their_share_as_unicodedata_has_them() -> None:
    characters = Characters(MIXED)
    letters = [sum(map(is_letter, text)) for text in MIXED]
    solid = [sum(not c.isspace() for c in text) for text in MIXED]
    assert characters.length_T.tolist() == [len(text) for text in MIXED]
    assert characters.letters().tolist() == letters
    expected = [count / max(all_, 1) for count, all_ in zip(letters, solid, strict=True)]
    assert characters.letter_share().tolist() == pytest.approx(expected)


def test_marks_are_letters() -> None:
    """The trap: by Python's \\w, a third to a half of these scripts is no letter, and their text would be dropped."""
    for language in ("my", "km", "ml", "hi"):
        text = TEXTS[language]
        words_only = sum(len(run) for run in re.findall(r"[^\W\d_]+", text)) / len(text.replace(" ", ""))
        assert Characters([text]).letter_share()[0] > 0.9 > 0.8 > words_only


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_in_its_script_and_in_no_other(language: str) -> None:
    characters = Characters([TEXTS[language]])
    for other, script in SCRIPTS.items():
        share = characters.script_share(script)[0]
        if script == SCRIPTS[language]:
            assert share == 1
        elif {language, other} == {"zh-Hans", "ja"} or (language == "zh-Hans" and other == "ko"):
            assert share > 0, "Han belongs to all three"
        elif {language, other} != {"ja", "ko"}:
            assert share == 0, (language, script)


def test_share_of_a_script_counts_letters_of_scripts_only() -> None:
    texts = ["мир peace", "123 !", "ー", "नि", "عربى\u064b", "漢字とkana"]
    assert Characters(texts).script_share("Cyrl").tolist() == [3 / 8, 1, 1, 0, 0, 0]
    assert Characters(texts).script_share("Cyrl,Latn").tolist() == [1, 1, 1, 0, 0, 4 / 7]
    assert Characters(texts).script_share("Jpan")[5] == pytest.approx(3 / 7)
    found = [len(regex.findall(r"\p{Script=Arabic}", t)) for t in texts]
    assert Characters(texts).script_share("Arab")[4] == found[4] / 4 == 1, "a mark of the script Inherited is neutral"


def test_an_unknown_script_is_named() -> None:
    with pytest.raises(ValueError, match="'Klingon'.*ISO 15924"):
        script_pattern("Klingon")


def test_format_characters_are_invisible_and_joiners_stay() -> None:
    removed = regex.findall(f"[{FORMAT_CHARACTERS}]", "".join(map(chr, range(0x110000))))
    assert {unicodedata.category(c) for c in removed} <= {"Cf", "Cn"}
    assert {"\u00ad", "\ufeff", "\u200e", "\u202b", "\u2067"} <= set(removed)
    assert not {"\u200c", "\u200d", "\u200b", "\u180e", "\u0600"} & set(removed)

"""Texts of a block as one array of code points, and what kind of character each is.

Counting in numpy over a whole block is some fifty times faster than a regular expression for each text. The kinds
come from the library `regex`, whose Unicode tables do not change with Python's version. Shapes: C characters of all
texts, T texts.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import numpy as np
import regex

LETTERS = r"[\p{L}\p{M}]"
MARKS = r"\p{M}"
WORD_CHARACTERS = r"[\p{L}\p{M}\p{N}]"
SPACES = r"\s"
# Written without spaces between words.
UNSPACED = "".join(
    rf"\p{{Script={script}}}"
    for script in (
        "Hani",
        "Hira",
        "Kana",
        "Bopo",
        "Thai",
        "Laoo",
        "Khmr",
        "Mymr",
        "Java",
        "Bali",
        "Lana",
        "Talu",
        "Yiii",
    )
)
# Unicode's scripts behind the codes of ISO 15924 that name a writing system of several, or a variant.
_WRITING_SYSTEMS = {
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
    "Hanb": ("Hani", "Bopo"),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Hrkt": ("Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    "Syrn": ("Syrc",),
}
_NEUTRAL = r"[\p{Script=Zyyy}\p{Script=Zinh}]"

# Invisible, and without meaning for the text: soft hyphen, bidi controls, word joiner, invisible operators, deprecated
# format characters, byte order mark, interlinear annotation. ZWJ, ZWNJ, ZWSP and the Mongolian vowel separator stay.
FORMAT_CHARACTERS = "\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"


class Characters:
    """Texts as arrays.

    Attributes:
      code_C: uint32, the code points of all texts, one text after the other.
      start_T, end_T: int64, where each text lies in it.
    """

    def __init__(self, texts: Sequence[str]):
        self.code_C = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
        length_T = np.fromiter(map(len, texts), np.int64, len(texts))
        self.end_T = np.cumsum(length_T)
        self.start_T = self.end_T - length_T

    @property
    def length_T(self) -> np.ndarray:
        """int64, characters of each text."""
        return self.end_T - self.start_T

    def are(self, kind: str) -> np.ndarray:
        """bool [C]: which characters match a pattern for one character, such as `LETTERS`."""
        return _table(kind)[self.code_C]

    def count(self, flag_C: np.ndarray) -> np.ndarray:
        """int64 [T]: in each text, the characters for which a flag is set."""
        sums = np.concatenate([[0], np.cumsum(flag_C, dtype=np.int64)])
        return sums[self.end_T] - sums[self.start_T]

    def letters(self) -> np.ndarray:
        """int64 [T]: letters, combining marks among them."""
        return self.count(self.are(LETTERS))

    def letter_share(self) -> np.ndarray:
        """float64 [T]: letters among all characters but white space; 0 for a text of white space alone."""
        return self.letters() / np.maximum(self.length_T - self.count(self.are(SPACES)), 1)

    def script_share(self, script: str) -> np.ndarray:
        """float64 [T]: letters of a script (ISO 15924) among the letters that belong to one; 1 where none does."""
        letter_C = self.are(LETTERS)
        own = self.count(letter_C & self.are(script_pattern(script)))
        all_of_a_script = self.count(letter_C & ~self.are(_NEUTRAL))
        return np.where(all_of_a_script > 0, own / np.maximum(all_of_a_script, 1), 1.0)


def script_pattern(script: str) -> str:
    r"""The pattern of one character of a script, from its ISO 15924 code: "Jpan" is Han, Hiragana and Katakana.

    Several scripts have commas between: "Cyrl,Latn".

    Raises:
      ValueError: Unicode has no such script.
    """
    names = [name for code in script.split(",") for name in _WRITING_SYSTEMS.get(code, (code,))]
    pattern = "".join(rf"\p{{Script={name}}}" for name in names)
    try:
        regex.compile(f"[{pattern}]")
    except regex.error:
        raise ValueError(
            f"script {script!r}: expected a code of ISO 15924 for a script in Unicode, such as Latn"
        ) from None
    return f"[{pattern}]"


@functools.lru_cache(maxsize=64)
def _table(kind: str) -> np.ndarray:
    """bool [all code points]: which match a pattern for one character. 1.1 MB, about 10 ms to make."""
    table = np.zeros(sys.maxunicode + 1, bool)
    for match in regex.finditer(f"(?:{kind})+", _all_characters()):
        table[match.start() : match.end()] = True
    return table


@functools.cache
def _all_characters() -> str:
    return "".join(map(chr, range(sys.maxunicode + 1)))

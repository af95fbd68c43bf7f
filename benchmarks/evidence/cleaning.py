r"""Cleaning of strings, and what counts as the same string.

Letters are `\p{L}\p{M}`, never `\w`, which does not match the vowel signs of Hindi, Burmese, Khmer and many others.
"""

from __future__ import annotations

import html
import unicodedata

import regex

_BREAK = regex.compile(r"</?(?:br|p|div|li|ul|ol|dl|dt|dd|h[1-6]|hr|pre|table|tr|td|th)\b[^<>]*>", regex.IGNORECASE)
_TAG = regex.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", regex.DOTALL)
_ENTITY = regex.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")  # "&copy" without its end is a word
_INVISIBLE = regex.compile(r"[\u00AD\u200B\u2060\uFEFF]")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’‐-][\p{L}\p{M}\p{N}]+)*")
_PLACEHOLDER = regex.compile(r"%\([^()]*\)[a-zA-Z]|%[-+ #0]*[\d.]*[sdifgrxX]\b|%\d+|\{[^{}]*\}")
_NOT_SAID = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


def clean(text: str) -> str:
    """`text` in NFC, without tags and invisible characters, entities resolved, white space collapsed."""
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), _TAG.sub("", _BREAK.sub(" ", text)))
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())


def without_accelerator(text: str, sign: str) -> str:
    """`text` without the marks of keyboard shortcuts: "&Save", "R&un", and "保存 (&S)" or "保存(S)" in whole."""
    if not sign:
        return text
    mark = regex.escape(sign)
    text = regex.sub(rf"\s*[(（]{mark}[A-Za-z0-9][)）]", "", text)
    return regex.sub(rf"{mark}(?=[\p{{L}}\p{{N}}])", "", text)


def words(text: str) -> list[str]:
    """The words of a text in a language that has spaces between them, without placeholders."""
    return [word for word in _WORD.findall(_PLACEHOLDER.sub(" ", text)) if regex.search(r"\p{L}", word)]


def has_letters(text: str) -> bool:
    """Whether anything but placeholders, digits and signs is in it."""
    return bool(regex.search(r"\p{L}", _PLACEHOLDER.sub(" ", text)))


def same_placeholders(text: str, other: str) -> bool:
    """Whether both have the same places to fill in (`%(name)s`, `%d`, `{name}`)."""
    return set(_PLACEHOLDER.findall(text)) == set(_PLACEHOLDER.findall(other))


def key(text: str) -> str:
    """What two strings have in common that say the same but for case, punctuation and spaces.

    A string without a letter or digit is its own key.
    """
    return _NOT_SAID.sub("", text.casefold()) or text

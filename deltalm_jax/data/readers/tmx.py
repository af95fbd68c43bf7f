"""TMX, the exchange format of translation memories, parsed as a stream.

It is fed a megabyte at a time. What XML allows and no translation memory needs is refused (`xml_stream.py`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import MAX_LINE_BYTES, clean, read_bytes
from deltalm_jax.data.readers.names import codes_in, is_english
from deltalm_jax.data.readers.pairs import Pair
from deltalm_jax.data.readers.xml_stream import XmlStream
from deltalm_jax.paths import as_path

# Inside a segment: the formatting codes of the program that wrote the memory, not text.
_CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})


def read_tmx(path: str | Path, counts: Counter[str] | None = None) -> Iterator[Pair]:
    """Pairs (English, other) of a translation memory, in file order.

    Args:
      path: `de-en.tmx.gz`, `.tmx.xz` or `.tmx`; its name says which language is paired with English.
      counts: `counts[reason] += 1` for every unit that is dropped: "languages" (not one segment in English and one in the
        file's other language), "empty" (a side without text), "long_line" (a side over `MAX_LINE_BYTES`), "entity"
        (refers to an entity that the file does not declare).

    Raises:
      CorpusError: the name has no two codes with English among them, a damaged file, or XML that is not well-formed or
        that is refused; names the line.
    """
    path = as_path(path)
    counts = Counter() if counts is None else counts
    codes = codes_in(path.name.split(".tmx")[0])
    if codes is None or is_english(codes[0]) == is_english(codes[1]):
        raise CorpusError(
            f"{path}: expected a name like de-en.tmx.gz, with en on one side: it says which languages to read."
        )
    units = _Units(path, codes[0] if is_english(codes[1]) else codes[1], counts)
    for block in read_bytes(path):
        units.feed(block)
        while units.pairs:
            yield units.pairs.popleft()
    units.feed(b"", last=True)


class _Units(XmlStream):
    """The handlers of the parser; finished pairs gather in `pairs`."""

    def __init__(self, path: Path, language: str, counts: Counter[str]):
        self.pairs: deque[Pair] = deque()
        super().__init__(
            path, "a translation memory", "Leave the file out, or take the Moses archive of the same text."
        )
        self._language, self._counts = language, counts
        self._segments: list[tuple[str, str | None]] = []  # language and text of each in the unit; None: over-long
        self._variant = ""  # language of the <tuv> that we are in
        self._pieces: list[str] | None = None  # of the <seg> that we are in
        self._size = 0  # characters in them
        self._code_depth = 0  # of formatting codes that we are in

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Units, their variants and segments; codes in these."""
        if self._pieces is not None:
            self._code_depth += name in _CODES or self._code_depth > 0
        elif name == "tu":
            self._segments, self.unknown_entity = [], False
        elif name == "tuv":
            self._variant = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif name == "seg":
            self._pieces, self._size, self._code_depth = [], 0, 0

    def end(self, name: str) -> None:
        """Puts a segment, or a unit, together."""
        if self._pieces is not None:
            if self._code_depth:
                self._code_depth -= 1
            elif name == "seg":
                text = None if self._size > MAX_LINE_BYTES else clean("".join(self._pieces).replace("\n", " "))
                self._segments.append((self._variant, text))
                self._pieces = None
        elif name == "tu":
            self._finish_unit()

    def text(self, data: str) -> None:
        """Text of a segment, if we are in one."""
        if self._pieces is not None and not self._code_depth:
            self._size += len(data)
            if self._size > MAX_LINE_BYTES:
                self._pieces.clear()
            else:
                self._pieces.append(data)

    def _finish_unit(self) -> None:
        english = [text for language, text in self._segments if is_english(language)]
        other = [text for language, text in self._segments if _same(language, self._language)]
        self._segments = []
        if len(english) != 1 or len(other) != 1:
            self._counts["languages"] += 1
        elif self.unknown_entity:
            self._counts["entity"] += 1
        elif (
            english[0] is None
            or other[0] is None
            or max(len(english[0].encode()), len(other[0].encode())) > MAX_LINE_BYTES
        ):
            self._counts["long_line"] += 1
        elif not english[0] or not other[0]:
            self._counts["empty"] += 1
        else:
            self.pairs.append((english[0], other[0]))


def _same(language: str, wanted: str) -> bool:
    """Whether two codes name one language: equal but for case and separator, or one of them has no region."""
    a, b = (code.lower().replace("_", "-") for code in (language, wanted))
    return a == b or (a.split("-")[0] == b.split("-")[0] and ("-" not in a or "-" not in b))

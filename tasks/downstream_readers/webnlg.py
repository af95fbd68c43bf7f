"""WebNLG's XML (release 3.0): sets of RDF triples, each with texts that say what they say.

What XML allows and these files do not need is refused (`deltalm_jax.data.readers.xml_stream`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers import CorpusError, clean
from deltalm_jax.data.readers.files import read_bytes
from deltalm_jax.data.readers.xml_stream import XmlStream

Triple = tuple[str, str, str]

_MAX_TEXT_CHARACTERS = 1 << 17
_ROOT = "benchmark"
_TRIPLES, _TRIPLE, _TEXT = "modifiedtripleset", "mtriple", "lex"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A set of triples and its texts.

    Attributes:
      category: "Airport".
      triples: (subject, property, object), in the order of the file.
      texts: in the language asked for; one or more.
    """

    category: str
    triples: tuple[Triple, ...]
    texts: tuple[str, ...]


def read_webnlg(path: Path, counts: Counter[str], language: str, *, lenient: bool = False) -> Iterator[Entry]:
    """Entries of a file, in its order.

    Args:
      path: an `.xml` file of the release (`en/train/3triples/3triples_Airport_train_challenge.xml`).
      counts: grows by "bad_text" (texts that the publishers marked as bad), "other_language" (texts), and "no_text" (dropped
        entries).
      language: "en" or "ru": a `lex` without a language is English.
      lenient: drop entries without a text in the language, as in training; else that is an error.

    Raises:
      CorpusError: a damaged file, XML that is not well-formed, is refused or is not WebNLG's, a triple without three parts,
        or no entry at all; names the line.
    """
    parser = _Entries(path, language, counts, lenient)
    for block in read_bytes(path):
        parser.feed(block)
        while parser.entries:
            yield parser.entries.popleft()
    parser.feed(b"", last=True)
    if not parser.found:
        raise CorpusError(f"{path}: expected entries of WebNLG, found none. Fetch the file again.")


class _Entries(XmlStream):
    """The handlers of the parser; finished entries gather in `entries`."""

    def __init__(self, path: Path, language: str, counts: Counter[str], lenient: bool):
        super().__init__(path, "a file of WebNLG's release 3.0", "Fetch the file again, or take it out of the folder.")
        self.entries: deque[Entry] = deque()
        self.found = 0
        self._language, self._counts, self._lenient = language, counts, lenient
        self._in_triples = False
        self._category = ""
        self._triples: list[Triple] = []
        self._texts: list[str] = []
        self._pieces: list[str] | None = None  # of the <mtriple> or <lex> that we are in
        self._size = 0
        self._wanted = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Entries, their triples and texts."""
        if self.depth == 1 and name != _ROOT:
            raise self.error(f"the root element <{name[:40]}> instead of <{_ROOT}>")
        if name == "entry":
            self._category, self._triples, self._texts = attributes.get("category", ""), [], []
        elif name == _TRIPLES:
            # Several of them say the same in other orders; the first is the one that counts.
            self._in_triples = not self._triples
        elif name == _TRIPLE and self._in_triples:
            self._pieces, self._size = [], 0
        elif name == _TEXT:
            self._pieces, self._size = [], 0
            self._wanted = (attributes.get("lang") or "en") == self._language
            if not self._wanted:
                self._counts["other_language"] += 1
            elif attributes.get("comment") == "bad":
                self._wanted = False
                self._counts["bad_text"] += 1

    def end(self, name: str) -> None:
        """Puts a triple, a text or an entry together."""
        if name == _TRIPLES:
            self._in_triples = False
        elif name == _TRIPLE and self._pieces is not None:
            parts = [clean(part) for part in "".join(self._pieces).replace("\n", " ").split(" | ")]
            if len(parts) != 3 or not all(parts):
                raise self.error(f'the triple {" | ".join(parts)[:80]!r} instead of "subject | property | object"')
            self._triples.append((parts[0], parts[1], parts[2]))
            self._pieces = None
        elif name == _TEXT and self._pieces is not None:
            text = clean(" ".join("".join(self._pieces).split()))
            if self._wanted and text:
                self._texts.append(text)
            self._pieces = None
        elif name == "entry":
            self._finish()

    def _finish(self) -> None:
        self.found += 1
        if not self._triples:
            raise self.error(f"an entry without <{_TRIPLE}> in a <{_TRIPLES}>")
        if not self._texts:
            if not self._lenient:
                raise self.error(
                    f"an entry without a text in {self._language!r} (a test set is published with and without references)"
                )
            self._counts["no_text"] += 1
            return
        self.entries.append(Entry(self._category, tuple(self._triples), tuple(self._texts)))

    def text(self, data: str) -> None:
        """Text of a triple or of a `lex`, if we are in one."""
        if self._pieces is not None:
            self._size += len(data)
            if self._size > _MAX_TEXT_CHARACTERS:
                raise self.error(f"a text of over {_MAX_TEXT_CHARACTERS:,} characters")
            self._pieces.append(data)

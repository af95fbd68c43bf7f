"""WebNLG's XML (release 3.0): sets of RDF triples, each with texts that say what they say.

The parser is expat, as for TMX: entity declarations, which can expand without end or name other files, are refused.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

from deltalm_jax.data.readers import CorpusError, clean
from deltalm_jax.data.readers.files import read_bytes

Triple = tuple[str, str, str]

_MAX_DEPTH = 100
_MAX_TEXT_CHARACTERS = 1 << 17
_MAX_MARKUP_BYTES = 16 << 20
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


class _Entries:
    """The handlers of the parser; finished entries gather in `entries`."""

    def __init__(self, path: Path, language: str, counts: Counter[str], lenient: bool):
        self.entries: deque[Entry] = deque()
        self.found = 0
        self._path, self._language, self._counts, self._lenient = path, language, counts, lenient
        self._depth = self._fed = self._seen = 0
        self._in_triples = False
        self._category = ""
        self._triples: list[Triple] = []
        self._texts: list[str] = []
        self._pieces: list[str] | None = None  # of the <mtriple> or <lex> that we are in
        self._size = 0
        self._wanted = False
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._refuse_entity
        parser.DefaultHandler = self._other

    def feed(self, data: bytes, last: bool = False) -> None:
        """Parses the next bytes."""
        self._fed += len(data)
        try:
            self._parser.Parse(data, last)
        except expat.ExpatError as error:
            raise CorpusError(
                f"{self._path}, line {error.lineno:,}, column {error.offset + 1}: the XML cannot be read: "
                f"{expat.ErrorString(error.code)}. The file is damaged or cut short; fetch it again."
            ) from error
        if self._fed - self._seen > _MAX_MARKUP_BYTES:
            raise self._error(f"markup of over {_MAX_MARKUP_BYTES >> 20} MiB in one piece")

    def _error(self, found: str) -> CorpusError:
        return CorpusError(
            f"{self._path}, line {self._parser.CurrentLineNumber:,}: expected a file of WebNLG's release 3.0, found {found}. "
            "Fetch the file again, or take it out of the folder."
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._seen = self._fed
        self._depth += 1
        if self._depth == 1 and name != _ROOT:
            raise self._error(f"the root element <{name[:40]}> instead of <{_ROOT}>")
        if self._depth > _MAX_DEPTH:
            raise self._error(f"elements nested over {_MAX_DEPTH} deep")
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

    def _end(self, name: str) -> None:
        self._seen = self._fed
        self._depth -= 1
        if name == _TRIPLES:
            self._in_triples = False
        elif name == _TRIPLE and self._pieces is not None:
            parts = [clean(part) for part in "".join(self._pieces).replace("\n", " ").split(" | ")]
            if len(parts) != 3 or not all(parts):
                raise self._error(f'the triple {" | ".join(parts)[:80]!r} instead of "subject | property | object"')
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
            raise self._error(f"an entry without <{_TRIPLE}> in a <{_TRIPLES}>")
        if not self._texts:
            if not self._lenient:
                raise self._error(
                    f"an entry without a text in {self._language!r} (a test set is published with and without references)"
                )
            self._counts["no_text"] += 1
            return
        self.entries.append(Entry(self._category, tuple(self._triples), tuple(self._texts)))

    def _text(self, data: str) -> None:
        self._seen = self._fed
        if self._pieces is not None:
            self._size += len(data)
            if self._size > _MAX_TEXT_CHARACTERS:
                raise self._error(f"a text of over {_MAX_TEXT_CHARACTERS:,} characters")
            self._pieces.append(data)

    def _other(self, data: str) -> None:
        self._seen = self._fed

    def _refuse_entity(self, name: str, *declaration: object) -> None:
        raise self._error(f"a declaration of the entity {name[:40]!r}: entities can hold other files, or gigabytes")

"""XML parsed as a stream, by expat, without what XML allows and no corpus needs.

Refused are entity declarations (which can expand without end, or name other files), elements nested a hundred deep, and
markup without end.
"""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from deltalm_jax.data.readers.errors import CorpusError

_MAX_DEPTH = 100
# Of one tag, comment or the like, which expat holds as a whole.
_MAX_MARKUP_BYTES = 16 << 20


class XmlStream:
    """A parser that is fed a file's bytes; a format overrides `start`, `end` and `text`.

    Args:
      path: for messages.
      expected: what the file should be, "a translation memory".
      advice: what to do with one that is not.

    Attributes:
      depth: elements that are open.
      unknown_entity: whether an entity was referred to that is not declared; to be set back by who looks at it.
    """

    def __init__(self, path: Path, expected: str, advice: str):
        self._path, self._expected, self._advice = path, expected, advice
        self.depth = 0
        self.unknown_entity = False
        self._fed = self._seen = 0  # bytes given to the parser, and how many of them when something last came of it
        self._parser = parser = expat.ParserCreate()
        # Text in pieces of this size, not of a line each.
        parser.buffer_text, parser.buffer_size = True, 1 << 16
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._refuse_entity
        parser.SkippedEntityHandler = self._skip_entity
        parser.DefaultHandler = self._other

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        raise NotImplementedError

    def end(self, name: str) -> None:
        """It ends."""
        raise NotImplementedError

    def text(self, data: str) -> None:
        """Characters, of a part of a text."""
        raise NotImplementedError

    def feed(self, data: bytes, last: bool = False) -> None:
        """Parses the next bytes.

        Raises:
          CorpusError: XML that is not well-formed or that is refused; names the line.
        """
        self._fed += len(data)
        try:
            self._parser.Parse(data, last)
        except expat.ExpatError as error:
            raise CorpusError(
                f"{self._path}, line {error.lineno:,}, column {error.offset + 1}: the XML cannot be read: "
                f"{expat.ErrorString(error.code)}. The file is damaged or cut short; fetch it again."
            ) from error
        if self._fed - self._seen > _MAX_MARKUP_BYTES:
            raise self.error(f"markup of over {_MAX_MARKUP_BYTES >> 20} MiB in one piece")

    def error(self, found: str) -> CorpusError:
        """What is to be raised where the file is not what it should be."""
        line = self._parser.CurrentLineNumber
        return CorpusError(f"{self._path}, line {line:,}: expected {self._expected}, found {found}. {self._advice}")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._seen = self._fed
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error(f"elements nested over {_MAX_DEPTH} deep")
        self.start(name, attributes)

    def _end(self, name: str) -> None:
        self._seen = self._fed
        self.depth -= 1
        self.end(name)

    def _text(self, data: str) -> None:
        self._seen = self._fed
        self.text(data)

    def _other(self, data: str) -> None:
        self._seen = self._fed

    def _skip_entity(self, name: str, is_parameter: bool) -> None:
        self.unknown_entity = True

    def _refuse_entity(self, name: str, *declaration: object) -> None:
        raise self.error(f"a declaration of the entity {name[:40]!r}: entities can hold other files, or gigabytes")

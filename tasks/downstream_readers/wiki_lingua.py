"""WikiLingua as GEM publishes it: JSON, an object a line, or TFDS's examples with the same fields.

The trap: `source` is the article in the other language and `target` the summary in English, so a language's data set is a
cross-lingual one. The same article and summary in both languages stand in `source_aligned` and `target_aligned`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalm_jax.data.readers import MAX_LINE_BYTES, CorpusError, clean
from tasks.downstream_readers.lines import bad_line, read_lines

ENGLISH = "en"
Row = tuple[str, list[str]]


def read_wiki_lingua(path: Path, counts: Counter[str], language: str, *, drop_empty: bool = False) -> Iterator[Row]:
    """(article in a language, summaries in English) of a file, in its order.

    Args:
      path: a JSON object a line; plain, `.gz` or `.xz`.
      counts: grows by "lines", and "empty" for rows that are dropped.
      language: code of the articles' language, as in `source_aligned`.
      drop_empty: drop rows without an article or a summary; else that is an error.

    Raises:
      CorpusError: a missing, empty or damaged file, no JSON, or fields that are missing, of another type, or at odds with
        the aligned ones; names the line.
    """
    for number, line in enumerate(read_lines(path, counts, max_bytes=MAX_LINE_BYTES), 1):
        assert line is not None, "not lenient"
        where = f"{path}, line {number:,}"
        if number == 1 and line.startswith("["):
            raise CorpusError(
                f"{where}: expected a JSON object a line, found one list of all. Write it out: jq -c '.[]' {path.name}"
            )
        try:
            example = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{where}: expected a JSON object, found: {error}. Fetch the file again.") from error
        row = wiki_lingua_row(example, where, language)
        if row[0] and row[1]:
            yield row
        elif drop_empty:
            counts["empty"] += 1
        else:
            raise bad_line(path, number, "empty", "")


def wiki_lingua_row(example: Any, where: str, language: str) -> Row:
    """(article, summaries) of an example; the article is "", or the list empty, where there is no text.

    Raises:
      CorpusError: as `read_wiki_lingua`; begins with `where`.
    """
    if not isinstance(example, Mapping):
        raise CorpusError(f"{where}: expected a JSON object, found {type(example).__name__}.")
    source, target = _text(example, "source", where), _text(example, "target", where)
    for name, code, plain in (("source_aligned", language, source), ("target_aligned", ENGLISH, target)):
        aligned = example.get(name)
        if aligned is None:
            continue
        if not isinstance(aligned, Mapping) or code not in aligned:
            found = ", ".join(aligned) if isinstance(aligned, Mapping) else type(aligned).__name__
            raise CorpusError(
                f"{where}: expected {name!r} to have {code!r}, found {found}. The file is another language's; this "
                f"task reads the articles in {language!r} with their summaries in English."
            )
        if _text(aligned, code, where) != plain:
            raise CorpusError(
                f"{where}: expected {name.split('_')[0]!r} to be {name}[{code!r}], found another text. In GEM's files "
                f"source is the article in {language!r} and target the summary in English; these have been changed."
            )
    references = example.get("references")
    if references is None:
        references = []
    if not isinstance(references, list):
        raise CorpusError(f"{where}: expected 'references' to be a list, found {type(references).__name__}.")
    texts = [_text({"references": reference}, "references", where) for reference in references] or [target]
    return source, [text for text in texts if text]


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        found = "no such field" if name not in fields else type(text).__name__
        raise CorpusError(f"{where}: expected the text {name!r}, found {found}. Fetch the file again.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where}: expected text in {name!r}, found half a character (a lone surrogate).") from error
    return clean(" ".join(text.split()))

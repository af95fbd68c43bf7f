"""CC-Net's JSON lines: documents, and what is wrong with a line."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter

import pytest

from deltalm_jax.data import readers
from deltalm_jax.data.readers import CorpusError, read_cc_net
from tests.data.readers.conftest import Write


def line(text: object, **fields: object) -> bytes:
    """As CC-Net writes them: letters as they are, other fields around."""
    document = {
        "url": "http://a.de",
        "digest": "sha1:X",
        "length": 3,
        "raw_content": text,
        "language_score": 0.97,
        **fields,
    }
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_paragraphs_are_the_lines_of_raw_content(write: Write, suffix: str) -> None:
    texts = ["eins\nzwei", "drei", "\n\nvier\u2028fünf\r\n\n sechs \n"]
    path = write(f"de_head_0000.json{suffix}", b"".join(map(line, texts)))
    counts: Counter[str] = Counter()
    assert list(read_cc_net(path, counts)) == [["eins", "zwei"], ["drei"], ["vier\u2028fünf", "sechs"]]
    assert not counts


def test_what_is_no_document_is_counted(write: Write) -> None:
    lines = [
        line("gut"),
        b"{'raw_content': 'python'}\n",
        b'{"raw_content": "cut off\n',
        b'{"raw_content": ' + b"[" * 100_000 + b"\n",  # deeper than Python's parser can go
        b'{"raw_content": "a", "length": ' + b"9" * 10_000 + b"}\n",  # longer than Python's numbers may be
        b'"raw_content"\n',
        b'{"title": "no text"}\n',
        line(None),
        line(["eins"]),
        line(""),
        line(" \n\u3000\n"),
        b"\n",
        b"\xff" + line("schlecht"),
        b"\xef\xbb\xbf" + line("noch ein BOM"),
    ]
    counts: Counter[str] = Counter()
    path = write("de_tail_0001.json.gz", b"".join(lines))
    assert list(read_cc_net(path, counts)) == [["gut"]]
    assert counts == {"bad_json": 5, "no_text": 4, "empty": 2, "invalid_utf8": 1}
    # At the very beginning it is a byte order mark.
    assert list(read_cc_net(write("de_all_0000.json", b"\xef\xbb\xbf" + line("da")))) == [["da"]]


def test_characters_that_utf8_does_not_have(write: Write) -> None:
    """JSON can name half of a character; what is given out can always be encoded."""
    pair = rb'{"raw_content": "whole \ud83d\ude00\nhalf \ud83d\nturned \ude00\ud83d\nna\u0000ul\n\u0001\u0002"}'
    counts: Counter[str] = Counter()
    (document,) = read_cc_net(write("en_head_0000.json", pair), counts)
    assert document == ["whole \U0001f600", "naul"]
    assert counts == {"lone_surrogate": 2, "empty": 1}
    "\n".join(document).encode()


def test_long_documents_and_lines(write: Write) -> None:
    long_paragraph = "y" * (readers.MAX_LINE_BYTES + 1)
    long_document = "\n".join(["z" * 1000] * 6000)  # 6 MB
    counts: Counter[str] = Counter()
    data = line(f"vor\n{long_paragraph}\nnach") + line(long_document) + line("x\n" * 5_000_000) + line("ende")
    path = write("de_head_0000.json", data)
    tracemalloc.start()
    documents = list(read_cc_net(path, counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents[0] == ["vor", "nach"]
    assert [len(d) for d in documents[1:-1]] == [4194, 1806]
    assert documents[-1] == ["ende"]
    assert counts == {"long_line": 2, "long_document": 1}
    assert peak < 64 << 20


def test_a_cut_file_is_an_error(write: Write) -> None:
    path = write("de_head_0000.json.gz", line("eins") * 100)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusError, match=r"de_head_0000\.json\.gz: the \.gz data ends too early"):
        list(read_cc_net(path))

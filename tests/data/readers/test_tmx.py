"""Translation memories: pairs of the file's two languages, and XML that is meant to do harm."""

from __future__ import annotations

import random
import time
import tracemalloc
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from deltalm_jax.data.readers import MAX_LINE_BYTES, CorpusError, read_opus
from tests.data.readers.conftest import Write

HEAD = """<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4">
<header srclang="de"/>
<body>
"""
END = "</body>\n</tmx>\n"


def unit(*variants: tuple[str, str]) -> str:
    return "<tu>" + "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in variants) + "</tu>\n"


def memory(*units: str) -> bytes:
    return (HEAD + "".join(units) + END).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_pairs_in_file_order(write: Write, suffix: str) -> None:
    units = [
        unit(("de", "Haus &amp; Hof"), ("en", "house &lt;and&gt; yard")),
        unit(("EN-us", "two\n  lines"), ("de", "zwei")),
    ]
    path = write(f"de-en.tmx{suffix}", memory(*units))
    assert list(read_opus(path)) == [("house <and> yard", "Haus & Hof"), ("two   lines", "zwei")]


def test_against_another_parser(write: Write) -> None:
    """A megabyte and more of random units, so that tags and characters fall between two blocks."""
    generator = random.Random(7)
    letters = "aäß€𝄞 <>&\"'\t日\u2028"
    texts = [
        tuple("".join(generator.choices(letters, k=generator.randrange(1, 60))) for _ in "ab") for _ in range(9000)
    ]
    path = write("en-xx.tmx", memory(*(unit(("en", escape(a)), ("xx", escape(b))) for a, b in texts)))
    expected = []
    for element in xml.etree.ElementTree.parse(path).iter("tu"):
        sides = [
            "".join(c for c in (seg.text or "").replace("\t", " ") if c >= " ").strip() for seg in element.iter("seg")
        ]
        if all(sides):
            expected.append(tuple(sides))
    assert path.stat().st_size > 1 << 20
    assert list(read_opus(path)) == expected
    assert len(expected) > 8000


def test_formatting_codes_are_no_text(write: Write) -> None:
    english = 'press <bpt i="1">&lt;b&gt;<sub>not this</sub></bpt>OK<ept i="1">&lt;/b&gt;</ept> <hi>now</hi><ph/>!'
    path = write("de-en.tmx", memory(unit(("en", english), ("de", "OK"))))
    assert list(read_opus(path)) == [("press OK now!", "OK")]


def test_units_that_are_no_pair_are_counted(write: Write) -> None:
    units = [
        unit(("en", "one"), ("de", "eins")),
        unit(("en", "one")),
        unit(("en", "one"), ("fr", "un")),
        unit(("en", "one"), ("en", "1"), ("de", "eins")),
        unit(("en", "two"), ("de_DE", "zwei"), ("fr", "deux")),
        unit(("en", ""), ("de", "drei")),
        unit(("en", "x" * (MAX_LINE_BYTES + 1)), ("de", "vier")),
        unit(("en", "a&nbsp;b"), ("de", "fünf")),
        unit(("en", "six"), ("de", "sechs")),
    ]
    counts: Counter[str] = Counter()
    pairs = list(read_opus(write("de-en.tmx", memory(*units)), counts))
    assert pairs == [("one", "eins"), ("two", "zwei"), ("six", "sechs")]
    assert counts == {"languages": 3, "empty": 1, "long_line": 1, "entity": 1}
    # Two regions of one language are not the same: Simplified and Traditional Chinese.
    counts = Counter()
    path = write("en-zh_CN.tmx", memory(unit(("en", "a"), ("zh_TW", "b")), unit(("en", "a"), ("zh-cn", "c"))))
    assert list(read_opus(path, counts)) == [("a", "c")]
    assert counts == {"languages": 1}


def test_other_encodings_that_xml_declares(write: Write) -> None:
    text = memory(unit(("en", "cheese"), ("de", "Käse"))).decode()
    for encoding in ("utf-16", "iso-8859-1"):
        path = write("de-en.tmx.gz", text.replace("UTF-8", encoding).encode(encoding))
        assert list(read_opus(path)) == [("cheese", "Käse")]


def test_billions_of_laughs(write: Write) -> None:
    declarations = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE tmx [{declarations}]><tmx><body>{unit(("en", "&a12;"), ("de", "x"))}</body></tmx>'
    path = write("de-en.tmx", bomb.encode())
    begin = time.monotonic()
    with pytest.raises(CorpusError, match=r"de-en\.tmx, line 1: .* found a declaration of the entity 'a0'"):
        list(read_opus(path))
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE tmx [<!ENTITY x SYSTEM "file://{canary}">]>',
        '<!DOCTYPE tmx [<!ENTITY % x SYSTEM "file://{canary}"> %x;]>',
    ],
)
def test_external_entities_are_refused_and_never_read(write: Write, tmp_path: Path, doctype: str) -> None:
    canary = tmp_path / "canary.txt"
    canary.write_text("secret")
    data = doctype.format(canary=canary) + f"<tmx><body>{unit(('en', '&x;'), ('de', 'a'))}</body></tmx>"
    with pytest.raises(CorpusError, match="a declaration of the entity 'x'") as error:
        list(read_opus(write("de-en.tmx", data.encode())))
    assert "secret" not in str(error.value)


def test_a_doctype_that_names_a_file_is_not_followed(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tmx14.dtd").write_text('<!ENTITY nbsp "from the file">')
    counts: Counter[str] = Counter()
    path = write("de-en.tmx", memory(unit(("en", "a&nbsp;b"), ("de", "c")), unit(("en", "d"), ("de", "e"))))
    assert list(read_opus(path, counts)) == [("d", "e")]
    assert counts == {"entity": 1}


def test_markup_without_end_and_depth(write: Write) -> None:
    for data, found in (
        (HEAD.encode() + b"<!-- " + b"x" * (40 << 20), "markup of over 16 MiB in one piece"),
        (HEAD.encode() + b'<tu a="' + b"x" * (40 << 20), "markup of over 16 MiB in one piece"),
        (HEAD.encode() + b"<a>" * 1000, "elements nested over 100 deep"),
    ):
        path = write("de-en.tmx", data)
        begin = time.monotonic()
        with pytest.raises(CorpusError, match=rf"de-en\.tmx, line 5: .*{found}|de-en\.tmx, line 6: .*{found}"):
            list(read_opus(path))
        assert time.monotonic() - begin < 5


def test_a_segment_without_end_takes_little_memory(write: Write) -> None:
    path = write("de-en.tmx", HEAD.encode() + b'<tu><tuv xml:lang="en"><seg>' + b"word\n" * (2 << 20))
    tracemalloc.start()
    with pytest.raises(CorpusError, match="no element found"):
        list(read_opus(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column 1: the XML cannot be read: no element found"),
        (memory(unit(("en", "one"), ("de", "eins")))[:-10], "cannot be read: unclosed token"),
        (memory(unit(("en", "one <b>"), ("de", "eins"))), "line 6, column .*: mismatched tag"),
        (memory(unit(("en", "&#xD800;"), ("de", "eins"))), "reference to invalid character number"),
        (memory(unit(("en", "a"), ("de", "b"))).replace(b">a<", b">\xff<"), "not well-formed"),
        (b"<html>404</html>" + b"x" * 20, "junk after document element"),
    ],
)
def test_damage_is_an_error_that_says_where(write: Write, data: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=rf"de-en\.tmx\.gz, .*{message}"):
        list(read_opus(write("de-en.tmx.gz", data)))


@pytest.mark.parametrize("name", ["memory.tmx", "de-fr.tmx.gz", "en-en_GB.tmx"])
def test_the_name_says_which_language(write: Write, name: str) -> None:
    with pytest.raises(CorpusError, match=r"expected a name like de-en\.tmx\.gz"):
        list(read_opus(write(name, memory())))

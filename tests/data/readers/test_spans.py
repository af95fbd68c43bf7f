"""Pieces of files against the whole file: every line and document once, wherever the cuts fall."""

from __future__ import annotations

import lzma
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import xz
from hypothesis import example, given
from hypothesis import strategies as st

from deltalm_jax.data.readers import CorpusError, read_cc100, read_ccaligned
from deltalm_jax.data.readers.spans import AFTER_BLANK_LINE, AFTER_LINE, Span, _cut, read_span, text_size


def spans_of(size: int, cuts: list[int]) -> list[Span]:
    """The file divided at these places, as far as they lie inside it."""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < size})]
    return [Span(start, end) for start, end in zip(places, [*places[1:], None], strict=True)]


def boundary_after(text: bytes, place: int, blank: bool) -> int:
    """By the definition, a byte at a time: the end of the first line feed (or blank line) from `place` - 1 on."""
    if place == 0:
        return 0
    for at in range(place - 1, len(text)):
        for ending in (b"\n\n", b"\n\r\n") if blank else (b"\n",):
            if text.startswith(ending, at):
                return at + len(ending)
    return len(text)


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\n\n", b"\r\n", b"\n\r\n", b"bc", b" "]), max_size=25).map(b"".join),
    st.lists(st.integers(0, 60), max_size=5),
    st.integers(1, 9),
    st.booleans(),
)
@example(b"a\n\n\nb\n\nc", [3], 1, True)
@example(b"\n\r\n\r\n", [1, 2, 3], 2, True)
def test_a_piece_begins_where_the_one_before_ends(text: bytes, cuts: list[int], block: int, blank: bool) -> None:
    pattern = AFTER_BLANK_LINE if blank else AFTER_LINE
    pieces = []
    for span in spans_of(len(text), cuts):
        begin = max(span.start - 1, 0)
        blocks = (text[at : at + block] for at in range(begin, len(text), block))
        pieces.append(b"".join(_cut(blocks, begin, span, pattern)))
        end = len(text) if span.end is None else boundary_after(text, span.end, blank)
        assert pieces[-1] == text[boundary_after(text, span.start, blank) : end]
    assert b"".join(pieces) == text


def corpus(generator: random.Random) -> bytes:
    """Documents with what real files have: CRLF, several blank lines, invalid UTF-8, no line feed at the end."""
    lines = [b"one paragraph", "ünï 中文".encode(), b"\xff\xfe", b"", b"", b"\r", b"  ", b"x" * 60, b"last"]
    return b"\n".join(generator.choice(lines) for _ in range(generator.randint(1, 40)))


def pair_lines(generator: random.Random) -> bytes:
    lines = [b"a house\tein Haus\t1.1", b"no tab", b"", b"water\tWasser", "\u2028x\ty\t1.0".encode()]
    return b"\n".join(generator.choice(lines) for _ in range(generator.randint(1, 40)))


def write(path: Path, text: bytes, block: int) -> Path:
    """Plain; or .xz of streams of `block` bytes of text each."""
    if path.suffix == ".xz":
        path.write_bytes(b"".join(lzma.compress(text[at : at + block]) for at in range(0, len(text), block)))
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_every_document_and_pair_once_for_every_cut(tmp_path: Path, suffix: str) -> None:
    generator = random.Random(0)
    for attempt in range(6):
        for name, make, reader in (
            (f"xx{attempt}.txt", corpus, read_cc100),
            (f"de_DE-en_X{'X'}.tsv", pair_lines, read_ccaligned),
        ):
            text = b"\xef\xbb\xbf" + make(generator)
            path = write(tmp_path / (name + suffix), text, generator.randint(7, 90))
            whole_counts = Counter[str]()
            whole = list(reader(path, whole_counts))
            for place in range(0, len(text) + 1, 1 if not suffix else 7):
                counts = Counter[str]()
                pieces = [item for span in spans_of(len(text), [place]) for item in reader(path, counts, span)]
                assert pieces == whole
                assert counts == whole_counts
            cuts = [generator.randrange(len(text)) for _ in range(5)]
            assert [item for span in spans_of(len(text), cuts) for item in reader(path, None, span)] == whole


def multi_block(path: Path, text: bytes, block: int) -> None:
    """One stream of several blocks, as `xz --block-size` writes it."""
    with xz.open(path, "wb") as file:
        for at in range(0, len(text), block):
            file.write(text[at : at + block])
            file.change_block()


def test_which_files_can_be_divided(tmp_path: Path) -> None:
    text = b"word\n\n" * 200
    (tmp_path / "plain.txt").write_bytes(text)
    (tmp_path / "one.txt.xz").write_bytes(lzma.compress(text))
    (tmp_path / "two.txt.xz").write_bytes(lzma.compress(text) * 2 + bytes(8))
    (tmp_path / "some.txt.gz").write_bytes(b"")
    multi_block(tmp_path / "blocks.txt.xz", text, 500)
    assert lzma.decompress((tmp_path / "blocks.txt.xz").read_bytes()) == text
    found = {path.name: text_size(path) for path in tmp_path.iterdir()}
    assert found == {
        "plain.txt": (1200, 1200),
        "one.txt.xz": (1200, 1),
        "two.txt.xz": (2400, 2),
        "some.txt.gz": None,
        "blocks.txt.xz": (1200, 3),
    }


def test_damage_in_a_piece_names_the_file_and_the_place(tmp_path: Path) -> None:
    generator = random.Random(1)
    text = b"".join(b"%d\n\n" % generator.getrandbits(60) for _ in range(20_000))
    multi_block(tmp_path / "xx.txt.xz", text, 100_000)
    data = bytearray((tmp_path / "xx.txt.xz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "xx.txt.xz").write_bytes(data)
    read = [span for span in spans_of(len(text), [100_000]) if list(readable(tmp_path / "xx.txt.xz", span))]
    assert read == [Span(0, 100_000)]
    with pytest.raises(CorpusError, match=r"xx\.txt\.xz: the \.xz data is damaged between bytes .*[Ff]etch"):
        list(read_cc100(tmp_path / "xx.txt.xz", None, Span(100_000, None)))
    (tmp_path / "xx.txt.xz").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"no sound index at its end .*incomplete"):
        text_size(tmp_path / "xx.txt.xz")


def readable(path: Path, span: Span) -> Iterator[bytes]:
    """A span's text; nothing where it is damaged."""
    try:
        yield from list(read_span(path, span, AFTER_LINE))
    except ValueError:
        return

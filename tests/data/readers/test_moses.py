"""Moses archives: pairs in step, and archives that are damaged or meant to do harm."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from deltalm_jax.data.readers import CorpusError, compression, read_opus
from deltalm_jax.data.readers.moses import MAX_MEMBERS

LICENSE = {"README": b"about", "LICENSE": b"terms", "Books.de-en.xml": b"<xml/>"}


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_pairs_of_the_published_form(tmp_path: Path) -> None:
    members = {**LICENSE, "Books.de-en.de": "Haus\nKäse\n".encode(), "Books.de-en.en": b"house\ncheese\n"}
    members |= {"Books.de-en.ids": b"1\n2\n", "Books.de-en.scores": b"0.1\n0.2\n"}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        assert list(read_opus(archive(tmp_path / "de-en.txt.zip", members, method))) == [
            ("house", "Haus"),
            ("cheese", "Käse"),
        ]
    members = {"T.v2-1.en-zh_CN.zh_CN": "一\n二".encode(), "T.v2-1.en-zh_CN.en": b"one\r\ntwo\r\n"}
    assert list(read_opus(archive(tmp_path / "en-zh_CN.txt.zip", members))) == [("one", "一"), ("two", "二")]
    members = {"GNOME.en_GB-sw.sw": b"moja\n", "GNOME.en_GB-sw.en_GB": b"one\n"}
    assert list(read_opus(archive(tmp_path / "en_GB-sw.txt.zip", members))) == [("one", "moja")]


def test_a_dropped_line_takes_its_partner_along_and_no_other(tmp_path: Path) -> None:
    """What cannot be read on one side must not shift the other."""
    english = [b"one", b"two \xff", b"", b"four", b"y" * ((1 << 20) + 1), b"six"]
    other = [b"eins", b"zwei", b"drei", b"\x00", "fünf".encode(), b"se\tchs"]
    members = {"B.de-en.en": b"\n".join(english), "B.de-en.de": b"\n".join(other) + b"\n"}
    counts: Counter[str] = Counter()
    pairs = list(read_opus(archive(tmp_path / "de-en.txt.zip", members), counts))
    assert pairs == [("one", "eins"), ("six", "se chs")]
    assert counts == {"invalid_utf8": 1, "empty": 2, "long_line": 1}


@pytest.mark.parametrize(("english", "german"), [(5, 3), (3, 5), (0, 2), (2000, 1999)])
def test_unequal_numbers_of_lines_are_refused_with_both(tmp_path: Path, english: int, german: int) -> None:
    members = {"B.de-en.en": b"one\n" * english, "B.de-en.de": b"eins\n" * german}
    with pytest.raises(CorpusError) as error:
        list(read_opus(archive(tmp_path / "de-en.txt.zip", members)))
    assert f"found {english:,} lines in {tmp_path}/de-en.txt.zip: B.de-en.en and {german:,} in B.de-en.de" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (LICENSE, r"found none such pair among 3 members \('README', 'LICENSE', 'Books.de-en.xml'\)"),
        ({"B.de-en.de": b"a\n"}, "found none such pair"),
        ({"B.de-fr.de": b"a\n", "B.de-fr.fr": b"a\n"}, "expected a language and English, found de and fr"),
        (
            {"A.de-en.de": b"a\n", "A.de-en.en": b"a\n", "B.de-en.de": b"a\n", "B.de-en.en": b"a\n"},
            "found 2 such pair among 4 members",
        ),
        ({"../B.de-en.de": b"a\n", "../B.de-en.en": b"a\n"}, "found none such pair"),
        ({"/etc/B.de-en.de": b"a\n", "/etc/B.de-en.en": b"a\n"}, "found none such pair"),
        ({"C:\\B.de-en.de": b"a\n", "..\\B.de-en.en": b"a\n"}, "found none such pair"),
        ({f"{i}.txt": b"" for i in range(MAX_MEMBERS + 1)}, "a few members, found 1,001"),
    ],
)
def test_archives_of_something_else(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        list(read_opus(archive(tmp_path / "de-en.txt.zip", members)))


def test_members_beside_the_two_are_not_looked_at(tmp_path: Path) -> None:
    """Nothing is extracted, so a name that would lead out of a folder leads nowhere."""
    members = {"../../evil.de-en.de": b"a\n", "/abs": b"x", "B.de-en.de": b"eins\n", "B.de-en.en": b"one\n"}
    before = set(tmp_path.parent.iterdir())
    assert list(read_opus(archive(tmp_path / "de-en.txt.zip", members))) == [("one", "eins")]
    assert set(tmp_path.parent.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["de-en.txt.zip"]


def test_links_and_encryption_and_other_methods(tmp_path: Path) -> None:
    path = tmp_path / "de-en.txt.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("B.de-en.de")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("B.de-en.en", "root\n")
    with pytest.raises(CorpusError, match=r"B\.de-en\.de: expected text, found a symbolic link"):
        list(read_opus(path))

    archive(path, {"B.de-en.de": b"eins\n", "B.de-en.en": b"one\n"})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1  # general purpose flag, bit 0
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"B\.de-en\.de: .* found an encrypted member"):
        list(read_opus(path))

    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, {"B.de-en.de": b"eins\n", "B.de-en.en": b"one\n"}, method)
        with pytest.raises(CorpusError, match=rf"stored or deflated, found method {method}"):
            list(read_opus(path))


def test_a_bomb_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = archive(tmp_path / "de-en.txt.zip", {"B.de-en.de": b"\n" * (64 << 20), "B.de-en.en": b"\n" * (64 << 20)})
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"B\.de-en\.\w\w: .* decompression bomb"):
        list(read_opus(path))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_directory_that_lies_about_sizes(tmp_path: Path) -> None:
    """It says 10 bytes, and 64 MB would come: no more than 10 are given, and the checksum is wrong."""
    path = archive(tmp_path / "de-en.txt.zip", {"B.de-en.de": b"\n" * (64 << 20), "B.de-en.en": b"\n" * 10})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, 10)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"de-en\.txt\.zip: the zip cannot be read \(Bad CRC-32"):
        list(read_opus(path))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_of_millions_is_refused_unread(tmp_path: Path, zip64: bool) -> None:
    path = tmp_path / "de-en.txt.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(70_000 if zip64 else 30_000):  # from 65,536 on, a zip64 record says how many there are
            file.writestr(f"{i}", b"")
    path.write_bytes(buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"found a directory of [\d,]+ bytes, for thousands"):
        list(read_opus(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_cut_or_flipped_anywhere_is_an_error(tmp_path: Path) -> None:
    text = "".join(f"{i * i} {i}\n" for i in range(400)).encode()
    path = archive(tmp_path / "de-en.txt.zip", {"B.de-en.de": text, "B.de-en.en": text, "LICENSE": b"terms"})
    whole = path.read_bytes()
    pairs = list(read_opus(path))
    for size in [0, 1, 30, len(whole) // 2, *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorpusError, match=r"de-en\.txt\.zip: .*fetch the file again"):
            list(read_opus(path))
    # A flipped byte gives an error or (in a date, say, or in LICENSE) nothing else than before.
    failed = 0
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 0x20
        path.write_bytes(flipped)
        try:
            assert list(read_opus(path)) == pairs, at
        except CorpusError as error:
            assert "de-en.txt.zip" in str(error)  # noqa: PT017
            failed += 1
    assert failed > 0.8 * len(range(0, len(whole), 7))


def test_an_error_page_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "de-en.txt.zip"
    path.write_bytes(b"<html>404</html>" * 20)
    with pytest.raises(CorpusError, match=r"de-en\.txt\.zip: expected a zip archive, found no directory .*error page"):
        list(read_opus(path))
    with pytest.raises(CorpusError, match=r"fr-en\.txt\.zip: expected a readable corpus file, found: No such file"):
        list(read_opus(tmp_path / "fr-en.txt.zip"))


def test_the_ratio_is_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the free size anything goes: a small archive of one word over and over is no bomb."""
    path = archive(tmp_path / "de-en.txt.zip", {"B.de-en.de": b"ja\n" * 100_000, "B.de-en.en": b"yes\n" * 100_000})
    assert sum(1 for _ in read_opus(path)) == 100_000
    monkeypatch.setattr(compression, "FREE_BYTES", 1000)
    with pytest.raises(CorpusError, match="decompression bomb"):
        list(read_opus(path))

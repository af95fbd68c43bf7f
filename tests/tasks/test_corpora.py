"""Finding files and dividing them into splits, in folders made by the tests."""

from __future__ import annotations

import lzma
import re
from collections import Counter
from pathlib import Path

import pytest
import xxhash

from deltalm_jax.data.blocks import encode_block, english_first
from deltalm_jax.data.readers import CorpusError
from deltalm_jax.data.shards import decode_records
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import (
    CC100,
    CCALIGNED,
    SAMPLE_DIR,
    CorpusFiles,
    find_files,
    read_split,
    require_items,
    task_name,
)


def make(folder: Path, *names: str, text: bytes = b"a\tb\n") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(text) if name.endswith(".xz") else text)


def test_published_names(tmp_path: Path) -> None:
    make(tmp_path, "cc100/de.txt.xz", "cc100/zh-Hans.txt.xz", "cc100/bn_rom.txt.xz", "cc100/README.md", "cc100/my.txt")
    make(tmp_path, "ccaligned/de_DE-en_XX.tsv.xz", "ccaligned/en_XX-zh_CN.tsv.xz", "ccaligned/cx_PH-en_XX.tsv.gz")
    assert list(find_files(tmp_path, "cc100")) == ["bn_rom", "de", "my", "zh-Hans"]
    assert find_files(tmp_path, "ccaligned") == {
        code: CorpusFiles(code, (tmp_path / "ccaligned" / name,))
        for code, name in (
            ("ceb", "cx_PH-en_XX.tsv.gz"),
            ("de", "de_DE-en_XX.tsv.xz"),
            ("zh-Hans", "en_XX-zh_CN.tsv.xz"),
        )
    }


def test_names_that_nobody_published(tmp_path: Path) -> None:
    """One's own languages, codes for languages that CCAligned lacks, and a second Azerbaijani."""
    make(tmp_path, "cc100/nah.txt.xz", "cc100/eu.txt.xz")
    make(tmp_path, *(f"ccaligned/{name}-en_XX.tsv" for name in ("ay_BO", "az_AZ", "az_IR")))
    make(tmp_path, *(f"ccaligned/en_XX-{name}.tsv" for name in ("eu_ES", "nah_MX")))
    assert list(find_files(tmp_path, "cc100")) == ["eu", "nah"]
    assert list(find_files(tmp_path, "ccaligned")) == ["ay", "az", "az_IR", "eu", "nah"]


def test_validation_files_are_found_by_name(tmp_path: Path) -> None:
    make(tmp_path, "cc100/de.txt.xz", "cc100/fr.txt.xz", "cc100/validation/de.txt.xz")
    files = find_files(tmp_path, "cc100")
    assert files["de"].validation[0] == tmp_path / "cc100/validation/de.txt.xz"
    assert files["fr"].validation == ()
    make(tmp_path, "cc100/validation/it.txt.xz")
    with pytest.raises(CorpusError, match=r"validation: no training file in .*cc100 for it\."):
        find_files(tmp_path, "cc100")


def test_languages_subset_and_nearest_names(tmp_path: Path) -> None:
    make(tmp_path, *(f"cc100/{code}.txt.xz" for code in ("de", "fr", "zh-Hans", "zh-Hant", "sw")))
    assert list(find_files(tmp_path, "cc100", ["zh-Hans", "de"])) == ["de", "zh-Hans"]
    for asked, message in (
        (["zh"], r"'zh' \(not a code of the table\), did you mean zh-Hans or zh-Hant\?"),
        (["german"], r"'german' .*did you mean de\?"),
        (["de_DE"], r"did you mean de\?"),
        (["swh"], r"did you mean sw\?"),
        (["de", "nl"], r"'nl' \(Dutch\).* Available: de, fr, sw, zh-Hans, zh-Hant\."),
        ([], "an empty list of languages"),
    ):
        with pytest.raises(CorpusError, match=message):
            find_files(tmp_path, "cc100", asked)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        find_files(tmp_path, "ccaligned")
    for part in (
        "de_DE-en_XX.tsv.xz",
        str(tmp_path / "ccaligned"),
        "no such folder",
        "https://www.statmt.org/cc-aligned",
    ):
        assert part in str(error.value)
    make(tmp_path, "cc100/readme.md", "cc100/de.tsv")
    with pytest.raises(CorpusError, match=r"de\.txt\.xz.*no file in it has such a name.*data\.statmt\.org/cc-100"):
        find_files(tmp_path, "cc100")
    with pytest.raises(CorpusError, match="Unknown corpus 'c4': expected one of cc100, cc_net, "):
        find_files(tmp_path, "c4")


def test_two_files_for_one_language(tmp_path: Path) -> None:
    make(tmp_path, "cc100/de.txt.xz", "cc100/de.txt.gz")
    with pytest.raises(CorpusError, match=r"'de': de\.txt\.gz and de\.txt\.xz"):
        find_files(tmp_path, "cc100")
    make(tmp_path, "ccaligned/de_DE-en_XX.tsv", "ccaligned/en_XX-de_DE.tsv")
    with pytest.raises(CorpusError, match="two files for the language 'de'"):
        find_files(tmp_path, "ccaligned")


def held_out(text: str, fraction: float) -> bool:
    """Independently of the code: the first of 2^64 parts of the hash."""
    return xxhash.xxh3_64(text.encode()).intdigest() / 2**64 < fraction


def test_documents_are_held_out_by_their_text(tmp_path: Path) -> None:
    documents = [[f"paragraph {i}", f"second {i}"] for i in range(400)]
    make(tmp_path, "cc100/de.txt.xz", text="\n\n".join("\n".join(d) for d in documents).encode())
    file = find_files(tmp_path, "cc100")["de"]
    train = list(read_split(CC100, file, "train", held_out_fraction=0.1))
    validation = list(read_split(CC100, file, "validation", held_out_fraction=0.1))
    assert validation == [d for d in documents if held_out("\n".join(d), 0.1)]
    assert train == [d for d in documents if not held_out("\n".join(d), 0.1)]
    assert 20 < len(validation) < 60
    assert list(read_split(CC100, file, "validation", held_out_fraction=0.0)) == []


def test_pairs_are_held_out_by_their_english_side(tmp_path: Path) -> None:
    make(
        tmp_path, "ccaligned/de_DE-en_XX.tsv.xz", text="".join(f"Satz {i}\tsentence {i}\n" for i in range(300)).encode()
    )
    make(
        tmp_path, "ccaligned/en_XX-fr_XX.tsv.xz", text="".join(f"sentence {i}\tmot {i}\n" for i in range(200)).encode()
    )
    files = find_files(tmp_path, "ccaligned")
    german = {pair[0] for pair in read_split(CCALIGNED, files["de"], "validation", held_out_fraction=0.2)}
    french = {pair[0] for pair in read_split(CCALIGNED, files["fr"], "validation", held_out_fraction=0.2)}
    assert german == {f"sentence {i}" for i in range(300) if held_out(f"sentence {i}", 0.2)}
    assert french == german & {f"sentence {i}" for i in range(200)}
    train = {pair[0] for pair in read_split(CCALIGNED, files["de"], "train", held_out_fraction=0.2)}
    assert not train & german
    assert len(train | german) == 300


def test_a_validation_file_is_taken_as_it_is(tmp_path: Path) -> None:
    make(tmp_path, "cc100/de.txt.xz", text=b"\n\n".join(b"t%d" % i for i in range(300)))
    make(tmp_path, "cc100/validation/de.txt.xz", text=b"v1\n\nv2")
    file = find_files(tmp_path, "cc100")["de"]
    assert list(read_split(CC100, file, "validation", held_out_fraction=0.5)) == [["v1"], ["v2"]]
    assert len(list(read_split(CC100, file, "train", held_out_fraction=0.5))) == 300
    with pytest.raises(ValueError, match="Unknown split 'test' of cc100: expected train or validation"):
        list(read_split(CC100, file, "test"))


def test_empty_files_are_errors_where_text_is_needed(tmp_path: Path) -> None:
    make(tmp_path, "cc100/de.txt.xz", text=b"\n\n\xff\n")
    file = find_files(tmp_path, "cc100")["de"]
    counts: Counter[str] = Counter()
    items = require_items(read_split(CC100, file, "train", counts), CC100, file.train[0], counts)
    with pytest.raises(
        CorpusError, match=r"de\.txt\.xz: expected documents .* found none \(dropped lines: invalid_utf8: 1\)"
    ):
        list(items)
    assert list(require_items([["a"]], CC100, file.train[0], Counter())) == [["a"]]

    # The document-aligned files of CCAligned have the same names.
    make(tmp_path, "ccaligned/de_DE-en_XX.tsv", text=b"d.de\thttp://a\ttext\thttp://b\ttext\n" * 3)
    file = find_files(tmp_path, "ccaligned")["de"]
    counts = Counter()
    with pytest.raises(CorpusError, match=r"columns: 3\)\. CCAligned's document files have 5 columns"):
        list(require_items(read_split(CCALIGNED, file, "train", counts), CCALIGNED, file.train[0], counts))


def test_task_names() -> None:
    assert task_name("cc100", "zh-Hans") == "cc100_zh_Hans"
    assert task_name("ccaligned", "sr-latn") == "ccaligned_sr_latn"
    for corpus in ("cc100", "ccaligned"):
        names = [task_name(corpus, code) for code in find_files(None, corpus)]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"\w+", name) for name in names)


def test_the_order_of_sides_is_a_fair_coin_and_the_preparations() -> None:
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    pairs = [(f"one {i}", f"zwei {i}") for i in range(400)]
    first = english_first(pairs).tolist()
    assert 150 < sum(first) < 250  # 5 standard deviations
    for pair, english in list(zip(pairs, first, strict=True))[:40]:
        records, _ = encode_block([pair], "pairs", vocabulary, 64)
        tokens_BL, lengths_B = decode_records(records, 64)
        sides = pair if english else pair[::-1]
        ids = [2, *vocabulary.encode(sides[0]), 3, *vocabulary.encode(sides[1]), 3]
        assert tokens_BL[0, : lengths_B[0]].tolist() == ids

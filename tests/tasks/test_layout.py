"""Which files of a folder are whose, in every corpus; and all of them together, prepared and read back."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tasks
from deltalm_jax.data.blocks import TextSource
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.mixture import Registration, inputs_of
from deltalm_jax.data.preparation import PreparationError, prepare
from deltalm_jax.data.readers import CorpusError
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import CORPORA, SAMPLE_DIR, find_files, read_split
from tasks.languages import Codes, load_languages
from tests.data.readers.test_wikipedia import ToyWikipedia

BOS, EOS = 2, 3


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder: Path, corpus: str) -> dict[str, list[str]]:
    files = find_files(folder, corpus).values()
    return {f.language: [str(path.relative_to(folder / corpus)) for path in f.train] for f in files}


def test_cc_net(tmp_path: Path) -> None:
    names = [
        "2019-09/de_head_0000.json.gz",
        "2019-09/de_tail_0012.json.gz",
        "de_middle_0000.json",
        "zh_all_0000.json.xz",
    ]
    make(tmp_path / "cc_net", *names, "2019-09/readme.json", "validation/zh_all_0000.json", "stats.txt")
    assert found(tmp_path, "cc_net") == {"de": names[:3], "zh-Hans": names[3:]}
    assert find_files(tmp_path, "cc_net")["zh-Hans"].validation == (tmp_path / "cc_net/validation/zh_all_0000.json",)
    make(tmp_path / "cc_net", "2019-09/de_head_0000.json")
    with pytest.raises(CorpusError, match=r"de_head_0000\.json and .*de_head_0000\.json\.gz are the same text twice"):
        find_files(tmp_path, "cc_net")


def test_opus(tmp_path: Path) -> None:
    names = [
        "Books/v1/moses/de-en.txt.zip",
        "Books_v1_moses_en-fr.txt.zip",
        "GNOME/en-sw.tmx.gz",
        "GNOME/en_GB-he.txt.zip",
        "KDE4/en-iw.txt.zip",
        "KDE4/en-nb.tmx",
        "KDE4/es_MX-en.txt.zip",
        "Subs/en-pt_br.txt.zip",
        "Subs/en-zh_TW.txt.zip",
        "Subs/en-zh_cn.txt.zip",
        "Tatoeba/en-xyz.txt.zip",
    ]
    make(tmp_path / "opus", *names, "Books/LICENSE", "index.json")
    assert found(tmp_path, "opus") == {
        "de": names[:1],
        "es": ["KDE4/es_MX-en.txt.zip"],
        "fr": ["Books_v1_moses_en-fr.txt.zip"],
        "he": ["GNOME/en_GB-he.txt.zip", "KDE4/en-iw.txt.zip"],
        "no": ["KDE4/en-nb.tmx"],
        "pt-br": ["Subs/en-pt_br.txt.zip"],
        "sw": ["GNOME/en-sw.tmx.gz"],
        "xyz": ["Tatoeba/en-xyz.txt.zip"],
        "zh-Hans": ["Subs/en-zh_cn.txt.zip"],
        "zh-Hant": ["Subs/en-zh_TW.txt.zip"],
    }
    make(tmp_path / "opus", "GNOME/en-sw.txt.zip")
    with pytest.raises(CorpusError, match=r"GNOME/en-sw\.tmx\.gz and .*GNOME/en-sw\.txt\.zip are the same text twice"):
        find_files(tmp_path, "opus")


@pytest.mark.parametrize("name", ["de-fr.txt.zip", "corpus.txt.zip", "en-en_GB.tmx.gz"])
def test_opus_without_english(tmp_path: Path, name: str) -> None:
    make(tmp_path / "opus", "de-en.txt.zip", name)
    with pytest.raises(CorpusError, match=rf"opus/{name}: expected a name that ends in two codes, one of them en"):
        find_files(tmp_path, "opus")


def test_text_of_ones_own(tmp_path: Path) -> None:
    names = ["nah/2020/b.txt.gz", "nah/2021/a.txt", "sw/x.txt", "sw.txt.xz", "zh_hans.txt"]
    make(
        tmp_path / "text",
        *names,
        "README.txt",
        "LICENSE",
        ".hidden.txt",
        "sw/LICENSE.txt",
        "validation/sw/held_out.txt",
    )
    assert found(tmp_path, "text") == {"nah": names[:2], "sw": names[2:4], "zh-Hans": names[4:]}
    assert find_files(tmp_path, "text")["sw"].validation == (tmp_path / "text/validation/sw/held_out.txt",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["news.txt"], r"news\.txt: expected a language code as its name, such as .*sw\.txt; or put .*sw/news\.txt"),
        (["swahili/a.txt"], r"text/swahili: expected a folder named by a language code"),
        (["sw/a.jsonl"], r"text/sw: expected files \*\.txt .* found none"),
        (["sw.txt.zst"], r"sw\.txt\.zst: expected text that is plain, \.xz or \.gz"),
        (["sw/a.txt", "sw/b.txt.bz2"], r"b\.txt\.bz2: expected text that is plain"),
        (["sw.txt", "sw.txt.gz"], "are the same text twice"),
        ([], "no such folder"),
    ],
)
def test_text_that_would_be_forgotten_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    make(tmp_path / "text", *names)
    with pytest.raises(CorpusError, match=message):
        find_files(tmp_path, "text")


def test_parallel_text_of_ones_own(tmp_path: Path) -> None:
    names = ["ha-en/a.tsv", "ha-en/b.tsv.gz", "news.en", "news.ha.gz", "news.sw", "sw-en.tsv", "web.en-sw.tsv.xz"]
    make(tmp_path / "parallel", *names, "README.md", "notes.txt", "stats.json", "validation/en-sw.tsv")
    assert found(tmp_path, "parallel") == {"ha": names[:4], "sw": ["news.en", *names[4:]]}
    assert find_files(tmp_path, "parallel")["sw"].validation == (tmp_path / "parallel/validation/en-sw.tsv",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["words.tsv"], r"words\.tsv: expected a name like sw-en\.tsv"),
        (["news.sw"], r"news\.sw: expected its English side beside it, its name with \.en for \.sw"),
        (["news.en"], r"news\.en: expected another side beside it, such as news\.sw"),
        (["sw-en.tsv.bz2"], "expected text that is plain"),
        (["news.en", "news.sw.zst"], r"news\.sw\.zst: expected text that is plain"),
        (["news.en", "news.en.gz", "news.sw"], r"news\.en and news\.en\.gz are the same text twice"),
    ],
)
def test_parallel_text_that_would_be_forgotten_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    make(tmp_path / "parallel", *names)
    with pytest.raises(CorpusError, match=message):
        find_files(tmp_path, "parallel")


def test_wikipedia(tmp_path: Path) -> None:
    def shards(config: str, total: int, *numbers: int, kind: str = "tfrecord") -> list[str]:
        folder = f"{config}/1.0.0"
        return [f"{folder}/wikipedia-train.{kind}-{number:05d}-of-{total:05d}" for number in numbers]

    names = [*shards("20230601.de", 2, 0, 1), *shards("20230601.simple", 1, 0), *shards("20230601.zh-min-nan", 1, 0)]
    make(tmp_path / "wikipedia", *names, "20230601.de/1.0.0/features.json")
    assert found(tmp_path, "wikipedia") == {"de": names[:2], "en": names[2:3], "zh-min-nan": names[3:]}
    make(tmp_path / "wikipedia", *shards("20230601.sw", 3, 0, 2))
    with pytest.raises(
        CorpusError, match=r"20230601\.sw/1\.0\.0: expected 3 shards of one format, found 2; number 00001"
    ):
        find_files(tmp_path, "wikipedia")
    make(tmp_path / "wikipedia", *shards("20230601.sw", 3, 0, 1, 2, kind="array_record"))
    with pytest.raises(CorpusError, match="expected 3 shards of one format, found 5"):
        find_files(tmp_path, "wikipedia")
    make(tmp_path / "wikipedia", *shards("20240101.de", 1, 0))
    with pytest.raises(CorpusError, match="expected one dump of the Wikipedia 'de', found .*20230601.* and .*20240101"):
        find_files(tmp_path, "wikipedia")


def test_codes_that_ccaligned_alone_uses(tmp_path: Path) -> None:
    names = [
        "cx_PH-en_XX.tsv",
        "cb_IQ-en_XX.tsv",
        "az_AZ-en_XX.tsv",
        "az_IR-en_XX.tsv",
        "en_XX-iw_IL.tsv",
        "en_XX-ns_ZA.tsv",
    ]
    make(tmp_path / "ccaligned", *names)
    assert list(find_files(tmp_path, "ccaligned")) == ["az", "az_IR", "ceb", "ckb", "he", "ns"]


def test_codes_and_their_aliases() -> None:
    codes = Codes(load_languages())
    for code, language in (
        ("iw", "he"), ("fil", "tl"), ("nb", "no"), ("no", "no"), ("NN", "nn"), ("nso", "ns"), ("cx", "ceb"), ("in", "id"),
        ("zh", "zh-Hans"), ("zh_TW", "zh-Hant"), ("zh_hant", "zh-Hant"), ("pt_BR", "pt-br"), ("sr_Latn", "sr-latn"),
        ("my_zaw", "my_zaw"), ("bn_rom", "bn_rom"), ("nah", "nah"), ("de_AT", "de_AT"),
    ):  # fmt: skip
        assert codes.find(code) == language, code
    for code, language in (
        ("de_AT", "de"),
        ("en_GB", "en"),
        ("az_IR", "az_IR"),
        ("uz_Cyrl", "uz_Cyrl"),
        ("zh_HK", "zh-Hant"),
    ):
        assert codes.find_regional(code) == language, code


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[Path]:
    """Each corpus with 30 texts in Swahili, all told apart by their numbers."""
    folder = tmp_path / "corpora"

    def write(name: str, text: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        path.write_bytes(
            lzma.compress(data) if name.endswith(".xz") else gzip.compress(data) if name.endswith(".gz") else data
        )

    numbers = range(30)
    write("cc100/sw.txt.xz", "\n\n".join(f"cc100 {i}\nhabari" for i in numbers))
    write("cc_net/sw_all_0000.json.gz", "".join(json.dumps({"raw_content": f"ccnet {i}"}) + "\n" for i in numbers))
    write("text/sw/a.txt", "\n\n".join(f"text {i}" for i in numbers[:10]))
    write("text/sw/b.txt.gz", "\n\n".join(f"text {i}" for i in numbers[10:]))
    write("ccaligned/en_XX-sw_KE.tsv.xz", "".join(f"sentence {i}\tsentensi {i}\t1.1\n" for i in numbers))
    write("ccaligned_documents/en_XX-sw_KE.tsv.xz", "".join(f"d\tu\tpage {i}\tu\tukurasa {i}\n" for i in numbers))
    write("parallel/sw-en.tsv", "".join(f"safu {i}\tcolumn {i}\n" for i in numbers[:10]))
    write("parallel/news.en", "".join(f"news {i}\n" for i in numbers[10:]))
    write("parallel/news.sw", "".join(f"mpya {i}\n" for i in numbers[10:]))
    (folder / "opus/Books").mkdir(parents=True)
    with zipfile.ZipFile(folder / "opus/Books/en-sw.txt.zip", "w") as archive:
        archive.writestr("Books.en-sw.en", "".join(f"book {i}\n" for i in numbers))
        archive.writestr("Books.en-sw.sw", "".join(f"kitabu {i}\n" for i in numbers))
    write(
        "opus/GNOME/en-sw.tmx",
        '<tmx><body><tu><tuv xml:lang="en"><seg>tmx</seg></tuv><tuv xml:lang="sw"><seg>tmx</seg></tuv></tu></body></tmx>',
    )
    ToyWikipedia(data_dir=str(folder), file_format="tfrecord").download_and_prepare()
    yield folder
    tasks.register()


def prepared(folder: Path, output: Path) -> tuple[list[TextSource], PreparedData]:
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    registration = Registration(vocabulary, {"data_dir": str(folder)})
    registration.register()
    inputs = inputs_of("deltalm_pretrain", registration)
    prepare(inputs, vocabulary, output, mixture="deltalm_pretrain", chunk_length=64, num_workers=1)
    return inputs, PreparedData.open(output)


def test_all_corpora_together(everything: Path, tmp_path: Path) -> None:
    """Registered, prepared, and every text found again in the chunks of its task, as often as it was there."""
    inputs, data = prepared(everything, tmp_path / "out")
    assert [source.task for source in inputs] == sorted(
        f"{name}_{'de' if name == 'wikipedia' else 'sw'}" for name in CORPORA if name != "examples"
    )
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    for number, task in enumerate(data.tasks):
        corpus = CORPORA[task.name.rsplit("_", 1)[0]]
        files = find_files(everything, corpus.name)[task.language]
        texts = [item for split in ("train", "validation") for item in read_split(corpus, files, split)]
        assert len(texts) == {"wikipedia": 40, "opus": 31}.get(corpus.name, 30)
        ids: list[int] = []
        for split in task.splits:
            chunks = np.arange(task.chunks(split))
            tokens_BL, lengths_B = data.read(split, np.full(len(chunks), number), chunks)
            for row, length in zip(tokens_BL, lengths_B, strict=True):
                ids += row[:length].tolist()
        # Paragraphs and sides, each closed by </s>; the sides of a pair in either order.
        written = Counter(tuple(g) for end, g in itertools.groupby(ids, lambda i: i in (BOS, EOS)) if not end)
        assert written == Counter(tuple(vocabulary.encode(text)) for item in texts for text in item), task.name


def test_a_changed_english_side_is_noticed(everything: Path, tmp_path: Path) -> None:
    """Of two line-aligned files both are among a task's files, so both are part of what was prepared."""
    prepared(everything, tmp_path / "out")
    prepared(everything, tmp_path / "out")
    english = everything / "parallel/news.en"
    english.write_text(english.read_text().replace("news 12", "news XII"))
    with pytest.raises(PreparationError, match=r"parallel_sw train text: .*--overwrite"):
        prepared(everything, tmp_path / "out")

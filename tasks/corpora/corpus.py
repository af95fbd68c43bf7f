"""Each corpus: its format, where it comes from, and how its files are named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deltalm_jax.data import readers
from tasks.corpora import layout
from tasks.languages import Codes

SAMPLE_DIR = Path(__file__).parents[1] / "sample"

Document = list[str]
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus: its format, and where it comes from.

    Attributes:
      name: folder name, and the first part of its task names.
      title: its name in messages.
      objective: what it is for, a key of `deltalm_jax.objectives.OBJECTIVES`.
      unit: what its reader gives, "documents" (lists of paragraphs), "pairs" (English, other) or "examples" (source, target).
      homepage: who publishes it, or what describes it.
      examples: file names.
      read: its reader, `(path, counts) -> iterator`.
      layout: which files of a folder are whose, `(folder, codes) -> iterator of (language, file)`.
      one_file: a language has one file; two are a mistake, such as the same text packed and not.
    """

    name: str
    title: str
    objective: str
    unit: str
    homepage: str
    examples: tuple[str, ...]
    read: Callable[..., Iterator[Any]]
    layout: Callable[[Path, Codes], Iterator[tuple[str, Path]]]
    one_file: bool = False

    def text_of(self, item: Any) -> str:
        """What decides whether an item is held out: a document's whole text, a pair's English side, an example's source."""
        return "\n".join(item) if self.unit == "documents" else item[0]


def _of_documents(
    name: str,
    title: str,
    homepage: str,
    examples: tuple[str, ...],
    read: Callable[[Path, Counter[str]], Iterator[Document]],
    files: Callable[[Path, Codes], Iterator[tuple[str, Path]]],
    one_file: bool = False,
) -> Corpus:
    return Corpus(name, title, "span_corruption", "documents", homepage, examples, read, files, one_file)


def _of_pairs(
    name: str,
    title: str,
    homepage: str,
    examples: tuple[str, ...],
    read: Callable[[Path, Counter[str]], Iterator[Pair]],
    files: Callable[[Path, Codes], Iterator[tuple[str, Path]]],
    one_file: bool = False,
) -> Corpus:
    return Corpus(name, title, "translation_span_corruption", "pairs", homepage, examples, read, files, one_file)


CC100 = _of_documents(
    "cc100",
    "CC100",
    "https://data.statmt.org/cc-100",
    ("de.txt.xz", "zh-Hans.txt.xz"),
    readers.read_cc100,
    layout.cc100,
    one_file=True,
)
CC_NET = _of_documents(
    "cc_net",
    "CC-Net",
    "https://github.com/facebookresearch/cc_net",
    ("de_head_0000.json.gz", "2019-09/sw_all_0000.json.gz"),
    readers.read_cc_net,
    layout.cc_net,
)
WIKIPEDIA = _of_documents(
    "wikipedia",
    "Wikipedia of TFDS",
    "https://www.tensorflow.org/datasets/catalog/wikipedia",
    ("20230601.de/1.0.0/wikipedia-train.tfrecord-00000-of-00016",),
    readers.read_wikipedia,
    layout.wikipedia,
)
TEXT = _of_documents(
    "text", "text of one's own", "docs/corpora.md", ("sw.txt", "sw/news.txt.gz"), readers.read_cc100, layout.text
)
CCALIGNED = _of_pairs(
    "ccaligned",
    "CCAligned (sentence-aligned)",
    "https://www.statmt.org/cc-aligned",
    ("de_DE-en_XX.tsv.xz", "en_XX-zh_CN.tsv.xz"),
    readers.read_ccaligned,
    layout.ccaligned,
    one_file=True,
)
CCALIGNED_DOCUMENTS = _of_pairs(
    "ccaligned_documents",
    "CCAligned (document-aligned)",
    "https://www.statmt.org/cc-aligned",
    ("en_XX-eo_XX.tsv.xz",),
    readers.read_ccaligned_documents,
    layout.ccaligned,
    one_file=True,
)
OPUS = _of_pairs(
    "opus",
    "OPUS",
    "https://opus.nlpl.eu",
    ("Tatoeba/v2023-04-12/moses/de-en.txt.zip", "Books_v1_moses_en-fr.txt.zip", "GNOME/en-sw.tmx.gz"),
    readers.read_opus,
    layout.opus,
)
PARALLEL = _of_pairs(
    "parallel",
    "parallel text of one's own",
    "docs/corpora.md",
    ("sw-en.tsv", "sw-en/news.tsv.gz", "news.sw with news.en"),
    readers.read_parallel,
    layout.parallel,
)
EXAMPLES = Corpus(
    "examples",
    "examples of one's own",
    "sequence_to_sequence",
    "examples",
    "docs/finetuning.md",
    ("de-en.tsv", "headlines.tsv.gz"),
    readers.read_examples,
    layout.examples,
    one_file=True,
)
CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (CC100, CC_NET, WIKIPEDIA, TEXT, CCALIGNED, CCALIGNED_DOCUMENTS, OPUS, PARALLEL, EXAMPLES)
}
# What the shipped sample has.
SAMPLE_CORPORA = (CC100, CCALIGNED)


def task_name(corpus_name: str, language: str) -> str:
    """Name of the seqio Task: `cc100_zh_Hans` (seqio allows no '-')."""
    return f"{corpus_name}_{language}".replace("-", "_")

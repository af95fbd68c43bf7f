"""Trains the sample's vocabulary and counts the sample's tokens.

    python -m tasks.sample.train_vocabulary

Writes `vocabulary.model` (SentencePiece, 8,000 pieces, unigram, byte fallback) from the training split of the shipped
sample, the same bytes every time; `token_counts.json`, from which the seqio mixtures take their rates; and the part of
`README.md` that tells how it was made. XLM-R's vocabulary works the same way with 250,000 pieces; this one exists so
that everything can be tried without a download.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from deltalm_jax.data.packing import max_side_length
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import CC100, CCALIGNED, SAMPLE_CORPORA, SAMPLE_DIR, Corpus, find_files, read_split, task_name

NUM_PIECES = 8000
# Of the 3,200 characters the rarest 700, mostly Chinese, are spelled in bytes and leave room for longer pieces.
# Measured: 0.995 gives 3.18 bytes a token but spells 60 % of the Chinese tokens in bytes; 0.9995 gives 3.12 and 9 %.
CHARACTER_COVERAGE = 0.9995
CHUNK_LENGTH = 512
_BEGIN, _END = "<!-- vocabulary: begin -->", "<!-- vocabulary: end -->"


@dataclasses.dataclass(frozen=True)
class Usage:
    """How the vocabulary fits a task's training text."""

    text_bytes: int
    pieces: int
    byte_pieces: int


def training_texts(data_dir: Path | None = None) -> list[str]:
    """Every distinct paragraph and side of a pair in the training split, in a fixed order."""
    texts: dict[str, None] = {}
    for corpus in SAMPLE_CORPORA:
        for file in find_files(data_dir, corpus.name).values():
            for item in read_split(corpus, file, "train"):
                texts.update(dict.fromkeys(item))
    return list(texts)


def train(texts: list[str], num_pieces: int = NUM_PIECES) -> bytes:
    """A serialised SentencePiece model. One thread and no sampling: the result depends on the texts alone."""
    model = io.BytesIO()
    # An iterator and a writer instead of file names: those would be stored in the model and change its digest.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=num_pieces,
        character_coverage=CHARACTER_COVERAGE,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        max_sentence_length=1 << 20,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def count_tokens(vocabulary: Vocabulary, data_dir: Path | None = None) -> dict[str, int]:
    """Tokens of the training split per task name, as they stand in chunks before packing.

    A paragraph and a side of a pair count one more for its `</s>`, a document one more for its `<s>`; sides count at
    most as long as they are kept in chunks of 512.
    """
    counts: dict[str, int] = {}
    for corpus in SAMPLE_CORPORA:
        for language, file in find_files(data_dir, corpus.name).items():
            counts[task_name(corpus.name, language)] = sum(
                _tokens(vocabulary, corpus, item) for item in read_split(corpus, file, "train")
            )
    return counts


def measure(vocabulary: Vocabulary) -> dict[str, Usage]:
    """Per language, bytes and pieces of the sample's monolingual training text."""
    # Byte pieces follow <unk>, <s>, </s> in the model: <0x00> has id 4.
    byte_ids = range(4, 4 + 256)
    usage = {}
    for language, file in find_files(None, "cc100").items():
        size, pieces = 0, Counter[bool]()
        for document in read_split(CC100, file, "train"):
            size += sum(len(paragraph.encode()) for paragraph in document)
            for ids in vocabulary.encode_batch(document):
                pieces.update(token in byte_ids for token in ids)
        usage[language] = Usage(size, pieces.total(), pieces[True])
    return usage


def describe(model: bytes, texts: list[str], counts: dict[str, int], usage: dict[str, Usage]) -> str:
    """The README's part on the vocabulary, in Markdown."""
    size, pieces, byte_pieces = (
        sum(getattr(u, name) for u in usage.values()) for name in ("text_bytes", "pieces", "byte_pieces")
    )
    by_density = sorted(usage, key=lambda code: usage[code].text_bytes / usage[code].pieces)
    by_bytes = sorted(usage, key=lambda code: -usage[code].byte_pieces / usage[code].pieces)

    def density(code: str) -> str:
        return f"{code} {usage[code].text_bytes / usage[code].pieces:.2f}"

    def share(code: str) -> str:
        return f"{code} {100 * usage[code].byte_pieces / usage[code].pieces:.1f} %"

    totals = {c.name: sum(n for name, n in counts.items() if name.startswith(c.name)) for c in SAMPLE_CORPORA}
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            "| command | `python -m tasks.sample.train_vocabulary` |",
            f"| sentencepiece | {sentencepiece.__version__} |",
            f"| sha256 of `vocabulary.model` | `{hashlib.sha256(model).hexdigest()}` |",
            f"| trained on | {len(texts):,} distinct paragraphs and sentences, {sum(map(len, texts)):,} characters |",
            f"| pieces | {NUM_PIECES:,}, unigram, byte fallback, `nmt_nfkc`, coverage {CHARACTER_COVERAGE} |",
            f"| bytes per token | {size / pieces:.2f}; lowest {', '.join(map(density, by_density[:5]))}; "
            f"highest {', '.join(map(density, by_density[:-6:-1]))} |",
            f"| bytes as tokens | {100 * byte_pieces / pieces:.2f} %; most {', '.join(map(share, by_bytes[:5]))} |",
            f"| tokens, monolingual | {totals['cc100']:,} |",
            f"| tokens, pairs (both sides) | {totals['ccaligned']:,} |",
        ]
    )


def _tokens(vocabulary: Vocabulary, corpus: Corpus, item: list[str] | tuple[str, str]) -> int:
    lengths: Iterator[int] = map(len, vocabulary.encode_batch(item))
    if corpus is CCALIGNED:
        return sum(min(length, max_side_length(CHUNK_LENGTH)) + 1 for length in lengths)
    return 1 + sum(length + 1 for length in lengths)


def main() -> None:
    """The command."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    texts = training_texts()
    model = train(texts)
    path = SAMPLE_DIR / "vocabulary.model"
    path.write_bytes(model)
    vocabulary = Vocabulary.load(path)
    counts = count_tokens(vocabulary)
    (SAMPLE_DIR / "token_counts.json").write_text(json.dumps(counts, indent=0) + "\n", encoding="utf-8")
    part = describe(model, texts, counts, measure(vocabulary))
    readme = SAMPLE_DIR / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(_BEGIN)
    readme.write_text(f"{before}{_BEGIN}\n{part}\n{_END}{rest.split(_END)[1]}", encoding="utf-8")
    print(part)


if __name__ == "__main__":
    main()

"""XQG in Chinese: from a passage and an answer in it, the question (Chi et al. 2020, XNLG; its Chinese part is WebQA's).

The files hold segmented, lower-cased text, a row a line. The segmenter's spaces are removed: the vocabulary has its own
pieces, and metrics look at characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from deltalm_jax.paths import as_path
from tasks.downstream_places import Row, files
from tasks.downstream_readers import join_chinese, read_aligned
from tasks.downstream_source import SPLITS, DownstreamSource, Publication
from tasks.downstream_spec import DownstreamSpec

# A source is the answer, this, and the passage: what is cut off a long one is the passage's end.
ANSWER_SEPARATOR = " | "
SOURCE_LENGTH, TARGET_LENGTH = 512, 64

_FILE_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_ROWS = {"train": 135_000, "validation": 5_000, "test": 3_000}


def xqg(data_dir: str | Path) -> list[DownstreamSpec]:
    """The task `xqg_zh`. Nothing is looked for yet."""
    folder = as_path(data_dir) / "xqg"
    places = {
        split: [files([folder / f"{_FILE_NAMES[split]}.{part}.zh.lc" for part in "aeq"], _reader(split))]
        for split in SPLITS
    }
    publication = Publication(
        title="XQG, Chinese",
        homepage="https://github.com/CZWin32768/XNLG",
        terms="no licence is stated there; it is made of WebQA, which is for research only.",
        how=dict.fromkeys(
            SPLITS,
            f"Unpack xqg.tar.gz, which is linked there, into {folder}: q is the question, a the answer, e the passage. The "
            "files before byte-pair encoding are meant, which end in .zh.lc.",
        ),
        rows=_ROWS,
    )
    return [
        DownstreamSpec(
            name="xqg_zh",
            source=DownstreamSource("xqg_zh", places, publication),
            language="zh",
            # Characters are what XNLG scores. METEOR knows no Chinese.
            metrics=("bleu_char", "bleu_zh", "rouge_characters", "script_han"),
            source_length=SOURCE_LENGTH,
            target_length=TARGET_LENGTH,
        )
    ]


def _reader(split: str) -> Callable[[list[Path], Counter[str]], Iterator[Row]]:
    def read(paths: list[Path], counts: Counter[str]) -> Iterator[Row]:
        for answer, passage, question in read_aligned(paths, counts, drop_empty=split == "train"):
            yield Row(join_chinese(answer) + ANSWER_SEPARATOR + join_chinese(passage), join_chinese(question))

    return read

"""Readers of the downstream tasks' published files: plain functions, (path, counts) → rows, without TensorFlow or seqio."""

from tasks.downstream_readers.chinese import join_chinese
from tasks.downstream_readers.lines import MAX_LINE_BYTES, read_aligned, read_columns, read_lines
from tasks.downstream_readers.sgm import read_sgm_pair
from tasks.downstream_readers.webnlg import Entry, read_webnlg
from tasks.downstream_readers.wiki_lingua import read_wiki_lingua, wiki_lingua_row

__all__ = [
    "MAX_LINE_BYTES",
    "Entry",
    "join_chinese",
    "read_aligned",
    "read_columns",
    "read_lines",
    "read_sgm_pair",
    "read_webnlg",
    "read_wiki_lingua",
    "wiki_lingua_row",
]

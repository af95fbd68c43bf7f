"""TFDS builder of CC100: monolingual web text in over 100 languages.

import tasks.datasets, tensorflow_datasets as tfds
tfds.load("cc100/de", split="train", download_and_prepare_kwargs={
    "download_config": tfds.download.DownloadConfig(manual_dir="DATA_DIR")})
"""

from __future__ import annotations

from tasks.corpora import CC100
from tasks.datasets.builder import CorpusBuilder, configs
from tasks.languages import load_languages


class Cc100(CorpusBuilder):
    """Documents of CC100, one configuration a language (`cc100/zh-Hans`), splits train and validation.

    Features: `text`, a document's paragraphs joined with a line feed, and `language`, its code.
    """

    CORPUS = CC100
    FEATURES = ("text",)
    DESCRIPTION = (
        "CC100: documents of CommonCrawl snapshots of 2018, filtered with CC-Net's method; it rebuilds the text that "
        "XLM-R was trained on. Documents are lists of paragraphs, here joined with line feeds."
    )
    CITATION = r"""@inproceedings{conneau-etal-2020-unsupervised,
  title = {Unsupervised Cross-lingual Representation Learning at Scale},
  author = {Conneau, Alexis and Khandelwal, Kartikay and Goyal, Naman and Chaudhary, Vishrav and Wenzek, Guillaume and
    Guzm{\'a}n, Francisco and Grave, Edouard and Ott, Myle and Zettlemoyer, Luke and Stoyanov, Veselin},
  booktitle = {Proceedings of ACL},
  year = {2020}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the files of https://data.statmt.org/cc-100, such as de.txt.xz, into the folder cc100 of the manual "
        "directory and keep their names. Without such a folder the shipped sample is built."
    )
    BUILDER_CONFIGS = configs([row for row in load_languages().values() if row.cc100_file or row.in_sample], "Text in")

"""TFDS builder of CCAligned: English sentence pairs in over 100 languages, mined from the web.

import tasks.datasets, tensorflow_datasets as tfds
tfds.load("ccaligned/de", split="train", download_and_prepare_kwargs={
    "download_config": tfds.download.DownloadConfig(manual_dir="DATA_DIR")})
"""

from __future__ import annotations

from tasks.corpora import CCALIGNED
from tasks.datasets.builder import CorpusBuilder, configs
from tasks.languages import load_languages


class Ccaligned(CorpusBuilder):
    """Sentence pairs of CCAligned, one configuration a language (`ccaligned/de`), splits train and validation.

    Features: `english`, `other`, and `language`, the other side's code; English whichever column it is in the file.
    """

    CORPUS = CCALIGNED
    FEATURES = ("english", "other")
    DESCRIPTION = (
        "CCAligned, sentence-aligned: sentence pairs with English, mined with LASER from web documents in 68 "
        "CommonCrawl snapshots up to March 2020. Quality differs much between languages; filter before use."
    )
    CITATION = r"""@inproceedings{el-kishky-etal-2020-ccaligned,
  title = {{CCA}ligned: A Massive Collection of Cross-Lingual Web-Document Pairs},
  author = {El-Kishky, Ahmed and Chaudhary, Vishrav and Guzm{\'a}n, Francisco and Koehn, Philipp},
  booktitle = {Proceedings of EMNLP},
  year = {2020}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the sentence-aligned files of https://www.statmt.org/cc-aligned, such as de_DE-en_XX.tsv.xz, into the "
        "folder ccaligned of the manual directory and keep their names. Without such a folder the shipped sample is "
        "built."
    )
    BUILDER_CONFIGS = configs(
        [row for row in load_languages().values() if row.code != "en" and (row.ccaligned_file or row.in_sample)],
        "Sentence pairs of English and",
    )

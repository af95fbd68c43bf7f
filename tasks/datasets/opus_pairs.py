"""TFDS builder of OPUS: sentence pairs with English from any of its corpora.

import tasks.datasets, tensorflow_datasets as tfds
tfds.load("opus_pairs/sw", split="train", download_and_prepare_kwargs={
    "download_config": tfds.download.DownloadConfig(manual_dir="DATA_DIR")})
"""

from __future__ import annotations

from tasks.corpora import OPUS
from tasks.datasets.builder import CorpusBuilder, configs
from tasks.languages import load_languages


class OpusPairs(CorpusBuilder):
    """Sentence pairs of OPUS's downloads, one configuration a language (`opus_pairs/sw`), splits train and validation.

    All files of the language that are there, one after the other; the same pair may be in several of OPUS's corpora.
    Features: `english`, `other`, and `language`, the other side's code.
    """

    CORPUS = OPUS
    FEATURES = ("english", "other")
    DESCRIPTION = (
        "OPUS: a collection of parallel corpora from the web (subtitles, software, law, religion, news). Each has its own "
        "licence, which its README or LICENSE says."
    )
    CITATION = r"""@inproceedings{tiedemann-2012-parallel,
  title = {Parallel Data, Tools and Interfaces in {OPUS}},
  author = {Tiedemann, J{\"o}rg},
  booktitle = {Proceedings of LREC},
  year = {2012}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put Moses archives (en-sw.txt.zip) or translation memories (en-sw.tmx.gz) of https://opus.nlpl.eu into the folder "
        "opus of the manual directory, each corpus in a folder of its own."
    )
    BUILDER_CONFIGS = configs(
        [row for row in load_languages().values() if row.code != "en"], "Sentence pairs of English and"
    )

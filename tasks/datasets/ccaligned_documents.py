"""TFDS builder of CCAligned's documents: lines of web pages that translate each other.

import tasks.datasets, tensorflow_datasets as tfds
tfds.load("ccaligned_documents/eo", split="train", download_and_prepare_kwargs={
    "download_config": tfds.download.DownloadConfig(manual_dir="DATA_DIR")})
"""

from __future__ import annotations

from tasks.corpora import CCALIGNED_DOCUMENTS
from tasks.datasets.builder import CorpusBuilder, configs
from tasks.datasets.ccaligned import Ccaligned
from tasks.languages import load_languages


class CcalignedDocuments(CorpusBuilder):
    """Pairs of lines of CCAligned's document pairs, one configuration a language; splits train and validation.

    Only documents with equally many lines on both sides, line by line (`readers.read_ccaligned_documents`).
    Features: `english`, `other`, and `language`, the other side's code; English whichever column it is in the file.
    """

    CORPUS = CCALIGNED_DOCUMENTS
    FEATURES = ("english", "other")
    DESCRIPTION = (
        "CCAligned, document-aligned: pairs of web pages in English and another language from 68 CommonCrawl snapshots up to "
        "March 2020, here as pairs of lines where both pages have the same number of lines. It has languages that the "
        "sentence-aligned part lacks. Quality differs much between languages; filter before use."
    )
    CITATION = Ccaligned.CITATION
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the document-aligned files of https://www.statmt.org/cc-aligned, such as en_XX-eo_XX.tsv.xz, into the folder "
        "ccaligned_documents of the manual directory and keep their names."
    )
    BUILDER_CONFIGS = configs(
        [row for row in load_languages().values() if row.code != "en"], "Pairs of lines of English and"
    )

"""TFDS builder of CC-Net: monolingual web text as CC-Net's own program writes it.

import tasks.datasets, tensorflow_datasets as tfds
tfds.load("cc_net/de", split="train", download_and_prepare_kwargs={
    "download_config": tfds.download.DownloadConfig(manual_dir="DATA_DIR")})
"""

from __future__ import annotations

from tasks.corpora import CC_NET
from tasks.datasets.builder import CorpusBuilder, configs
from tasks.languages import load_languages


class CcNet(CorpusBuilder):
    """Documents of CC-Net, one configuration a language (`cc_net/de`), splits train and validation.

    Features: `text`, a document's paragraphs joined with a line feed, and `language`, its code.
    """

    CORPUS = CC_NET
    FEATURES = ("text",)
    DESCRIPTION = (
        "CC-Net: documents of CommonCrawl snapshots, paragraphs deduplicated, languages identified, and divided into head, "
        "middle and tail by the perplexity of a language model of Wikipedia. Documents are lists of paragraphs, here joined "
        "with line feeds."
    )
    CITATION = r"""@inproceedings{wenzek-etal-2020-ccnet,
  title = {{CCN}et: Extracting High Quality Monolingual Datasets from Web Crawl Data},
  author = {Wenzek, Guillaume and Lachaux, Marie-Anne and Conneau, Alexis and Chaudhary, Vishrav and Guzm{\'a}n, Francisco and
    Joulin, Armand and Grave, Edouard},
  booktitle = {Proceedings of LREC},
  year = {2020}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "CC-Net is not published as files: run its program (https://github.com/facebookresearch/cc_net), and put what it "
        "writes, such as de_head_0000.json.gz, into the folder cc_net of the manual directory. Subfolders are read too."
    )
    BUILDER_CONFIGS = configs([row for row in load_languages().values() if row.in_xlmr], "Text in")

"""The corpora: which files they are, what is in them, and what of it is held out.

A data folder looks like this; each corpus may be there or not, and published files keep their names:

    DATA_DIR/cc100/de.txt.xz                        CC100
    DATA_DIR/cc_net/de_head_0000.json.gz            CC-Net, as its own program writes it; subfolders too
    DATA_DIR/wikipedia/20230601.de/1.0.0/…          Wikipedia, as TFDS's builder `wikipedia` prepares it
    DATA_DIR/ccaligned/de_DE-en_XX.tsv.xz           CCAligned, sentence-aligned
    DATA_DIR/ccaligned_documents/en_XX-eo_XX.tsv.xz CCAligned, document-aligned
    DATA_DIR/opus/Tatoeba/de-en.txt.zip             OPUS, Moses archives and .tmx.gz; any subfolders
    DATA_DIR/text/sw.txt, DATA_DIR/text/sw/*.txt    documents of one's own
    DATA_DIR/parallel/sw-en.tsv, news.sw + news.en  pairs of one's own
    DATA_DIR/examples/de-en.tsv                     examples of one's own to fine-tune on: source, tab, target
    DATA_DIR/CORPUS/validation/…                    optional: held-out text in files of the same names

docs/corpora.md has the formats. Where a language has no validation file, documents are held out by hash of their text and
pairs by hash of their English side, so a sentence is held out in all languages or in none; examples by hash of their source.
Without a folder (`None`) the shipped sample, `tasks/sample/`, is used, which has this very layout.
"""

from deltalm_jax.data.readers import CorpusError
from tasks.corpora.corpus import (
    CC100,
    CC_NET,
    CCALIGNED,
    CCALIGNED_DOCUMENTS,
    CORPORA,
    EXAMPLES,
    OPUS,
    PARALLEL,
    SAMPLE_CORPORA,
    SAMPLE_DIR,
    TEXT,
    WIKIPEDIA,
    Corpus,
    task_name,
)
from tasks.corpora.finding import CorpusFiles, find_files
from tasks.corpora.published import published_files, published_size
from tasks.corpora.splits import HELD_OUT_FRACTION, SPLITS, read_split, require_items

__all__ = [
    "CC100",
    "CCALIGNED",
    "CCALIGNED_DOCUMENTS",
    "CC_NET",
    "CORPORA",
    "EXAMPLES",
    "HELD_OUT_FRACTION",
    "OPUS",
    "PARALLEL",
    "SAMPLE_CORPORA",
    "SAMPLE_DIR",
    "SPLITS",
    "TEXT",
    "WIKIPEDIA",
    "Corpus",
    "CorpusError",
    "CorpusFiles",
    "find_files",
    "published_files",
    "published_size",
    "read_split",
    "require_items",
    "task_name",
]

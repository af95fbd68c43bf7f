"""The filters of one block: documents or pairs in, those that stay out, and counts of the rest."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from deltalm_jax.data.filters.characters import FORMAT_CHARACTERS
from deltalm_jax.data.filters.config import NORMAL_FORMS, FilterConfig
from deltalm_jax.data.filters.counting import count_before, count_dropped
from deltalm_jax.data.filters.documents import filter_documents
from deltalm_jax.data.filters.pairs import filter_pairs

_HAS_FORMAT = re.compile(f"[{FORMAT_CHARACTERS}]+")


def apply_filters(
    items: Sequence[Any],
    unit: str,
    language: str,
    script: str | None,
    config: FilterConfig,
    test_ngrams: np.ndarray | None,
    counts: Counter[str],
) -> list[Any]:
    """The documents or pairs of a block that stay, in their order, and as the settings change them.

    Two filters work elsewhere: `pair_min_margin` in the reader, and `pair_max_length_ratio` after tokenising. So do the
    duplicates, which are no matter of one block.

    Args:
      items: documents (lists of paragraphs) or pairs (English, other).
      unit: "documents" or "pairs".
      language: code that the texts are filed under.
      script: ISO 15924 code of the language's script; needed where `config.needs_script(unit)`.
      config: the settings.
      test_ngrams: from `read_test_sets`, where there are test sets.
      counts: see `counting.py`; changed in place.

    Raises:
      IdentifierError: from the user's function.
    """
    count_before(items, counts)
    if config.remove_format_characters or config.normalize:
        items = [[_changed(text, config, counts) for text in item] for item in items]
    filter_items = filter_documents if unit == "documents" else filter_pairs
    return filter_items(items, language, script, config, test_ngrams, counts)


def _changed(text: str, config: FilterConfig, counts: Counter[str]) -> str:
    """A text after the filters that change texts."""
    if config.remove_format_characters and _HAS_FORMAT.search(text):
        shorter = _HAS_FORMAT.sub("", text).strip()
        count_dropped("remove_format_characters", 1, len(text) - len(shorter), counts)
        text = shorter
    for form in NORMAL_FORMS:
        if form == config.normalize and (normal := unicodedata.normalize(form, text).strip()) != text:
            count_dropped("normalize", 1, len(text) - len(normal), counts)
            text = normal
    return text

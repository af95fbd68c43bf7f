"""Filters of text: what a preparation leaves out of its corpora, and why each piece went.

    config.py       `FilterConfig`: every setting, all off by default
    apply.py        the filters of one block, in their order
    characters.py   texts as arrays of code points; letters and scripts
    words.py        words and n-grams of a block as arrays of hashes, in scripts with and without spaces
    repetition.py   documents that repeat themselves
    pairs.py        what only pairs have: copies, swapped sides
    languages.py    language identification by a function of the user's
    test_sets.py    overlap with texts that a model is tested on
    duplicates.py   keys of texts that are equal or nearly so, and which of several is kept

Plain functions over the items of a block; `data/filtering.py` calls them in a preparation, and `data/deduplication.py`
compares keys.
"""

from deltalm_jax.data.filters.config import FilterConfig

__all__ = ["FilterConfig"]

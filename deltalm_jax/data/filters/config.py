"""The settings of the filters: what gin files (`FilterConfig.…`) and `prepare --filter.NAME=VALUE` bind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from deltalm_jax.fields import OPERATIONAL, check_types, operational

NORMAL_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
LEVELS = ("document", "paragraph")

# Range of each number: (least, most or None).
_SHARE = (0, 1)
_RANGES: dict[str, tuple[float, float | None]] = {
    "paragraph_min_letters": (0, None),
    "paragraph_max_characters": (1, None),
    "paragraph_min_letter_share": _SHARE,
    "paragraph_min_script_share": _SHARE,
    "document_min_letters": (0, None),
    "document_max_characters": (1, None),
    "document_max_duplicate_paragraphs": _SHARE,
    "document_max_duplicate_characters": _SHARE,
    "side_min_letters": (0, None),
    "side_max_characters": (1, None),
    "side_min_letter_share": _SHARE,
    "side_min_script_share": _SHARE,
    "pair_max_overlap": _SHARE,
    "pair_max_length_ratio": (1, None),
    "pair_min_margin": (0, None),
    "language_min_score": _SHARE,
    "test_set_ngram": (1, None),
    "minhash_bands": (1, 256),
    "minhash_rows": (1, 256),
    "minhash_ngram": (1, None),
}


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """What is left out of the text, or changed in it, before it is tokenised. By default nothing.

    All of it is off by default, because the paper names no filter, and because prepared data without settings should
    hold what the files hold; docs/filters.md recommends settings and shows what they drop. No rule knows a language:
    there are no stop words and no lengths of words. Letters are Unicode's letters and marks (`\\p{L}\\p{M}`): without
    marks, most of Burmese, Khmer or Malayalam is no letter. Where a script is written without spaces (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese …), two letters stand for a word.

    What is dropped is counted in the manifest as `filter_NAME`, by the field that dropped it. Filters come in the order
    of the fields, but for the margin, which comes first, and the ratio of lengths, which comes last; a text is counted
    by the first one that drops it. `paragraph_…` drops paragraphs, `document_…` documents, `side_…` and `pair_…` pairs;
    a document without any paragraph left is counted as `filter_emptied_documents`.

    Attributes:
      remove_format_characters: remove soft hyphens, bidi controls, byte order marks and other invisible characters.
        Never the zero-width joiner and non-joiner, which Persian and Indic scripts need, nor the zero-width space, with
        which Khmer, Thai and Burmese mark words (vocabularies make it a space).
      normalize: Unicode normal form, "NFC" or "NFKC", for a vocabulary that does not normalise. Others do (XLM-R's is
        NFKC with rules of its own), and normalising before them changes what they see.
      paragraph_min_letters: least letters.
      paragraph_max_characters: most characters.
      paragraph_min_letter_share: least share of letters among all characters but white space.
      paragraph_min_script_share: least share of the language's script among the letters that belong to a script
        (Unicode's Common and Inherited do not). The script is the language's in `tasks/languages.csv`, or that in
        `scripts`. A Chinese or Japanese character says as much as three or four Latin letters: thresholds that spare text
        with names and code in it are low.
      scripts: the script of languages where the table does not say it, or not all of it: {"sr": "Cyrl,Latn"}.
      document_max_duplicate_paragraphs: largest share of paragraphs that repeat an earlier one of the document
        (MassiveText, Rae et al. 2021, table A1: 0.30 of lines).
      document_max_duplicate_characters: largest share of characters in those (MassiveText: 0.20).
      document_max_top_ngrams: for n = 2, 3, …, the largest share of a document's characters in its most frequent n-gram
        of words (MassiveText: 0.20, 0.18, 0.16). Only documents of at least 50 words are judged, as there.
      document_min_letters: least letters.
      document_max_characters: most characters.
      side_min_letters: least letters in either side of a pair.
      side_max_characters: most characters.
      side_min_letter_share: as of paragraphs.
      pair_drop_swapped: drop pairs whose English side is mostly in the other language's script, and whose other side is
        Latin; with a `language_identifier` also those that it takes for swapped. Many of them: the file is misnamed.
      side_min_script_share: as of paragraphs; the English side is to be Latin.
      pair_drop_copies: drop pairs whose sides are equal, up to case, white space and compatibility characters.
      pair_max_overlap: largest share of the distinct words of the side that has fewer, that are in the other side too. Of
        sides with fewer than four, that says nothing.
      pair_max_length_ratio: the longer side has at most this many times the ids of the shorter one. Counted in ids of
        the vocabulary, which hold about as much in one script as in another, where characters do not (a Chinese one is
        worth three or four English ones). Sides of up to 8 ids are left alone: a ratio of so few says nothing.
      pair_min_margin: least margin (CCAligned's third column, of LASER). Rows without one are kept.
      language_identifier: "module:function" of yours, a function from a list of texts to a list of (code, score), which
        says the same of the same text every time. A text goes unless the code is its task's language (or that without
        script or region: "zh" will do for "zh-Hans") and ...
      language_min_score: ... the score is at least this (CC-Net: 0.5).
      language_level: whether each "document" is judged or each "paragraph". Of pairs, both sides are.
      test_sets: files of text that models will be tested on, also .xz and .gz; every tab-separated column of a line is
        one text. A paragraph or pair that has an n-gram of words in common with any of them goes.
      test_set_ngram: words in such an n-gram (GPT-3, Brown et al. 2020, appendix C: 13). Texts with fewer are compared
        whole.
      deduplicate_documents: drop documents that are much like an earlier one of the same language, in whichever corpus:
        MinHash over n-grams of words, with the three numbers below (FineWeb, Penedo et al. 2024: 14 bands of 8 hashes
        of 5-grams; documents of Jaccard similarity s meet with probability 1 - (1 - s**8)**14, one half at 0.69).
      deduplicate_paragraphs: drop paragraphs that are equal to an earlier one of the same language, up to case, white
        space and compatibility characters (CC-Net, Wenzek et al. 2020).
      deduplicate_pairs: the same for pairs: both sides are equal.
      minhash_bands: bands of hashes; two documents that agree in all of one band are taken for the same.
      minhash_rows: hashes in a band.
      minhash_ngram: words in an n-gram.
    """

    remove_format_characters: bool = operational(False)
    normalize: str | None = operational(None)
    paragraph_min_letters: int = operational(0)
    paragraph_max_characters: int | None = operational(None)
    paragraph_min_letter_share: float = operational(0.0)
    paragraph_min_script_share: float = operational(0.0)
    scripts: dict[str, str] = dataclasses.field(default_factory=dict, metadata=OPERATIONAL)
    document_max_duplicate_paragraphs: float = operational(1.0)
    document_max_duplicate_characters: float = operational(1.0)
    document_max_top_ngrams: tuple[float, ...] = operational(())
    document_min_letters: int = operational(0)
    document_max_characters: int | None = operational(None)
    side_min_letters: int = operational(0)
    side_max_characters: int | None = operational(None)
    side_min_letter_share: float = operational(0.0)
    pair_drop_swapped: bool = operational(False)
    side_min_script_share: float = operational(0.0)
    pair_drop_copies: bool = operational(False)
    pair_max_overlap: float = operational(1.0)
    pair_max_length_ratio: float | None = operational(None)
    pair_min_margin: float | None = operational(None)
    language_identifier: str | None = operational(None)
    language_min_score: float = operational(0.5)
    language_level: str = operational("document")
    test_sets: tuple[str, ...] = operational(())
    test_set_ngram: int = operational(13)
    deduplicate_documents: bool = operational(False)
    deduplicate_paragraphs: bool = operational(False)
    deduplicate_pairs: bool = operational(False)
    minhash_bands: int = operational(14)
    minhash_rows: int = operational(8)
    minhash_ngram: int = operational(5)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("document_max_top_ngrams", "test_sets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= (float("inf") if most is None else most):
                wanted = f"at least {least}" if most is None else f"between {least} and {most}"
                raise ValueError(f"FilterConfig.{name} must be {wanted}, found {value}")
        if any(not 0 <= share <= 1 for share in self.document_max_top_ngrams):
            raise ValueError(
                "FilterConfig.document_max_top_ngrams must hold shares between 0 and 1, for n = 2, 3, …, found "
                f"{self.document_max_top_ngrams}"
            )
        if self.normalize is not None and self.normalize not in NORMAL_FORMS:
            raise ValueError(
                f"FilterConfig.normalize must be one of {', '.join(NORMAL_FORMS)}, found {self.normalize!r}"
            )
        if self.language_level not in LEVELS:
            raise ValueError(
                f"FilterConfig.language_level must be one of {', '.join(LEVELS)}, found {self.language_level!r}"
            )
        if self.language_identifier is not None:
            module, colon, function = self.language_identifier.partition(":")
            if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
                raise ValueError(
                    'FilterConfig.language_identifier must be "module:function", such as "my_module:identify", found '
                    f"{self.language_identifier!r}"
                )

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, JSON-able: what a manifest says of the filters."""
        default = FilterConfig()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != getattr(default, name)
        }

    def script_of(self, language: str, groups: Mapping[str, str]) -> str | None:
        """The script of a task's language, or several with commas between; None where it is not known."""
        return self.scripts.get(language, groups.get("script"))

    def needs_script(self, unit: str) -> bool:
        """Whether the filters of "documents" or "pairs" must know a language's script."""
        if unit == "documents":
            return self.paragraph_min_script_share > 0
        return self.side_min_script_share > 0 or self.pair_drop_swapped

    def deduplicates(self, unit: str) -> tuple[str, ...]:
        """What is compared across all blocks of "documents" or "pairs", in order: "documents", "paragraphs", "pairs"."""
        names = ("documents", "paragraphs") if unit == "documents" else ("pairs",)
        return tuple(name for name in names if getattr(self, f"deduplicate_{name}"))

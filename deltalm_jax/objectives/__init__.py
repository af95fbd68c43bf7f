"""Objectives: host-side NumPy functions from token chunks to `inputs` and `targets`.

Everything here is a pure function of its arguments. Randomness comes in as one 64-bit key a row
(`objectives.hashing`), so the result for a row does not depend on the batch, the host or the step it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltalm_jax.objectives.cross_lingual_contrast import CrossLingualContrast
from deltalm_jax.objectives.masked_language_model import MaskedLanguageModel
from deltalm_jax.objectives.sequence_to_sequence import SequenceToSequence
from deltalm_jax.objectives.span_corruption import Corrupted, SpanCorruption
from deltalm_jax.objectives.translation_language_model import TranslationLanguageModel
from deltalm_jax.objectives.translation_span_corruption import TranslationSpanCorruption

Corruption = SpanCorruption | SequenceToSequence | MaskedLanguageModel | CrossLingualContrast
"""What takes a chunk apart; all have the same methods, and those that `uses_mask` want `mask_id` too."""

OBJECTIVES: dict[str, type[Corruption]] = {
    "span_corruption": SpanCorruption,
    "translation_span_corruption": TranslationSpanCorruption,
    "sequence_to_sequence": SequenceToSequence,
    "masked_language_model": MaskedLanguageModel,
    "translation_language_model": TranslationLanguageModel,
    "cross_lingual_contrast": CrossLingualContrast,
}

__all__ = [
    "OBJECTIVES",
    "Corrupted",
    "Corruption",
    "CrossLingualContrast",
    "MaskedLanguageModel",
    "SequenceToSequence",
    "SpanCorruption",
    "TranslationLanguageModel",
    "TranslationSpanCorruption",
    "length_settings",
    "make_objective",
    "mask_argument",
]


def make_objective(name: str, *, sizing: str = "raw", mask_sides: str = "both", **settings: Any) -> Corruption:
    """An objective by its name.

    Args:
      name: a key of `OBJECTIVES`.
      sizing: of span corruption, see `SpanCorruption`.
      mask_sides: of translation span corruption. Where one of these two has no meaning, it is of no account.
      **settings: the objective's own, where not their defaults: `noise_density` and `mean_span_length` (of no account where
        single positions are masked), `side_length`, or `source_length` and `target_length`.
    """
    if name == "sequence_to_sequence":
        return SequenceToSequence(**settings)
    if name == "translation_span_corruption":
        return TranslationSpanCorruption(**settings, sizing=sizing, mask_sides=mask_sides)
    if OBJECTIVES[name].uses_mask:
        return OBJECTIVES[name](**{k: v for k, v in settings.items() if k != "mean_span_length"})
    return SpanCorruption(**settings, sizing=sizing)


def mask_argument(corruption: Corruption, mask_id: int) -> dict[str, Any]:
    """What `corruption.corrupt` wants beside what all want: `mask_id`, or nothing."""
    return {"mask_id": mask_id} if corruption.uses_mask else {}


def length_settings(chunk_lengths: Mapping[str, int]) -> tuple[int | None, str]:
    """DataConfig's chunk_length and sizing that, all else at its defaults, give these raw lengths by objective.

    The inverse of `SpanCorruption.raw_length`. None in place of chunk_length: there is none that does.
    """
    if len(set(chunk_lengths.values())) == 1:
        return next(iter(chunk_lengths.values())), "raw"
    objectives = {name: make_objective(name, sizing="t5") for name in chunk_lengths}
    wanted = min(objectives[name].lengths(length)[0] for name, length in chunk_lengths.items())
    return wanted if all(objectives[n].raw_length(wanted) == m for n, m in chunk_lengths.items()) else None, "t5"

"""Pretraining objectives: host-side NumPy functions from token chunks to `inputs` and `targets`.

Everything here is a pure function of its arguments. Randomness comes in as one 64-bit key a row
(`objectives.hashing`), so the result for a row does not depend on the batch, the host or the step it is in.
"""

from deltalm_jax.objectives.span_corruption import Corrupted, SpanCorruption
from deltalm_jax.objectives.translation_span_corruption import TranslationSpanCorruption

OBJECTIVES: dict[str, type[SpanCorruption]] = {
    "span_corruption": SpanCorruption,
    "translation_span_corruption": TranslationSpanCorruption,
}

__all__ = ["OBJECTIVES", "Corrupted", "SpanCorruption", "TranslationSpanCorruption"]

"""Translation span corruption: span corruption over concatenated translation pairs, both sides masked.

DeltaLM's figure masks spans in both languages with sentinels running on across the boundary (what mT6 calls
translation *pair* span corruption; mT6's own task of this name masks one side). A chunk is
`<s> A </s> B </s> A' </s> B' </s> …` (`data.packing.pack_pairs`), one sequence to the mask: the same draw as for
monolingual text, at 50 %. 512 raw tokens become 341 inputs and 341 targets with 85 sentinels.
"""

from __future__ import annotations

import dataclasses

from deltalm_jax.objectives.span_corruption import SpanCorruption


@dataclasses.dataclass(frozen=True)
class TranslationSpanCorruption(SpanCorruption):
    """`SpanCorruption` with the paper's noise density for translation pairs."""

    noise_density: float = 0.5

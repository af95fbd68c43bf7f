"""What is compared: how each variant starts, and how it is pretrained."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to a model.

    Attributes:
      title: for tables and plots.
      initialize: `--initialize` of `convert`.
      pretraining: fields of DataConfig that differ from pretraining with both objectives; None: no pretraining.
    """

    title: str
    initialize: str = "interleaved"
    pretraining: dict[str, Any] | None = dataclasses.field(default_factory=dict)


VARIANTS = {
    "interleaved": Variant("interleaved decoder, both objectives, both sides, 50 %"),
    "vanilla_random": Variant("vanilla decoder, cross-attention random", "vanilla_random_cross_attention"),
    "vanilla_copied": Variant("vanilla decoder, cross-attention copied", "vanilla_copied_cross_attention"),
    "random": Variant("random weights", "random"),
    "span_corruption_alone": Variant(
        "span corruption alone", pretraining={"objective_batch_sizes": {"span_corruption": 0}}
    ),
    "one_side": Variant("one side of each pair masked", pretraining={"mask_sides": "one"}),
    "noise_15": Variant(
        "15 % of the pairs masked",
        pretraining={"noise_densities": {"span_corruption": 0.15, "translation_span_corruption": 0.15}},
    ),
    "no_pretraining": Variant("warm start only", pretraining=None),
}

# The questions: title → variants side by side. The first is DeltaLM.
COMPARISONS = {
    "How the decoder starts": ("interleaved", "vanilla_random", "vanilla_copied", "random"),
    "What is learned from": ("interleaved", "span_corruption_alone", "one_side", "noise_15"),
    "Whether to pretrain at all": ("interleaved", "no_pretraining"),
}

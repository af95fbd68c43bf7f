"""The best checkpoint of a fine-tuning: what is looked at after each validation, and when a run has seen enough.

    TrainConfig.select_by = "bleu"     held-out sources are decoded, and what comes out is scored
    TrainConfig.select_by = "loss"     the validation's loss

The checkpoint of the best validation so far is kept, whatever the rules of keeping say, until there is a better one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

LOSS = "loss"


@dataclasses.dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
      by: what it is judged by.
      step: updates done then.
      value: of that.
      since: validations without a better one after it.
    """

    by: str
    step: int
    value: float
    since: int = 0

    def after(self, step: int, value: float) -> Best:
        """The best one after one more validation. A value that is not a number is never better."""
        better = value < self.value if self.by == LOSS else value > self.value
        return Best(self.by, step, value) if better else dataclasses.replace(self, since=self.since + 1)

    def is_enough(self, patience: int | None) -> bool:
        """Whether there has been none better for so many validations."""
        return patience is not None and self.since >= patience

    def __str__(self) -> str:
        return f"best validation: step {self.step:,}, {self.by} {self.value:.4g}"


def as_record(best: Best | None) -> dict[str, Any]:
    """What a checkpoint says of it; nothing where there is none (a first best one is no number of JSON's)."""
    return {} if best is None or not best.step else {"best": dataclasses.asdict(best)}


def best_of(about: dict[str, Any], by: str | None) -> Best | None:
    """The best one so far of what a checkpoint says; where it knows of none that was judged by this, the first.

    None if nothing is to be judged.
    """
    if by is None:
        return None
    told = about.get("best")
    return Best(**told) if told and told["by"] == by else first_best(by)


def first_best(by: str) -> Best:
    """What any value is better than."""
    return Best(by, 0, float("inf") if by == LOSS else float("-inf"))

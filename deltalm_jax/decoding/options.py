"""What a search is told: what is the same for all sources of a call, and what each source may have of its own.

Legend: B sources, V vocabulary, P tokens of a forced beginning.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax

from deltalm_jax.fields import check_types

RULES = ("fairseq", "t5", "huggingface")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Temperature comes first, then `top_k`, then `top_p` over what is left, as in transformers.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token, as greedy decoding does.
      top_k: only so many of the likeliest tokens are drawn from; 0 for all.
      top_p: only the likeliest tokens are drawn from, the fewest that together have at least this probability; 1 for all.

    Raises:
      TypeError: a field has another type than declared.
      ValueError: a field is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"Sampling.temperature must be 0 or a positive number, found {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"Sampling.top_k must be at least 0 (for no limit), found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling.top_p must be above 0 and at most 1 (for no limit), found {self.top_p}")


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to search. The defaults are fairseq's. Each set of options is compiled once for a shape of sources.

    Attributes:
      beam_size: hypotheses kept for each source (K), live and ended ones apart. 1 is greedy decoding. If sampling, the
        samples drawn of each source.
      max_length: most tokens of a hypothesis, the final `</s>` not counted (fairseq's `max_len`; transformers'
        `max_new_tokens`, which counts a `</s>` where there is one, and so allows one token fewer before it).
      min_length: fewest tokens before `</s>` (fairseq's `min_len`; transformers' `min_new_tokens`, by default 0 there).
      length_penalty: α, which the score of a hypothesis depends on; see `beam.py`. 0 ranks by probability; larger values
        favour longer hypotheses.
      no_repeat_ngram_size: no hypothesis has the same n-gram of this size twice; 0 allows all.
      rule: "fairseq", "t5" or "huggingface"; see `beam.py`.
      early_stopping: under "huggingface", whether a source is done as soon as K hypotheses have ended.
      sampling: how to draw; None for beam search.

    Raises:
      TypeError: a field has another type than declared.
      ValueError: a field is out of range.
    """

    beam_size: int = 5
    max_length: int = 200
    min_length: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    rule: str = "fairseq"
    early_stopping: bool = False
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("beam_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"SearchOptions.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"SearchOptions.min_length must be between 0 and max_length={self.max_length}, found {self.min_length}"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"SearchOptions.length_penalty must be finite, found {self.length_penalty}")
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            raise ValueError(
                f"SearchOptions.no_repeat_ngram_size must be 0, for no such rule, or at least 2: 1 would forbid "
                f"</s>, as the decoder starts from it; found {self.no_repeat_ngram_size}"
            )
        if self.rule not in RULES:
            raise ValueError(f"SearchOptions.rule must be one of {', '.join(map(repr, RULES))}, found {self.rule!r}")
        if self.early_stopping and self.rule != "huggingface":
            raise ValueError(
                f"SearchOptions.early_stopping must be False under rule={self.rule!r}, which has a way to stop of its own; "
                "found True: leave it out, or take rule='huggingface'"
            )

    @property
    def ends_with_eos(self) -> bool:
        """Whether a hypothesis at its limit is made to end with `</s>`; otherwise it ends as it is."""
        return self.rule != "huggingface"

    @property
    def max_tokens(self) -> int:
        """Most tokens of a hypothesis, `</s>` included; also the most that the decoder is fed, which begins with `</s>`."""
        return self.max_length + self.ends_with_eos


class Requests(NamedTuple):
    """What each source may have of its own. None: nothing.

    Attributes:
      min_length_B, max_length_B: int32, in place of the options'; at most the options' `max_length`.
      prefix_BP: int32, how its hypotheses must begin, then `PAD_ID`. These tokens are scored as the model scores them,
        whatever is forbidden otherwise.
      key_B: typed jax keys, which samples are drawn from.
      allowed_V: bool, of all sources: tokens that may be generated, beside `</s>`.
    """

    min_length_B: jax.Array | None = None
    max_length_B: jax.Array | None = None
    prefix_BP: jax.Array | None = None
    key_B: jax.Array | None = None
    allowed_V: jax.Array | None = None

"""Lines of text to sources, and hypotheses to lines."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, Vocabulary
from deltalm_jax.decoding.arguments import GenerationError
from deltalm_jax.decoding.generation import Hypothesis

TOO_LONG = ("cut", "skip", "fail")
FORMATS = ("text", "jsonl")


@dataclasses.dataclass
class Counts:
    """What became of the lines."""

    lines: int = 0
    blank: int = 0
    cut: int = 0
    skipped: int = 0
    tokens: int = 0  # of the best hypotheses

    def text(self) -> str:
        """For people."""
        others = {"blank": self.blank, "too long and cut": self.cut, "too long and skipped": self.skipped}
        notes = [f"{count:,} {name}" for name, count in others.items() if count]
        return f"{self.lines:,} lines" + (f" ({', '.join(notes)})" if notes else "")


@dataclasses.dataclass(frozen=True)
class SourceTexts:
    """How a line becomes a source: prefix, text, `</s>`, as in fine-tuning.

    Attributes:
      vocabulary: of the model.
      max_length: most tokens of a source (`ModelConfig.max_length`).
      prefix: text put before each line.
      too_long: what is done with a longer one: "cut" its end off, "skip" it (its line stays blank), or "fail".
    """

    vocabulary: Vocabulary
    max_length: int
    prefix: str = ""
    too_long: str = "cut"

    def source(self, line: bytes, number: int, counts: Counts) -> list[int] | None:
        """The ids of a line; None for one without any, or skipped.

        Args:
          line: UTF-8, with or without its end.
          number: of the line, from 1; for messages.
          counts: grows.

        Raises:
          GenerationError: the line is no UTF-8, or too long.
        """
        counts.lines += 1
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise GenerationError(
                f"line {number} of the input is no UTF-8: byte {error.start + 1} of it is 0x{line[error.start]:02x}. Convert "
                "the input (iconv -t UTF-8), or leave the line out"
            ) from error
        if not text or not self.vocabulary.encode(text):
            counts.blank += 1
            return None
        tokens = [*self.vocabulary.encode(self.prefix + text), EOS_ID]
        if len(tokens) <= self.max_length:
            return tokens
        if self.too_long == "fail":
            raise GenerationError(
                f"line {number} of the input has {len(tokens)} tokens, `</s>` and prefix included; the model takes "
                f"{self.max_length}: split it, or say --too_long=cut or --too_long=skip"
            )
        if self.too_long == "skip":
            counts.skipped += 1
            return None
        counts.cut += 1
        return [*tokens[: self.max_length - 1], EOS_ID]


@dataclasses.dataclass(frozen=True)
class TargetTexts:
    """How hypotheses become a line.

    Attributes:
      vocabulary: of the model.
      form: "text", the best hypothesis's text; or "jsonl", an object with all of them.
      rule: what the scores are made by, for "jsonl".
    """

    vocabulary: Vocabulary
    form: str
    rule: str

    def line(self, hypotheses: Sequence[Hypothesis], number: int) -> bytes:
        """UTF-8 with its end; `number` is that of the line, from 1."""
        texts = [text_of(hypothesis, self.vocabulary) for hypothesis in hypotheses]
        if self.form == "text":
            return f"{texts[0] if texts else ''}\n".encode()
        entries = [{"text": text, "score": h.score} for text, h in zip(texts, hypotheses, strict=True)]
        return (
            f"{json.dumps({'line': number, 'rule': self.rule, 'hypotheses': entries}, ensure_ascii=False)}\n".encode()
        )


def text_of(hypothesis: Hypothesis, vocabulary: Vocabulary) -> str:
    """What a hypothesis says, on one line."""
    tokens = [token for token in hypothesis.tokens if token not in (BOS_ID, EOS_ID)]
    return re.sub(r"[\r\n]+", " ", vocabulary.decode(tokens))  # bytes can spell the end of a line

"""What a conversion is asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltalm_jax.errors import UserError

SOURCES = ("xlm_roberta", "deltalm", "huggingface_deltalm", "native")
TARGETS = ("native", "deltalm", "huggingface_deltalm", "xlm_roberta")
ARCHITECTURES = ("encoder_decoder", "encoder")

# Where the sentinels of a released DeltaLM's table stand: the two readings that its 250,104 rows allow.
SENTINEL_LAYOUTS = ("after_mask", "last_rows")


_DECODER = "it is of a decoder that is made from an encoder (--architecture=encoder_decoder)"
_WHY_NOT = {
    "sentence_layer": "it is of an encoder alone (--architecture=encoder)",
    "initialize": _DECODER,
    "num_decoder_layers": _DECODER,
    "decoder_output_rms": _DECODER,
}


class ConversionError(UserError, ValueError):
    """A conversion that cannot be asked for so; the message names the option."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be converted. None leaves a choice to the file, or to the default that is named.

    Attributes:
      source, target: one of `SOURCES` and of `TARGETS`.
      input, output: paths; `output` must not exist.
      architecture: of an encoder, what is to be made of it: one of `ARCHITECTURES`. None is a DeltaLM for what is read from
        others' files, and for a native folder or run what it is.
      sentence_layer: of "encoder", see `ModelConfig.sentence_layer`; None is 0.
      initialize: of an encoder, how the DeltaLM starts from it: one of `INITIALIZATIONS`; None is the first.
      num_decoder_layers: of an encoder; None makes the decoder as large as the encoder.
      decoder_output_rms: of an encoder, see `warm_start`.
      num_heads: attention heads; None takes those of a configuration beside the weights or of the published models.
      vocabulary: SentencePiece model; None takes the one beside the weights, if there is one. An extension of that one
        (`python -m deltalm_jax.vocabulary extend`) gives the model rows for its new pieces; a part of it (`trim`) leaves it
        those of its pieces.
      num_sentinels: sentinels of the vocabulary; None is 100.
      sentinel_layout: None is "after_mask" (250,002 to 250,101 in the released models); or "last_rows" (250,004 to
        250,103).
      vocab_size: rows of the token table; None is the vocabulary's size for an encoder, else what is there.
      ffn_order: one of `names.FFN_ORDERS`, for the released files; None is the first.
      average_last: of a run, how many of its newest checkpoints are averaged, as is usual for translation; None: the newest
        is taken as it is.
      seed: of what starts randomly.

    Raises:
      ConversionError: a number is out of range, or an option does not apply to this source and target.
    """

    source: str
    input: Path
    output: Path
    target: str = "native"
    architecture: str | None = None
    sentence_layer: int | None = None
    initialize: str | None = None
    num_decoder_layers: int | None = None
    decoder_output_rms: float | None = None
    num_heads: int | None = None
    vocabulary: Path | None = None
    num_sentinels: int | None = None
    sentinel_layout: str | None = None
    vocab_size: int | None = None
    ffn_order: str | None = None
    average_last: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target == "xlm_roberta" and self.source != "native":
            raise ConversionError(
                f"--to=xlm_roberta does not apply to --from={self.source}: it hands on an encoder trained here "
                "(--from=native)"
            )
        if self.target == "xlm_roberta" and self.makes_decoder:
            raise ConversionError("--to=xlm_roberta is an encoder: there is no place for a decoder (--architecture)")
        ones = ("num_decoder_layers", "num_heads", "num_sentinels", "average_last", "sentence_layer")
        for name, least in (*((name, 1) for name in ones), ("vocab_size", 4)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConversionError(f"--{name} must be at least {least}, found {value}")
        if self.decoder_output_rms is not None and not self.decoder_output_rms > 0:
            raise ConversionError(f"--decoder_output_rms must be above 0, found {self.decoder_output_rms}")
        if self.seed < 0:
            raise ConversionError(f"--seed must not be negative, found {self.seed}")
        applies = {
            "architecture": self.source in ("xlm_roberta", "native"),
            "sentence_layer": self.source in ("xlm_roberta", "native") and self.architecture == "encoder",
            "initialize": self.makes_decoder,
            "num_decoder_layers": self.makes_decoder,
            "decoder_output_rms": self.makes_decoder,
            "num_heads": self.source != "native",
            "num_sentinels": self.source != "native" or self.vocabulary is not None,
            "sentinel_layout": self.source != "native" or self.vocabulary is not None,
            "ffn_order": "deltalm" in (self.source, self.target),
            "average_last": self.source == "native",
        }
        for name, does in applies.items():
            if getattr(self, name) is not None and not does:
                architecture = f" --architecture={self.architecture}" if self.architecture else ""
                raise ConversionError(
                    f"--{name} does not apply to --from={self.source} --to={self.target}{architecture}: "
                    + _WHY_NOT.get(name, "what it says is settled when the original file is read")
                )

    @property
    def makes_decoder(self) -> bool:
        """Whether a DeltaLM is to start from an encoder."""
        others = self.source == "xlm_roberta" and self.architecture is None
        return others or (self.source in ("xlm_roberta", "native") and self.architecture == "encoder_decoder")

"""The shape of a model: its configuration, presets and parameter count. Plain Python; no jax, flax or gin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from deltalm_jax.fields import check_types, operational

# The two ids that the model itself must know; `deltalm_jax/data/vocabulary.py` has them all.
PAD_ID = 0
EOS_ID = 3  # `</s>`, which is also what the decoder starts from.

# Position rows 0 and 1 belong to no token: row 1 is the padding row, and the first token of a sequence takes row 2
# (fairseq's convention, kept so that published tables fit).
PADDING_POSITION = 1
RESERVED_POSITIONS = 2

DECODERS = ("interleaved", "vanilla")
REMAT_POLICIES = ("none", "full", "sublayer_outputs", "dots_with_no_batch_dims_saveable", "dots_saveable")
NORM_PLACEMENTS = ("post", "pre")
COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
ATTENTIONS = ("auto", "xla", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a model: a DeltaLM, or the encoder that one starts from. The defaults are DeltaLM-base.

    Attributes:
      vocab_size: rows of the one token table, which serves the encoder, the decoder and the output.
      hidden_size: width of the residual stream (D).
      feed_forward_size: width inside a feed-forward network (F).
      num_heads: attention heads (H); must divide `hidden_size`.
      num_encoder_layers: encoder layers.
      num_decoder_layers: decoder layers, of the kind that `decoder` says. 0: an encoder alone, with a head for masked
        language modelling (XLM-R, InfoXLM).
      max_length: longest encoder or decoder sequence, in tokens. Each position table has two rows more.
      decoder: "interleaved" for DeltaLM's decoder layer, which is as large as two encoder layers; "vanilla" for the usual
        one, which lacks the feed-forward network between the attentions (see `decoder_layer.py`).
      norm_placement: "post" normalises after each residual sum (all released models); "pre" normalises the input of
        each sub-layer, and the output of the last layer.
      embedding_layer_norm: whether both sides normalise their embeddings (base does, large does not).
      sentence_layer: of an encoder alone, the layer after which the first position stands for the sentence in contrast with
        others (InfoXLM-base: 8). 0: there is no contrast.
      dropout_rate: of the embeddings and of every sub-layer's output.
      attention_dropout_rate: of the attention weights.
      activation_dropout_rate: of the activations inside the feed-forward networks.
      compute_dtype: "float32", "bfloat16", or "auto" (see `resolve_compute_dtype`). Parameters are float32 in any case.
      remat: what the backward pass finds kept of each layer, and so what it need not recompute; more memory from one to
        the next. May change on resume.
          "full": the layer's input. The whole layer is recomputed.
          "sublayer_outputs": also what each attention and feed-forward network adds to the residual stream.
          "dots_with_no_batch_dims_saveable": also products with weights; attention's own two are recomputed.
          "dots_saveable": also attention's scores and weighted sums, or what the splash kernel puts out in their stead. No
            product is recomputed, but for those inside the cuDNN kernel.
          "none": everything; nothing is recomputed.
      scan_layers: True runs a stack of layers as a loop, which compiles one layer whatever the depth; False unrolls it,
        which saves a small model on a CPU a tenth of its time. May change on resume.
      attention: what computes attention in training and evaluation: "xla", from the formula, with all scores in memory;
        "splash" (TPU) and "cudnn" (GPU), kernels that never hold them; "auto", see `kernels.resolve_attention`. Equal to
        rounding. May change on resume.

    Raises:
      TypeError: a field has another type than declared (a bool is not an int here; an int is accepted as a float).
      ValueError: a field is out of range, or the heads do not divide the width.
    """

    vocab_size: int = 250_104
    hidden_size: int = 768
    feed_forward_size: int = 3072
    num_heads: int = 12
    num_encoder_layers: int = 12
    num_decoder_layers: int = 6
    max_length: int = 512
    decoder: str = "interleaved"
    norm_placement: str = "post"
    embedding_layer_norm: bool = True
    sentence_layer: int = 0
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    compute_dtype: str = "auto"
    remat: str = operational("none")
    scan_layers: bool = operational(True)
    attention: str = operational("auto")

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("num_decoder_layers", "sentence_layer") else 1
            if field.type == "int" and value < least:
                raise ValueError(f"ModelConfig.{field.name} must be at least {least}, found {value}")
            if field.type == "float" and not 0.0 <= value < 1.0:
                raise ValueError(f"ModelConfig.{field.name} is a rate and must be in [0, 1), found {value}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"ModelConfig.num_heads must divide hidden_size, found {self.num_heads} heads for a width of "
                f"{self.hidden_size}: change one of the two"
            )
        if self.vocab_size <= EOS_ID:
            raise ValueError(f"ModelConfig.vocab_size must exceed {EOS_ID}, the id of </s>, found {self.vocab_size}")
        if self.sentence_layer > (self.num_encoder_layers if self.is_encoder else 0):
            raise ValueError(
                f"ModelConfig.sentence_layer is a layer of an encoder alone (num_decoder_layers = 0) with at least as many, "
                f"found {self.sentence_layer} with {self.num_encoder_layers} encoder and {self.num_decoder_layers} decoder "
                "layers"
            )
        _check_choice("decoder", self.decoder, DECODERS)
        _check_choice("norm_placement", self.norm_placement, NORM_PLACEMENTS)
        _check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        _check_choice("remat", self.remat, REMAT_POLICIES)
        _check_choice("attention", self.attention, ATTENTIONS)

    @property
    def is_encoder(self) -> bool:
        """Whether it is an encoder alone."""
        return self.num_decoder_layers == 0

    @property
    def num_positions(self) -> int:
        """Rows of each position table: one per token, and the two that belong to no token."""
        return self.max_length + RESERVED_POSITIONS


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"ModelConfig.{name} must be one of {', '.join(map(repr, choices))}, found {value!r}")


_LARGE = ModelConfig(
    hidden_size=1024,
    feed_forward_size=4096,
    num_heads=16,
    num_encoder_layers=24,
    num_decoder_layers=12,
    embedding_layer_norm=False,
)

# tiny and small are ours; base and large are the two released models. Large was released without a LayerNorm on its
# embeddings, but XLM-R-large and InfoXLM-large have one: what is to start from them needs it too.
PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "tiny": ModelConfig(
            vocab_size=8_104,
            hidden_size=128,
            feed_forward_size=512,
            num_heads=4,
            num_encoder_layers=4,
            num_decoder_layers=2,
            scan_layers=False,
        ),
        "small": ModelConfig(hidden_size=384, feed_forward_size=1536, num_heads=12),
        "base": ModelConfig(),
        "large": _LARGE,
        "large_from_xlmr": dataclasses.replace(_LARGE, embedding_layer_norm=True),
    }
)


def resolve_compute_dtype(config: ModelConfig, platform: str) -> str:
    """The dtype of activations and matrix products on `platform`: "cpu", "gpu" or "tpu" (`jax.default_backend()`).

    "auto" is "bfloat16" on an accelerator and "float32" on a CPU, which has no fast bfloat16 products.

    Returns:
      "float32" or "bfloat16"; jax takes either as a dtype.
    """
    if config.compute_dtype != "auto":
        return config.compute_dtype
    return "float32" if platform == "cpu" else "bfloat16"


def encoder_layer_parameter_count(config: ModelConfig) -> int:
    """Parameters of one encoder layer: an attention and a feed-forward network."""
    return _attention_parameter_count(config) + _feed_forward_parameter_count(config)


def decoder_layer_parameter_count(config: ModelConfig) -> int:
    """Parameters of one decoder layer: two attentions and, if interleaved, two feed-forward networks, else one."""
    feed_forwards = 2 if config.decoder == "interleaved" else 1
    return 2 * _attention_parameter_count(config) + feed_forwards * _feed_forward_parameter_count(config)


def _attention_parameter_count(config: ModelConfig) -> int:
    """Four square projections with biases, and a LayerNorm."""
    return 4 * config.hidden_size**2 + 4 * config.hidden_size + 2 * config.hidden_size


def _feed_forward_parameter_count(config: ModelConfig) -> int:
    """Two projections with biases, and a LayerNorm."""
    hidden, feed_forward = config.hidden_size, config.feed_forward_size
    return 2 * hidden * feed_forward + feed_forward + hidden + 2 * hidden


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model, by arithmetic alone. The token table counts once.

    DeltaLM-base has 362,981,376 and large 861,777,920.
    """
    hidden = config.hidden_size
    layer_norms_per_side = int(config.embedding_layer_norm) + int(config.norm_placement == "pre")
    per_side = hidden * config.num_positions + 2 * hidden * layer_norms_per_side
    encoder_layers = config.num_encoder_layers * encoder_layer_parameter_count(config)
    if config.is_encoder:
        head = hidden**2 + hidden + 2 * hidden + config.vocab_size
        projection = hidden**2 if config.sentence_layer else 0
        return hidden * config.vocab_size + per_side + encoder_layers + head + projection
    decoder_layers = config.num_decoder_layers * decoder_layer_parameter_count(config)
    return hidden * config.vocab_size + 2 * per_side + encoder_layers + decoder_layers

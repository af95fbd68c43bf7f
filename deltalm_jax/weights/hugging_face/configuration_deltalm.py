"""The configuration of a DeltaLM for Hugging Face transformers. This file travels in the folder of an exported model.

Field names are BART's where BART has the field. The defaults are DeltaLM-base.
"""

from __future__ import annotations

from transformers import PretrainedConfig


class DeltaLMConfig(PretrainedConfig):
    """Everything that fixes a DeltaLM model.

    Args:
      vocab_size: rows of the one token table, which serves encoder, decoder and output.
      d_model: width of the residual stream.
      encoder_layers, decoder_layers: layers of each side. A decoder layer is as large as two encoder layers.
      encoder_attention_heads, decoder_attention_heads: attention heads of each side; must divide `d_model`.
      encoder_ffn_dim, decoder_ffn_dim: width inside the feed-forward networks of each side.
      max_position_embeddings: longest encoder or decoder sequence in tokens. Each position table has two rows more.
      dropout, attention_dropout, activation_dropout: rates; of embeddings and sub-layer outputs, of attention weights,
        and of the activations inside the feed-forward networks.
      activation_function: only "gelu", the exact one, exists.
      normalize_before: LayerNorm before each sub-layer and after the last layer, instead of after each residual sum.
      layernorm_embedding: whether both sides normalise their embeddings (base does, large does not).
      interleaved_decoder: whether decoder layers have a feed-forward network between the two attentions, which is what
        makes a DeltaLM; False gives the usual decoder layer.
      scale_embedding: only False exists.

    Raises:
      ValueError: a value that this model cannot have.
    """

    model_type = "deltalm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (transformers' interface)
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    def __init__(
        self,
        vocab_size: int = 250_104,
        d_model: int = 768,
        encoder_layers: int = 12,
        decoder_layers: int = 6,
        encoder_attention_heads: int = 12,
        decoder_attention_heads: int = 12,
        encoder_ffn_dim: int = 3072,
        decoder_ffn_dim: int = 3072,
        max_position_embeddings: int = 512,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        activation_function: str = "gelu",
        normalize_before: bool = False,
        layernorm_embedding: bool = True,
        interleaved_decoder: bool = True,
        scale_embedding: bool = False,
        use_cache: bool = True,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        decoder_start_token_id: int = 2,
        is_encoder_decoder: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs,
    ) -> None:
        for name, value, only in (
            ("activation_function", activation_function, "gelu"),
            ("scale_embedding", scale_embedding, False),
            ("tie_word_embeddings", tie_word_embeddings, True),
            ("is_encoder_decoder", is_encoder_decoder, True),
        ):
            if value != only:
                raise ValueError(f"DeltaLMConfig.{name} must be {only!r}, found {value!r}: DeltaLM has nothing else")
        for heads in (encoder_attention_heads, decoder_attention_heads):
            if d_model % heads:
                raise ValueError(f"DeltaLMConfig.d_model must be a multiple of the heads, found {d_model} and {heads}")
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.encoder_attention_heads = encoder_attention_heads
        self.decoder_attention_heads = decoder_attention_heads
        self.encoder_ffn_dim = encoder_ffn_dim
        self.decoder_ffn_dim = decoder_ffn_dim
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.activation_function = activation_function
        self.normalize_before = normalize_before
        self.layernorm_embedding = layernorm_embedding
        self.interleaved_decoder = interleaved_decoder
        self.scale_embedding = scale_embedding
        self.use_cache = use_cache
        token_ids = {
            "bos_token_id": bos_token_id,
            "pad_token_id": pad_token_id,
            "eos_token_id": eos_token_id,
            "decoder_start_token_id": decoder_start_token_id,
        }
        super().__init__(
            is_encoder_decoder=is_encoder_decoder, tie_word_embeddings=tie_word_embeddings, **token_ids, **kwargs
        )
        # transformers 4 takes these four from the arguments above; transformers 5 leaves them to the model's class.
        self.tie_word_embeddings = tie_word_embeddings
        for name, token_id in token_ids.items():
            setattr(self, name, token_id)

"""DeltaLM's layers, encoder and decoder (arXiv 2106.13736) in PyTorch. This file travels in the folder of an exported model.

An encoder like XLM-R's, and a decoder of interleaved layers: self-attention, feed-forward (`fc3`, `fc4`), cross-attention,
feed-forward (`fc1`, `fc2`). Each decoder layer is thus two encoder layers, the second of which attends to the source.

Legend: B batch, S source positions, T target positions given now, L target positions so far (those in the cache and T),
D hidden size, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from .configuration_deltalm import DeltaLMConfig

# Between 5.12 and 5.24 transformers renamed the cache, in arguments and results alike.
CACHE = "cache" if "cache" in BaseModelOutputWithPastAndCrossAttentions.__dataclass_fields__ else "past_key_values"

# Rows 0 and 1 of a position table belong to no token: padding takes row 1, the first token row 2.
RESERVED_POSITIONS = 2
PADDING_POSITION = 1


def position_rows(real_BL: torch.Tensor) -> torch.Tensor:
    """Each token's row in the position table. Only real tokens count, so padding may stand anywhere."""
    real_BL = real_BL.long()
    return real_BL.cumsum(dim=1) * real_BL + PADDING_POSITION


def attention_bias(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention's scores: 0 where it may look, a very low number elsewhere.

    The number is finite, so that a position that may look nowhere (padding before the first token) gives no NaN.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min / 2
    )


class DeltaLMAttention(nn.Module):
    """Scaled dot-product attention with biased query, key, value and output projections."""

    def __init__(self, config: DeltaLMConfig, num_heads: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        self.num_heads = num_heads
        self.dropout = config.attention_dropout

    def keys_values(self, source_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What positions with these hidden states show to whoever attends to them: twice [B, H, S, K]."""
        return self._split_heads(self.k_proj(source_BSD)), self._split_heads(self.v_proj(source_BSD))

    def forward(self, hidden_BTD, keys_values, bias, output_attentions):
        """[B, T, D], and the weights [B, H, T, S] if asked for, else None. `bias` is broadcast to [B, H, T, S]."""
        query_BHTK = self._split_heads(self.q_proj(hidden_BTD))
        key_BHSK, value_BHSK = keys_values
        dropout = self.dropout if self.training else 0.0
        weights_BHTS = None
        if output_attentions:
            scores_BHTS = query_BHTK @ key_BHSK.transpose(2, 3) * query_BHTK.shape[-1] ** -0.5
            weights_BHTS = F.softmax(scores_BHTS + bias, dim=-1, dtype=torch.float32).to(scores_BHTS.dtype)
            mixed_BHTK = F.dropout(weights_BHTS, dropout) @ value_BHSK
        else:
            mixed_BHTK = F.scaled_dot_product_attention(
                query_BHTK, key_BHSK, value_BHSK, attn_mask=bias, dropout_p=dropout
            )
        return self.out_proj(mixed_BHTK.transpose(1, 2).reshape(hidden_BTD.shape)), weights_BHTS

    def _split_heads(self, projected_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, size = projected_BTD.shape
        return projected_BTD.view(batch, length, self.num_heads, size // self.num_heads).transpose(1, 2)


class DeltaLMLayer(nn.Module):
    """What both kinds of layer share. A sub-layer f makes of the residual stream h: LN(h + f(h)), or h + f(LN(h))."""

    def __init__(self, config: DeltaLMConfig, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = DeltaLMAttention(config, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.config = config

    def enter(self, layer_norm: nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
        """What a sublayer reads of the residual stream [B, T, D]: normalised first, in a pre-norm model."""
        return layer_norm(hidden) if self.config.normalize_before else hidden

    def leave(self, layer_norm: nn.LayerNorm, hidden: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """The residual stream after a sublayer's outputs [B, T, D]: normalised last, in a post-norm model."""
        hidden = hidden + F.dropout(outputs, self.config.dropout, self.training)
        return hidden if self.config.normalize_before else layer_norm(hidden)

    def feed_forward(self, first: nn.Linear, second: nn.Linear, layer_norm: nn.LayerNorm, hidden: torch.Tensor):
        """The residual stream after a feed-forward network of two products."""
        activations = F.gelu(first(self.enter(layer_norm, hidden)))
        activations = F.dropout(activations, self.config.activation_dropout, self.training)
        return self.leave(layer_norm, hidden, second(activations))


class DeltaLMEncoderLayer(DeltaLMLayer):
    """Self-attention and a feed-forward network."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def forward(self, hidden_BSD, bias, output_attentions):
        """The residual stream after the layer, and attention's weights or None."""
        inputs_BSD = self.enter(self.self_attn_layer_norm, hidden_BSD)
        outputs_BSD, weights = self.self_attn(
            inputs_BSD, self.self_attn.keys_values(inputs_BSD), bias, output_attentions
        )
        hidden_BSD = self.leave(self.self_attn_layer_norm, hidden_BSD, outputs_BSD)
        return self.feed_forward(self.fc1, self.fc2, self.final_layer_norm, hidden_BSD), weights


class DeltaLMDecoderLayer(DeltaLMLayer):
    """The interleaved layer; without `fc3` and `fc4` the usual one."""

    def __init__(self, config: DeltaLMConfig, index: int) -> None:
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        if config.interleaved_decoder:
            self.fc3 = nn.Linear(config.d_model, config.decoder_ffn_dim)
            self.fc4 = nn.Linear(config.decoder_ffn_dim, config.d_model)
            self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = DeltaLMAttention(config, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.index = index

    def forward(self, hidden_BTD, encoded_BSD, self_bias, cross_bias, cache, output_attentions):
        """The residual stream after the layer, and the weights (or None) of self- and of cross-attention."""
        inputs_BTD = self.enter(self.self_attn_layer_norm, hidden_BTD)
        keys_values = self.self_attn.keys_values(inputs_BTD)
        if cache is not None:
            keys_values = cache.self_attention_cache.update(*keys_values, self.index)
            if keys_values[0].shape[2] != self_bias.shape[3]:
                raise ValueError('Only a cache that grows is supported: leave cache_implementation out, or "dynamic"')
        outputs_BTD, self_weights = self.self_attn(inputs_BTD, keys_values, self_bias, output_attentions)
        hidden_BTD = self.leave(self.self_attn_layer_norm, hidden_BTD, outputs_BTD)

        if self.config.interleaved_decoder:
            hidden_BTD = self.feed_forward(self.fc3, self.fc4, self.ffn_layer_norm, hidden_BTD)

        inputs_BTD = self.enter(self.encoder_attn_layer_norm, hidden_BTD)
        outputs_BTD, cross_weights = self.encoder_attn(
            inputs_BTD, self._source(encoded_BSD, cache), cross_bias, output_attentions
        )
        hidden_BTD = self.leave(self.encoder_attn_layer_norm, hidden_BTD, outputs_BTD)
        return self.feed_forward(self.fc1, self.fc2, self.final_layer_norm, hidden_BTD), self_weights, cross_weights

    def _source(self, encoded_BSD, cache):
        """Keys and values of the source: computed at the first step, and then kept in the cache."""
        if cache is None:
            return self.encoder_attn.keys_values(encoded_BSD)
        if not cache.is_updated.get(self.index):
            cache.is_updated[self.index] = True
            return cache.cross_attention_cache.update(*self.encoder_attn.keys_values(encoded_BSD), self.index)
        source = cache.cross_attention_cache
        if hasattr(source, "layers"):
            return source.layers[self.index].keys, source.layers[self.index].values
        return source.key_cache[self.index], source.value_cache[self.index]  # transformers < 4.54


class DeltaLMStack(nn.Module):
    """What encoder and decoder share: embeddings, a list of layers, perhaps a final LayerNorm."""

    main_input_name = "input_ids"

    def __init__(self, config: DeltaLMConfig, embed_tokens: nn.Embedding, layers: list[DeltaLMLayer]) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embed_positions = nn.Embedding(
            config.max_position_embeddings + RESERVED_POSITIONS, config.d_model, PADDING_POSITION
        )
        self.layernorm_embedding = nn.LayerNorm(config.d_model) if config.layernorm_embedding else None
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(config.d_model) if config.normalize_before else None
        self.gradient_checkpointing = False
        self.config = config

    def real(self, input_ids, inputs_embeds, mask) -> torch.Tensor:
        """bool [B, T]: which positions hold a token. By the mask if there is one, else by the ids."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either ids or embeddings: found " + ("neither" if input_ids is None else "both"))
        if mask is not None:
            return mask.bool()
        if input_ids is not None:
            return input_ids != self.config.pad_token_id
        return torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)

    def embed(self, input_ids, inputs_embeds, rows_BT) -> torch.Tensor:
        """Token plus position, then LayerNorm if there is one, then dropout."""
        token_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        embedded_BTD = token_BTD + self.embed_positions(rows_BT)
        if self.layernorm_embedding is not None:
            embedded_BTD = self.layernorm_embedding(embedded_BTD)
        return F.dropout(embedded_BTD, self.config.dropout, self.training)

    def run(self, layer: DeltaLMLayer, *args):
        """A layer's outputs; while training by gradient checkpointing, without what they were computed from."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, *args)
        return layer(*args)

    def check_length(self, length: int) -> None:
        """Raises ValueError if the model has no positions for so many tokens."""
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"A sequence of {length} tokens does not fit: this model has positions for "
                f"{self.config.max_position_embeddings}. Truncate inputs, or generate fewer tokens."
            )


@dataclasses.dataclass
class DeltaLMEncoderOutput(BaseModelOutput):
    """Beside the usual, `attention_mask`: bool [B, S], False at padding, where the decoder must not look.

    It is here because `generate` need not know it: since transformers 5 it makes no mask from the ids.
    """

    attention_mask: torch.Tensor | None = None


class DeltaLMEncoder(DeltaLMStack):
    """DeltaLM's encoder: that of XLM-R."""

    def __init__(self, config: DeltaLMConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__(config, embed_tokens, [DeltaLMEncoderLayer(config) for _ in range(config.encoder_layers)])

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """`DeltaLMEncoderOutput` with [B, S, D] for the decoder to look at."""
        real_BS = self.real(input_ids, inputs_embeds, attention_mask)
        self.check_length(real_BS.shape[1])
        # Padding is zero here, as in fairseq. No real position sees the difference, for attention never looks there.
        hidden_BSD = self.embed(input_ids, inputs_embeds, position_rows(real_BS)) * real_BS[:, :, None]
        bias = attention_bias(real_BS[:, None, None, :], hidden_BSD.dtype)
        states, attentions = [hidden_BSD], []
        for layer in self.layers:
            hidden_BSD, weights = self.run(layer, hidden_BSD, bias, output_attentions)
            states.append(hidden_BSD)
            attentions.append(weights)
        if self.layer_norm is not None:
            states[-1] = hidden_BSD = self.layer_norm(hidden_BSD)
        output = DeltaLMEncoderOutput(
            last_hidden_state=hidden_BSD,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            attention_mask=real_BS,
        )
        return output.to_tuple() if return_dict is False else output


class DeltaLMDecoder(DeltaLMStack):
    """DeltaLM's decoder, over whole targets or over their next tokens."""

    def __init__(self, config: DeltaLMConfig, embed_tokens: nn.Embedding) -> None:
        layers = [DeltaLMDecoderLayer(config, index) for index in range(config.decoder_layers)]
        super().__init__(config, embed_tokens, layers)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        cache=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
    ):
        """`BaseModelOutputWithPastAndCrossAttentions` with [B, T, D], to be multiplied with the token table.

        `attention_mask` is [B, L], or [B, T] if what is in the cache is all real. A cache is written to.
        """
        real_BL = self.real(input_ids, inputs_embeds, attention_mask)
        target_length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        past_length = int(cache.get_seq_length()) if cache is not None else 0
        length = past_length + target_length
        self.check_length(length)
        if real_BL.shape[1] == target_length:
            real_BL = F.pad(real_BL, (past_length, 0), value=True)
        rows_BT = position_rows(real_BL)[:, past_length:]
        hidden_BTD = self.embed(input_ids, inputs_embeds, rows_BT)

        place_L = torch.arange(length, device=real_BL.device)
        causal_TL = place_L <= place_L[past_length:, None]
        self_bias = attention_bias(real_BL[:, None, None, :] & causal_TL, hidden_BTD.dtype)
        cross_bias = None
        if encoder_attention_mask is not None:
            cross_bias = attention_bias(encoder_attention_mask[:, None, None, :].bool(), hidden_BTD.dtype)

        states, attentions, cross_attentions = [hidden_BTD], [], []
        for layer in self.layers:
            hidden_BTD, self_weights, cross_weights = self.run(
                layer, hidden_BTD, encoder_hidden_states, self_bias, cross_bias, cache, output_attentions
            )
            states.append(hidden_BTD)
            attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        if self.layer_norm is not None:
            states[-1] = hidden_BTD = self.layer_norm(hidden_BTD)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_BTD,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
            **{CACHE: cache},
        )

"""DeltaLM's training step in plain PyTorch, for comparison: what a PyTorch user would write, and nothing clever.

The same arithmetic as `deltalm_jax.training.step`: post-normalised encoder, interleaved decoder layers, exact GELU, tied
output, dropout of embeddings and of every sub-layer's output, mean cross-entropy over the whole vocabulary, gradient
clipping by global norm, AdamW. Attention is `scaled_dot_product_attention`, the optimizer the fused one.

Legend: B batch, S source positions, T target positions, D hidden size, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deltalm_jax.model.config import EOS_ID, RESERVED_POSITIONS, ModelConfig
from deltalm_jax.model.linear import LAYER_NORM_EPSILON
from deltalm_jax.training.optimizer import OptimizerConfig


class Attention(nn.Module):
    """Multi-head attention with biased projections; to itself, or to `source`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(4))
        self.num_heads = config.num_heads

    def forward(self, hidden_BTD: torch.Tensor, source_BSD: torch.Tensor, causal: bool) -> torch.Tensor:
        """[B, T, D]: every position of `hidden` gathers from `source`, or from what is not after it."""
        query, key, value = (
            projection(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, states in ((self.query, hidden_BTD), (self.key, source_BSD), (self.value, source_BSD))
        )
        mixed_BHTK = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a feed-forward network, each with its residual sum and its LayerNorm: half a decoder layer too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden_size, config.feed_forward_size),
            nn.GELU(),
            nn.Linear(config.feed_forward_size, config.hidden_size),
        )
        self.attention_norm, self.feed_forward_norm = (
            nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self, hidden_BTD: torch.Tensor, source_BSD: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]; without a source, attention is to the positions themselves."""
        attended = self.attention(hidden_BTD, hidden_BTD if source_BSD is None else source_BSD, causal)
        hidden_BTD = self.attention_norm(hidden_BTD + self.dropout(attended))
        return self.feed_forward_norm(hidden_BTD + self.dropout(self.feed_forward(hidden_BTD)))


class Embedding(nn.Module):
    """Token plus position, LayerNorm, dropout. The token table is the model's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = nn.Embedding(config.num_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, table_VD: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, D]; rows without padding."""
        rows_S = torch.arange(RESERVED_POSITIONS, tokens_BS.shape[1] + RESERVED_POSITIONS)
        return self.dropout(self.norm(F.embedding(tokens_BS, table_VD) + self.positions(rows_S)))


class DeltaLM(nn.Module):
    """Encoder, interleaved decoder, one token table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * config.hidden_size**-0.5)
        self.encoder_embedding, self.decoder_embedding = Embedding(config), Embedding(config)
        self.encoder = nn.ModuleList(Layer(config) for _ in range(config.num_encoder_layers))
        self.decoder = nn.ModuleList(Layer(config) for _ in range(2 * config.num_decoder_layers))

    def forward(self, inputs_BS: torch.Tensor, decoder_input_BT: torch.Tensor) -> torch.Tensor:
        """Logits, [B, T, V]."""
        encoded_BSD = self.encoder_embedding(self.table, inputs_BS)
        for layer in self.encoder:
            encoded_BSD = layer(encoded_BSD)
        hidden_BTD = self.decoder_embedding(self.table, decoder_input_BT)
        for index, half in enumerate(self.decoder):
            hidden_BTD = half(hidden_BTD, causal=True) if index % 2 == 0 else half(hidden_BTD, encoded_BSD)
        return F.linear(hidden_BTD, self.table)


def make_step(
    config: ModelConfig,
    optimizer: OptimizerConfig,
    inputs_BS: np.ndarray,
    targets_BT: np.ndarray,
    dtype: str,
    threads: int,
) -> Callable[[], float]:
    """A function that makes one training step on these tokens and returns its loss.

    Args:
      config, optimizer: as for our step; the model is drawn at random.
      inputs_BS, targets_BT: ids, without padding.
      dtype: "float32", or "bfloat16" for automatic mixed precision (parameters stay float32).
      threads: as many as PyTorch may use.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = DeltaLM(config)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    inputs, targets = torch.from_numpy(inputs_BS).long(), torch.from_numpy(targets_BT).long()
    decoder_input = torch.cat([torch.full_like(targets[:, :1], EOS_ID), targets[:, :-1]], dim=1)

    def step() -> float:
        adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits_BTV = model(inputs, decoder_input)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optimizer.gradient_clip_norm)
        adam.step()
        return loss.item()

    return step

"""How many floating-point operations a training step takes, by arithmetic: the numerator of model FLOPs utilisation.

Counted are products of matrices, two operations for each multiply-add; the backward pass is twice the forward pass. Not
counted: element-wise work, embedding look-ups, and anything computed a second time (rematerialisation, blockwise loss).

The usual estimate, 6 · parameters · tokens, is 1.5 to 2 times too high for an encoder-decoder: it sends every token
through both sides, and every encoder token through the output projection.

Legend: B batch, S encoder tokens, T decoder tokens, D hidden size, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from deltalm_jax.model.config import ModelConfig

# Peak of dense bfloat16 products, operations a second, of what jax calls one device; by the first words of its name. Makers'
# data sheets (without sparsity). TPU v2, v3 and 7x show each chip as two devices.
_PEAK_BFLOAT16 = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}

_BACKWARD_TOO = 3  # Forward once; backward one product for the input's gradient and one for the weight's.


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step, forward and backward, by where they are spent.

    Attributes:
      linear: the projections of attention and the feed-forward networks.
      attention: scores and weighted sums, causal self-attention counted at half of its square.
      causal_half: the other half of that square, which an implementation with a mask does compute.
      head: hidden states times the token table.
    """

    linear: int
    attention: int
    causal_half: int
    head: int

    @property
    def total(self) -> int:
        """All of it, causal self-attention counted half."""
        return self.linear + self.attention + self.head

    @property
    def total_full_attention(self) -> int:
        """All of it, causal self-attention counted in full: the convention of most published figures."""
        return self.total + self.causal_half

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.linear + other.linear,
            self.attention + other.attention,
            self.causal_half + other.causal_half,
            self.head + other.head,
        )


def flops_per_step(config: ModelConfig, groups: Mapping[str, tuple[int, int, int]]) -> Flops:
    """The operations of one step over a global batch.

    Args:
      config: the model's sizes.
      groups: by name, (B, S, T): examples, and encoder and decoder tokens of each. Give mean real lengths rather than
        padded ones where they differ much.
    """
    total = Flops(0, 0, 0, 0)
    for batch, encoder_length, decoder_length in groups.values():
        total += _flops(config, batch, encoder_length, decoder_length)
    return total


def _flops(config: ModelConfig, batch: int, encoder_length: int, decoder_length: int) -> Flops:
    hidden = config.hidden_size
    square, feed_forward = hidden**2, 2 * hidden * config.feed_forward_size

    # Weights that each token meets. Cross-attention makes keys and values from encoder tokens, in every decoder layer.
    encoder_token = config.num_encoder_layers * (4 * square + feed_forward)
    encoder_token += config.num_decoder_layers * 2 * square
    feed_forwards = 2 if config.decoder == "interleaved" else 1
    decoder_token = config.num_decoder_layers * (4 * square + 2 * square + feed_forwards * feed_forward)
    linear = encoder_token * encoder_length + decoder_token * decoder_length
    head = hidden * config.vocab_size * decoder_length

    # A pair of positions costs D multiply-adds for its score and D for its share of the weighted sum.
    causal_half_pairs = config.num_decoder_layers * decoder_length**2 / 2
    pairs = config.num_encoder_layers * encoder_length**2 + causal_half_pairs
    pairs += config.num_decoder_layers * decoder_length * encoder_length

    scale = _BACKWARD_TOO * 2 * batch
    return Flops(
        linear=scale * linear,
        attention=round(scale * 2 * hidden * pairs),
        causal_half=round(scale * 2 * hidden * causal_half_pairs),
        head=scale * head,
    )


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What model FLOPs utilisation (MFU) is measured by.

    Attributes:
      step_flops: operations of a step, as `Flops.total` counts them.
      peak_flops: operations a second that all devices together could do; None where that is not known.
      reason: why it is not known, "" where it is.
    """

    step_flops: float
    peak_flops: float | None
    reason: str = ""

    def mfu(self, seconds: float) -> float | None:
        """Share of the devices' peak that a step of this many seconds makes use of."""
        return None if self.peak_flops is None else self.step_flops / (seconds * self.peak_flops)


def throughput(step_flops: float, device_kind: str, num_devices: int, compute_dtype: str) -> Throughput:
    """`Throughput` on devices of one kind (`jax.Device.device_kind`).

    A peak is known for bfloat16 on the accelerators of the table. Names are compared by whole words ("NVIDIA L40S" is no
    "NVIDIA L4"), and the longest that fits counts.
    """
    if compute_dtype != "bfloat16":
        return Throughput(step_flops, None, f"no peak known for {compute_dtype} products")
    names = [name for name in _PEAK_BFLOAT16 if re.match(rf"{re.escape(name)}\b", device_kind)]
    if not names:
        return Throughput(step_flops, None, f"no peak known for devices of kind {device_kind!r}")
    return Throughput(step_flops, num_devices * _PEAK_BFLOAT16[max(names, key=len)])

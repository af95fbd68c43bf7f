"""How many floating-point operations a training step takes, by arithmetic: the numerator of FLOPs utilisation.

Counted are products of matrices, two operations for each multiply-add; the backward pass is twice the forward pass.
Element-wise work and embedding look-ups are not counted.

Model FLOPs utilisation (MFU) is of what the model asks for: real tokens, causal attention as half of its square, nothing
twice. Hardware FLOPs utilisation (HFU) is of what the devices are made to do: padding, both halves of the square, and the
products that the backward pass computes a second time (`ModelConfig.remat`).

Of an encoder alone there are no decoder tokens, but T positions that are predicted. A group of contrast (T = 0) is counted as
one pass of its inputs through all layers, there and back: what it saves above its layer is about what the keys cost.

The usual estimate, 6 · parameters · tokens, is 1.5 to 2 times too high for an encoder-decoder: it sends every token
through both sides, and every encoder token through the output projection.

Legend: B batch, S encoder tokens, T decoder tokens, D hidden size, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.parallel.topology import GENERATIONS

# Peak of dense bfloat16 products, operations a second, of what jax calls one device; by the first words of its name. Makers'
# data sheets (without sparsity). TPU v2, v3 and 7x show each chip as two devices.
_PEAK_BFLOAT16 = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": GENERATIONS["v4"].flops,
    "TPU v5 lite": GENERATIONS["v5e"].flops,
    "TPU v5e": GENERATIONS["v5e"].flops,
    "TPU v5": GENERATIONS["v5p"].flops,
    "TPU v5p": GENERATIONS["v5p"].flops,
    "TPU v6 lite": GENERATIONS["v6e"].flops,
    "TPU v6e": GENERATIONS["v6e"].flops,
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
      recomputed: products of the forward pass that the backward pass computes again, causal self-attention in full.
    """

    linear: float
    attention: float
    causal_half: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        """What the model asks for, causal self-attention counted half."""
        return self.linear + self.attention + self.head

    @property
    def total_full_attention(self) -> float:
        """The same, causal self-attention counted in full: the convention of most published figures."""
        return self.total + self.causal_half

    @property
    def hardware(self) -> float:
        """What is computed, for an implementation that masks half of the square rather than skips it."""
        return self.total_full_attention + self.recomputed

    def __add__(self, other: Flops) -> Flops:
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Flops(*(a + b for a, b in zip(ours, theirs, strict=True)))


def flops_per_step(config: ModelConfig, groups: Mapping[str, tuple[int, float, float]]) -> Flops:
    """The operations of one step over a global batch.

    Args:
      config: the model's sizes, and `remat`.
      groups: by name, (B, S, T): examples, and encoder and decoder tokens of each: the padded lengths for what is computed,
        the mean of the real ones for what is asked for. (A mean is exact for all but attention, which grows with the square:
        with lengths that vary by a tenth, it is 1 % too low, and attention is a twentieth of the whole.)
    """
    total = Flops(0, 0, 0, 0, 0)
    for batch, encoder_length, decoder_length in groups.values():
        total += _flops(config, batch, encoder_length, decoder_length)
    return total


def _flops(config: ModelConfig, batch: int, encoder_length: float, decoder_length: float) -> Flops:
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

    attention, causal_half = 2 * hidden * pairs, 2 * hidden * causal_half_pairs
    # The second matrix of each feed-forward network, and the output projection of each attention.
    last_products = (
        hidden
        * config.feed_forward_size
        * (config.num_encoder_layers * encoder_length + config.num_decoder_layers * decoder_length)
    )
    outputs = encoder_length * config.num_encoder_layers * (square + feed_forward / 2)
    outputs += decoder_length * config.num_decoder_layers * (2 * square + feed_forwards * feed_forward / 2)
    recomputed = {
        # What a layer puts out is needed again only where a LayerNorm comes after it.
        "full": linear + attention + causal_half - (last_products if config.norm_placement == "pre" else 0),
        "sublayer_outputs": linear + attention + causal_half - outputs,
        "dots_with_no_batch_dims_saveable": attention + causal_half,
        "dots_saveable": 0,
        "none": 0,
    }[config.remat]

    scale = _BACKWARD_TOO * 2 * batch
    return Flops(
        linear=scale * linear,
        attention=scale * attention,
        causal_half=scale * causal_half,
        head=scale * head,
        recomputed=2 * batch * recomputed,
    )


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What utilisation is measured by.

    Attributes:
      model: its sizes.
      shapes: by group, (B, S, T) with the padded lengths: what the devices work on.
      peak_flops: operations a second that all devices together could do; None where that is not known.
      reason: why it is not known, "" where it is.
    """

    model: ModelConfig
    shapes: Mapping[str, tuple[int, int, int]]
    peak_flops: float | None
    reason: str = ""

    def utilisation(self, tokens: Mapping[str, tuple[float, float]], seconds: float) -> dict[str, float | None]:
        """Shares of the devices' peak in a step.

        Args:
          tokens: by group, real (non-pad) tokens of its batch: of the encoder, of the decoder.
          seconds: the step took.

        Returns:
          `mfu`; `mfu_full_attention`, the same with causal attention as a full square; `hfu`. None without a peak.
        """
        if self.peak_flops is None:
            return {"mfu": None, "mfu_full_attention": None, "hfu": None}
        sizes = {group: shape[0] for group, shape in self.shapes.items()}
        real = {
            group: (size, tokens[group][0] / size, tokens[group][1] / size if self.shapes[group][2] else 0.0)
            for group, size in sizes.items()
        }
        asked, done = flops_per_step(self.model, real), flops_per_step(self.model, self.shapes)
        most = seconds * self.peak_flops
        counts = {"mfu": asked.total, "mfu_full_attention": asked.total_full_attention, "hfu": done.hardware}
        return {name: count / most for name, count in counts.items()}


def throughput(
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, int, int]],
    device_kind: str,
    num_devices: int,
    compute_dtype: str,
) -> Throughput:
    """`Throughput` on devices of one kind (`jax.Device.device_kind`).

    A peak is known for bfloat16 on the accelerators of the table. Names are compared by whole words ("NVIDIA L40S" is no
    "NVIDIA L4"), and the longest that fits counts.
    """
    if compute_dtype != "bfloat16":
        return Throughput(model, shapes, None, f"no peak known for {compute_dtype} products")
    names = [name for name in _PEAK_BFLOAT16 if re.match(rf"{re.escape(name)}\b", device_kind)]
    if not names:
        return Throughput(model, shapes, None, f"no peak known for devices of kind {device_kind!r}")
    return Throughput(model, shapes, num_devices * _PEAK_BFLOAT16[max(names, key=len)])

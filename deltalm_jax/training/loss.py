"""Cross-entropy over a 250,000-piece vocabulary without ever holding `[B, T, V]` logits.

The output projection is 40 to 50 % of DeltaLM's arithmetic and its logits take 0.5 GB for one 512-token sequence.
So targets are taken a block of positions at a time, and the gradient of a block is computed in the same pass as its
value, while its logits are still there: three matrix products a block (logits, d hidden, d table), where recomputing
the logits in a backward pass would take four. It follows that the loss is not left to `jax.grad`: it comes last in a
step's forward pass, hands out its gradients, and the backward pass of the model starts from them.

With logits x, target t, lse = log Σ exp x, smoothing ε spread as ε' = ε / (V - 1) (fairseq's form), and z-loss ζ:

    nll  = lse - x_t
    loss = (1 - ε - ε') nll + ε' Σ_v (lse - x_v) + ζ lse²
    d loss / d x_v = (1 + 2 ζ lse) softmax_v - (1 - ε - ε') [v = t] - ε'

The coefficient of softmax from the first two terms is (1 - ε - ε') + V ε' = 1.

Shapes: B batch, T target length, D model, V rows of the token table, C positions of a block, N = B * C tokens of a
block.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from deltalm_jax.fields import check_types, operational
from deltalm_jax.model.linear import sum_of_outer_products


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
      label_smoothing: ε: probability mass that the wrong pieces share (fairseq's form; 0.1 in the paper's fine-tuning,
        none known in pretraining).
      z_loss: ζ: weight of (log-sum-exp of the logits)², which keeps it near 0 (PaLM: 1e-4; 0 is off).
      objective_weights: weight of each objective's targets in the mean; an objective not named weighs 1.
      block_megabytes: float32 logits held at a time on a device (or on the devices of its `tensor` group together).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    objective_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    block_megabytes: float = operational(1024.0)

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"LossConfig.label_smoothing must lie in [0, 1), found {self.label_smoothing}")
        if self.z_loss < 0:
            raise ValueError(f"LossConfig.z_loss must not be negative, found {self.z_loss}")
        if self.block_megabytes <= 0:
            raise ValueError(f"LossConfig.block_megabytes must be positive, found {self.block_megabytes}")
        for name, weight in self.objective_weights.items():
            if weight < 0:
                raise ValueError(f"LossConfig.objective_weights[{name!r}] must not be negative, found {weight}")

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the negative log-likelihood and nothing else."""
        return self.label_smoothing == self.z_loss == 0

    def weight(self, objective: str) -> float:
        """Weight of an objective's targets."""
        return self.objective_weights.get(objective, 1.0)

    def block_tokens(self, vocab_size: int) -> int:
        """Targets whose logits are held at a time."""
        return max(1, int(self.block_megabytes * 1e6 / (4 * vocab_size)))


def _blocks(array: jax.Array, num_blocks: int, block: int) -> jax.Array:
    """[B, T, …] → [num_blocks, B, block, …], zero-padded along T. The batch axis stays whole: it is sharded."""
    batch, length = array.shape[:2]
    padded = jnp.pad(array, [(0, 0), (0, num_blocks * block - length)] + [(0, 0)] * (array.ndim - 2))
    return jnp.moveaxis(padded.reshape(batch, num_blocks, block, *array.shape[2:]), 1, 0)


def _block_length(batch: int, length: int, block_tokens: int) -> tuple[int, int]:
    """Number of blocks and positions in each, so that no block holds more than `block_tokens` tokens (or one a row)."""
    num_blocks = max(1, min(length, -(-batch * length // block_tokens)))
    block = -(-length // num_blocks)
    return -(-length // block), block


def _logits(hidden_ND: jax.Array, table_VD: jax.Array, bias_V: jax.Array | None, vocab_size: int) -> jax.Array:
    logits_NV = jnp.einsum("ND,VD->NV", hidden_ND, table_VD, preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits_NV += bias_V
    if table_VD.shape[0] > vocab_size:  # rows that exist only so that the table splits evenly
        logits_NV = jnp.where(jnp.arange(table_VD.shape[0]) < vocab_size, logits_NV, -jnp.inf)
    return logits_NV


def _nll(logits_NV: jax.Array, targets_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood and log-sum-exp, float32 [N] each."""
    lse_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return lse_N - jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0], lse_N


def _target_and_rest(config: LossConfig, vocab_size: int) -> tuple[float, float]:
    """Weights of the target's negative log-likelihood, 1 - ε - ε', and of every piece's, ε'."""
    rest = config.label_smoothing / (vocab_size - 1)
    return 1 - config.label_smoothing - rest, rest


def _loss(
    config: LossConfig, vocab_size: int, logits_NV: jax.Array, targets_N: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, negative log-likelihood and log-sum-exp, float32 [N] each."""
    nll_N, lse_N = _nll(logits_NV, targets_N)
    loss_N = nll_N
    if config.label_smoothing:
        target, rest = _target_and_rest(config, vocab_size)
        sum_logits_N = jnp.sum(logits_NV, axis=-1, where=jnp.arange(logits_NV.shape[1]) < vocab_size)
        loss_N = target * nll_N + rest * (vocab_size * lse_N - sum_logits_N)
    if config.z_loss:
        loss_N += config.z_loss * jnp.square(lse_N)
    return loss_N, nll_N, lse_N


def _d_logits(
    config: LossConfig, vocab_size: int, logits_NV: jax.Array, targets_N: jax.Array, lse_N: jax.Array
) -> jax.Array:
    """d loss / d logits of each token, float32 [N, V]."""
    target, rest = _target_and_rest(config, vocab_size)
    piece_V = jnp.arange(logits_NV.shape[1])
    is_target_NV = piece_V[None, :] == targets_N[:, None]
    softmax_NV = jnp.exp(logits_NV - lse_N[:, None])
    if config.z_loss:
        softmax_NV *= (1 + 2 * config.z_loss * lse_N)[:, None]
    d_logits_NV = softmax_NV - target * is_target_NV
    return d_logits_NV - rest * (piece_V < vocab_size) if config.label_smoothing else d_logits_NV


def vocabulary_loss_and_gradients(
    hidden_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    scale: jax.Array | float,
    d_table_VD: jax.Array,
    config: LossConfig,
    vocab_size: int,
    bias_V: jax.Array | None = None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array, jax.Array | None]:
    """Sums over positions of weight * loss and of weight * negative log-likelihood, and the first one's gradients.

    The table's gradient is added to what is there already: it is the largest array of a step, and one of each group and
    microbatch, to be added up afterwards, would cost more time than the projection's bandwidth allows.

    Args:
      hidden_BTD: decoder states, in the compute dtype.
      table_VD: token table, tied to the output projection; it is used in the dtype of `hidden_BTD`.
      targets_BT: int32 ids below `vocab_size`.
      weights_BT: float32; 0 leaves a position out.
      scale: of the gradients: they are those of scale * sum.
      d_table_VD: float32, gradient of the table so far.
      config: smoothing, z-loss, and how much is held at a time.
      vocab_size: rows of the table that are scored.
      bias_V: float32, added to the logits: of an encoder's head for masked language modelling. DeltaLM has none.

    Returns:
      The two sums, float32 scalars, not scaled; the gradient by `hidden_BTD`, in its dtype; `d_table_VD` with this gradient
      added; and the gradient by `bias_V`, None if there is none. Products accumulate in float32; log-sum-exp and softmax
      are float32.
    """
    batch, length, width = hidden_BTD.shape
    num_blocks, block = _block_length(batch, length, config.block_tokens(vocab_size))
    rows_VD = table_VD.astype(hidden_BTD.dtype)

    def one_block(carry, inputs):
        loss, nll, d_table_VD, d_bias_V = carry
        hidden_BCD, targets_BC, weights_BC = inputs
        hidden_ND, targets_N, weights_N = hidden_BCD.reshape(-1, width), targets_BC.reshape(-1), weights_BC.reshape(-1)
        logits_NV = _logits(hidden_ND, rows_VD, bias_V, vocab_size)
        loss_N, nll_N, lse_N = _loss(config, vocab_size, logits_NV, targets_N)
        d_logits_NV = _d_logits(config, vocab_size, logits_NV, targets_N, lse_N) * (scale * weights_N)[:, None]
        d_bias_V = None if d_bias_V is None else d_bias_V + jnp.sum(d_logits_NV, axis=0)
        d_logits_NV = d_logits_NV.astype(hidden_BTD.dtype)
        d_hidden_ND = jnp.einsum("NV,VD->ND", d_logits_NV, rows_VD, preferred_element_type=jnp.float32)
        d_table_VD += sum_of_outer_products(d_logits_NV, hidden_ND, jnp.float32)
        sums = loss + jnp.sum(loss_N * weights_N), nll + jnp.sum(nll_N * weights_N)
        return (*sums, d_table_VD, d_bias_V), d_hidden_ND.astype(hidden_BTD.dtype).reshape(hidden_BCD.shape)

    zero = jnp.zeros((), jnp.float32)
    d_bias_V = None if bias_V is None else jnp.zeros(bias_V.shape, jnp.float32)
    (loss, nll, d_table_VD, d_bias_V), d_hidden = jax.lax.scan(
        one_block,
        (zero, zero, d_table_VD, d_bias_V),
        tuple(_blocks(a, num_blocks, block) for a in (hidden_BTD, targets_BT, weights_BT)),
    )
    d_hidden_BTD = jnp.moveaxis(d_hidden, 0, 1).reshape(batch, num_blocks * block, width)[:, :length]
    return (loss, nll), d_hidden_BTD, d_table_VD, d_bias_V


def token_nll(
    hidden_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    config: LossConfig,
    vocab_size: int,
    bias_V: jax.Array | None = None,
) -> jax.Array:
    """Negative log-likelihood of each target, float32 [B, T], block by block; arguments as for the loss."""
    batch, length, width = hidden_BTD.shape
    num_blocks, block = _block_length(batch, length, config.block_tokens(vocab_size))
    rows_VD = table_VD.astype(hidden_BTD.dtype)

    def one_block(inputs):
        hidden_BCD, targets_BC = inputs
        logits_NV = _logits(hidden_BCD.reshape(-1, width), rows_VD, bias_V, vocab_size)
        return _nll(logits_NV, targets_BC.reshape(-1))[0].reshape(targets_BC.shape)

    blocks = jax.lax.map(one_block, tuple(_blocks(a, num_blocks, block) for a in (hidden_BTD, targets_BT)))
    return jnp.moveaxis(blocks, 0, 1).reshape(batch, num_blocks * block)[:, :length]

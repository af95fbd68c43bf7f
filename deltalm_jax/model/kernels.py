"""Attention by kernels that never hold all scores, and which one a device gets. The formula is `attention.attend_xla`.

    splash   TPU: Pallas kernels that come with JAX, forward and backward
    cudnn    GPU: cuDNN's fused attention, through `jax.nn.dot_product_attention`

A kernel runs on one device; `parallel/sharding.py` runs it on many, each with its own rows and heads.

Legend: B batch, T positions that attend, S positions attended to, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from deltalm_jax.errors import UserError
from deltalm_jax.model.attention import Attend, KeysValues, Mask, attend_xla, mask_matrix
from deltalm_jax.model.config import ModelConfig

SPLASH_OUTPUT = "splash_output"
"""Name of what the splash kernel keeps for its backward pass, for `ModelConfig.remat`."""

# The kernels' blocks are whole rows of 128 lanes. Two square float32 blocks of scores are 2 MB at most.
_LANES = 128
_LARGEST_BLOCK = 512


def attend_splash(query_BTHK: jax.Array, seen: KeysValues, mask: Mask, *, interpret: bool = False) -> jax.Array:
    """`Attend` by the splash kernels. Lengths are padded to multiples of 128 here, and nowhere else.

    Padding is told by segments: a query looks at the keys of its own segment only. Real keys are segment 1, as are the
    queries that can see one; padding is segment 0, as are the queries that see nothing else, so that their softmax is
    proper too; keys added to fill 128 are segment -1, which no query has. Where a row holds several examples, their own
    numbers take the place of 1.

    Args:
      query_BTHK, seen, mask: see `attention.Attend`.
      interpret: run the kernels as ordinary operations, on any device; for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # 0.3 s that only a TPU needs to spend
        BlockSizes,
        CausalMask,
        FullMask,
        MultiHeadMask,
        QKVLayout,
        SegmentIds,
        make_splash_mha,
    )

    num_queries, num_heads = query_BTHK.shape[1:3]
    query_BHTK, key_BHSK, value_BHSK = (_lengthen(array, _LANES).swapaxes(1, 2) for array in (query_BTHK, *seen))
    if mask.causal:
        first_real_B1 = jnp.argmax(mask.real_BS, axis=1, keepdims=True)
        sees_BT = (jnp.arange(num_queries) >= first_real_B1) & mask.real_BS.any(axis=1, keepdims=True)
    else:
        sees_BT = jnp.broadcast_to(mask.real_BS.any(axis=1, keepdims=True), query_BTHK.shape[:2])
    query_BT, key_BS = mask.segments or (1, 1)
    segments = SegmentIds(
        q=_lengthen(jnp.where(sees_BT, query_BT, 0), _LANES),
        kv=_lengthen(jnp.where(mask.real_BS, key_BS, 0), _LANES, value=-1),
    )

    shape = query_BHTK.shape[2], key_BHSK.shape[2]
    block_q, block_kv = (_block(length) for length in shape)
    kernel = make_splash_mha(
        MultiHeadMask([CausalMask(shape) if mask.causal else FullMask(shape)] * num_heads),
        block_sizes=BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            # One kernel for all three gradients: it makes the scores once more, not twice.
            use_fused_bwd_kernel=True,
            # A head of 64 would fill half of each row of 128 lanes, in memory too; positions fill it.
            q_layout=QKVLayout.SEQ_MINOR,
            k_layout=QKVLayout.SEQ_MINOR,
            v_layout=QKVLayout.SEQ_MINOR,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SPLASH_OUTPUT,
        interpret=interpret,
    )
    mixed_BHTK = jax.vmap(kernel)(query_BHTK, key_BHSK, value_BHSK, segments)
    return mixed_BHTK.swapaxes(1, 2)[:, :num_queries]


def _lengthen(array_BTX: jax.Array, multiple: int, value: int = 0) -> jax.Array:
    """Axis 1 padded at its end to a multiple."""
    widths = [(0, 0)] * array_BTX.ndim
    widths[1] = (0, -array_BTX.shape[1] % multiple)
    return jnp.pad(array_BTX, widths, constant_values=value)


def _block(length: int) -> int:
    """The largest block that divides a length, which is a multiple of 128."""
    return max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)


def attend_cudnn(
    query_BTHK: jax.Array, seen: KeysValues, mask: Mask, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> jax.Array:
    """`Attend` by cuDNN, for rows whose padding is at their end, as that of all batches from prepared data is.

    cuDNN would rather be told the length of a row than a matrix of what is masked: the matrix is read for every head, and
    its unwanted gradient is written. A row with padding before a token gives NaN, not a wrong answer. Rows of several
    examples cannot be told so, and take the matrix.

    Args:
      query_BTHK, seen, mask: see `attention.Attend`; bfloat16 or float16.
      implementation: "xla" makes the same call without cuDNN, on any device and in any dtype; for tests.
    """
    if mask.segments is not None:
        # JAX refuses to train cuDNN on odd lengths: what is added is looked at by nobody.
        matrix_BHTS = mask_matrix(mask, query_BTHK.shape[1])
        widths = [(0, 0), (0, 0), (0, query_BTHK.shape[1] % 2), (0, seen.key_BSHK.shape[1] % 2)]
        mixed_BTHK = jax.nn.dot_product_attention(
            _lengthen(query_BTHK, 2),
            _lengthen(seen.key_BSHK, 2),
            _lengthen(seen.value_BSHK, 2),
            scale=1.0,
            mask=jnp.pad(matrix_BHTS, widths),
            implementation=implementation,
        )
        return mixed_BTHK[:, : query_BTHK.shape[1]]
    real_BS = mask.real_BS
    lengths_B = jnp.sum(real_BS, axis=1, dtype=jnp.int32)
    at_end_B = jnp.all(real_BS == (jnp.arange(real_BS.shape[1]) < lengths_B[:, None]), axis=1)
    query_BTHK *= jnp.where(at_end_B, 1.0, jnp.nan)[:, None, None, None].astype(query_BTHK.dtype)
    mixed_BTHK = jax.nn.dot_product_attention(
        _lengthen(query_BTHK, 2),  # JAX refuses to train cuDNN on odd lengths
        _lengthen(seen.key_BSHK, 2),
        _lengthen(seen.value_BSHK, 2),
        scale=1.0,
        is_causal=mask.causal,
        key_value_seq_lengths=jnp.maximum(lengths_B, 1),  # a row of padding alone looks at its first position
        implementation=implementation,
    )
    return mixed_BTHK[:, : query_BTHK.shape[1]]


KERNELS: Mapping[str, Attend] = MappingProxyType(
    {"xla": attend_xla, "splash": attend_splash, "cudnn": attend_cudnn},
)
"""By the names that `ModelConfig.attention` has, "auto" apart."""


class AttentionError(UserError, ValueError):
    """The kernel asked for cannot be had."""


class AttentionChoice(NamedTuple):
    """What computes attention, one of `KERNELS`, and why, for the user to read."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def resolve_attention(config: ModelConfig, device: jax.Device, compute_dtype: str) -> AttentionChoice:
    """What computes attention on such devices.

    "auto" takes splash on a TPU and cuDNN on a GPU wherever they can be had, and else the formula.

    Args:
      config: for `attention`, the size of a head and the dropout of attention weights.
      device: one of those that will compute; only its kind is looked at.
      compute_dtype: as `resolve_compute_dtype` gives it.

    Raises:
      AttentionError: `config.attention` names a kernel that cannot be had, and why.
    """
    own = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "xla")
    wanted = own if config.attention == "auto" else config.attention
    obstacle = _obstacle(wanted, config, device, compute_dtype)
    if obstacle is None:
        return AttentionChoice(wanted, "auto" if config.attention == "auto" else "as configured")
    if config.attention == "auto":
        return AttentionChoice("xla", f"auto: not {wanted}, for {obstacle}")
    raise AttentionError(
        f"ModelConfig.attention is {wanted!r}, which cannot be had here, for {obstacle}: mend that, or set it to 'auto'"
    )


def _obstacle(name: str, config: ModelConfig, device: jax.Device, compute_dtype: str) -> str | None:
    """Why a device cannot have a kernel, put to follow "for"; None if it can."""
    if name == "xla":
        return None
    platform = {"splash": "tpu", "cudnn": "gpu"}[name]
    if device.platform != platform:
        return f"it runs on a {platform.upper()} and the device is a {device.platform.upper()}"
    if config.attention_dropout_rate:
        return (
            f"it drops no attention weights and ModelConfig.attention_dropout_rate is {config.attention_dropout_rate}"
        )
    if name == "cudnn":
        head_size = config.hidden_size // config.num_heads
        capability = getattr(device, "compute_capability", "")
        if not capability[:1].isdigit() or float(capability) < 8.0:
            return f"it needs an NVIDIA GPU of compute capability 8.0 or more and this one has {capability or 'none'}"
        if compute_dtype != "bfloat16":
            return f"it computes in bfloat16 and the compute dtype is {compute_dtype}"
        if head_size % 8 or head_size > 128:
            return f"its heads are a multiple of 8 up to 128 wide and the model's are {head_size}"
    return None

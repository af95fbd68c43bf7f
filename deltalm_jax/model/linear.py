"""The two weight-bearing primitives: a linear map and layer normalisation. Legend: I input width, O output width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

LAYER_NORM_EPSILON = 1e-5  # As in every XLM-R and DeltaLM; Flax's own default is 1e-6.


class Linear(nnx.Module):
    """`inputs @ kernel + bias`, computed in the dtype of the inputs from float32 parameters.

    The kernel is a plain [I, O] matrix. Attention's projections are kept so too, with O = H·K and the heads major: one
    large product is what every backend does best, and sharding O over a `tensor` axis that divides H keeps heads whole.

    Args:
      input_size: I.
      output_size: O.
      gain: the kernel is drawn Xavier-uniform, ±gain·√(6/(I+O)). The bias starts at zero.
      rngs: source of the initial values.
    """

    def __init__(self, input_size: int, output_size: int, *, gain: float = 1.0, rngs: nnx.Rngs) -> None:
        xavier_uniform = jax.nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")
        self.kernel = nnx.Param(xavier_uniform(rngs.params(), (input_size, output_size), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(output_size, jnp.float32))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., I] -> [..., O], same dtype."""
        # The leading axes are folded into one: XLA on a CPU makes the backward pass of a 3-d product up to 1.8 times
        # slower than that of the same product in 2-d. Elsewhere it makes no difference.
        inputs_NI = inputs.reshape(-1, inputs.shape[-1])
        outputs_NO = inputs_NI @ self.kernel.astype(inputs.dtype) + self.bias.astype(inputs.dtype)
        return outputs_NO.reshape(*inputs.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it. Computed in float32."""

    def __init__(self, size: int) -> None:
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], same dtype."""
        values = inputs.astype(jnp.float32)
        centred = values - values.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return (normalised * self.scale[...] + self.bias[...]).astype(inputs.dtype)

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
        outputs_NO = _product(inputs_NI, self.kernel.astype(inputs.dtype)) + self.bias.astype(inputs.dtype)
        return outputs_NO.reshape(*inputs.shape[:-1], -1)


@jax.custom_vjp
def _product(inputs_NI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """`inputs_NI @ kernel_IO`, whose gradient by the kernel is made by `sum_of_outer_products`."""
    return inputs_NI @ kernel_IO


def _product_backward(kept, d_outputs_NO):
    inputs_NI, kernel_IO = kept
    return d_outputs_NO @ kernel_IO.T, sum_of_outer_products(inputs_NI, d_outputs_NO)


_product.defvjp(lambda inputs_NI, kernel_IO: (inputs_NI @ kernel_IO, (inputs_NI, kernel_IO)), _product_backward)


def sum_of_outer_products(
    left_NI: jax.Array, right_NO: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """Σ_N left ⊗ right: what the gradient of a matrix is. [I, O], in `dtype` (by default that of the arguments).

    XLA on a CPU takes up to 1.7 times longer where O is the shorter of the two. The product is then made as [O, I] and
    turned round; the barrier keeps XLA from turning it back. Elsewhere the order makes no difference.
    """

    def as_is(left_NI: jax.Array, right_NO: jax.Array) -> jax.Array:
        return jnp.einsum("NI,NO->IO", left_NI, right_NO, preferred_element_type=dtype)

    def turned(left_NI: jax.Array, right_NO: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(as_is(right_NO, left_NI)).T

    if left_NI.shape[1] <= right_NO.shape[1]:
        return as_is(left_NI, right_NO)
    return jax.lax.platform_dependent(left_NI, right_NO, cpu=turned, default=as_is)


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it. Computed in float32."""

    def __init__(self, size: int) -> None:
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], same dtype."""
        return _layer_norm(inputs, self.scale[...], self.bias[...])


# The gradient is written out so that of each row no more is kept for it than the row itself, its mean and its deviation,
# where jax would keep three float32 arrays of the whole shape.


@jax.custom_vjp
def _layer_norm(inputs: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
    return _layer_norm_forward(inputs, scale_D, bias_D)[0]


def _layer_norm_forward(inputs, scale_D, bias_D):
    values = inputs.astype(jnp.float32)
    mean = values.mean(axis=-1, keepdims=True)
    variance = jnp.square(values - mean).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
    outputs = ((values - mean) * inverse * scale_D + bias_D).astype(inputs.dtype)
    return outputs, (inputs, mean, inverse, scale_D)


def _layer_norm_backward(kept, d_outputs):
    inputs, mean, inverse, scale_D = kept
    normalised = (inputs.astype(jnp.float32) - mean) * inverse
    d_outputs = d_outputs.astype(jnp.float32)
    d_normalised = d_outputs * scale_D
    # What would change the mean or the deviation of the row is taken out of its gradient.
    along_mean = d_normalised.mean(axis=-1, keepdims=True)
    along_row = (d_normalised * normalised).mean(axis=-1, keepdims=True)
    d_inputs = (inverse * (d_normalised - along_mean - normalised * along_row)).astype(inputs.dtype)
    rows = tuple(range(inputs.ndim - 1))
    return d_inputs, jnp.sum(d_outputs * normalised, axis=rows), jnp.sum(d_outputs, axis=rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)

"""The loop over layers computes the same whichever way it is compiled, and bfloat16 stays near float32."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deltalm_jax.model.attention import padding_mask
from deltalm_jax.model.config import REMAT_POLICIES
from deltalm_jax.model.deltalm import hidden_states, layer_states, logits
from deltalm_jax.model.dropout import layer_keys
from deltalm_jax.model.encoder import EncoderLayer
from deltalm_jax.model.layer import scan_layers, stack_layers
from deltalm_jax.model.linear import LayerNorm
from tests.support.programs import matrix_product_operations

SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3]])
DECODER_INPUT = np.array([[3, 21, 22, 23, 24, 0], [3, 25, 26, 27, 28, 29]])


def loss_and_gradients(config, params, dtype="float32", key=None):
    @jax.jit
    @jax.value_and_grad
    def loss(params):
        hidden = hidden_states(config, params, SOURCE, DECODER_INPUT, dropout_key=key, compute_dtype=dtype)
        return -jnp.mean(jax.nn.log_softmax(logits(params, hidden))[..., 7])

    return loss(params)


@pytest.fixture(scope="module")
def shallow(small_config, small_params):
    """The small model with two layers on the encoder's side and one on the decoder's: quicker to compile unrolled."""
    config = dataclasses.replace(small_config, num_encoder_layers=2, num_decoder_layers=1)
    return config, small_params | {
        side: small_params[side] | {"layers": jax.tree.map(lambda leaf, n=num: leaf[:n], small_params[side]["layers"])}
        for side, num in (("encoder", 2), ("decoder", 1))
    }


@pytest.fixture(scope="module")
def plain(shallow):
    """The loss and gradients of the plain loop, with dropout."""
    return loss_and_gradients(*shallow, key=jax.random.key(4))


@pytest.mark.parametrize(
    "options",
    [{"scan_layers": False, "remat": "full"}, *({"remat": name} for name in REMAT_POLICIES if name != "none")],
    ids=str,
)
def test_unrolled_and_recomputed_loops_are_equal(shallow, plain, options):
    """With dropout, whose masks must depend on a layer's number and not on the shape of the loop."""
    loss, gradients = plain
    config, params = shallow
    other_loss, others = loss_and_gradients(dataclasses.replace(config, **options), params, key=jax.random.key(4))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), others, gradients)


def test_the_loop_is_the_layers_one_after_the_other(small_config, small_params):
    """Layer by layer in Python, each taken out of the stack by hand."""
    states = jax.jit(partial(layer_states, small_config))(small_params, SOURCE, DECODER_INPUT).encoder_states_NBSD
    graph = nnx.graphdef(EncoderLayer(small_config, rngs=nnx.Rngs(params=0)))
    hidden = states[0]
    for index in range(small_config.num_encoder_layers):
        layer = nnx.merge(graph, jax.tree.map(lambda leaf, n=index: leaf[n], small_params["encoder"]["layers"]))
        hidden = layer(hidden, padding_mask(jnp.asarray(SOURCE)))
        np.testing.assert_allclose(hidden, states[index + 1], atol=1e-5)


@pytest.mark.parametrize("loop", [True, False])
def test_each_layer_is_given_a_key_of_its_own(small_config, loop: bool):
    config = dataclasses.replace(small_config, scan_layers=loop)
    layers = stack_layers(lambda config, rngs: LayerNorm(3), config, 4, nnx.Rngs(params=0))

    def draw(layer, hidden, key):
        return hidden, jax.random.uniform(key, hidden.shape)

    draws = np.asarray(scan_layers(config, layers, draw, jnp.zeros(5), layer_keys(jax.random.key(9), 4))[1])
    expected = [jax.random.uniform(jax.random.fold_in(jax.random.key(9), layer), 5) for layer in range(4)]
    np.testing.assert_array_equal(draws, expected)
    assert len({row.tobytes() for row in draws}) == 4


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    """On values far from zero, where a mean in bfloat16 would have lost them; only the result is rounded."""
    inputs = (50 + jax.random.normal(jax.random.key(0), (20, 64))).astype(jnp.bfloat16)
    exact = np.asarray(inputs, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    outputs = LayerNorm(64)(inputs)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(outputs, np.float64), exact, rtol=2**-8, atol=1e-4)


def test_compiled_size_does_not_grow_with_depth(small_config, small_params):
    def operations(num_layers: int) -> int:
        config = dataclasses.replace(small_config, num_encoder_layers=num_layers)
        layers = small_params["encoder"]["layers"]
        layers = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 2)[:num_layers], layers)
        params = small_params | {"encoder": small_params["encoder"] | {"layers": layers}}
        text = jax.jit(partial(hidden_states, config)).lower(params, SOURCE, DECODER_INPUT).as_text()
        return text.count("dot_general")

    assert operations(2) == operations(8) > 0


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("loop", [True, False])
def test_only_a_scanned_stack_is_a_loop(small_config, small_params, loop: bool, remat: str):
    """In the forward pass one loop each side, with gradients two; unrolled none, whatever the number of layers."""
    config = dataclasses.replace(small_config, scan_layers=loop, remat=remat)

    def loss(params):
        return jnp.sum(hidden_states(config, params, SOURCE, DECODER_INPUT)[..., 3])

    for function, loops in ((loss, 2), (jax.grad(loss), 4)):
        text = jax.jit(function).lower(small_params).as_text()
        assert text.count("stablehlo.while") == (loops if loop else 0)
    # Without a barrier, an unrolled program's forward pass would be merged with its recomputation. Tall weight gradients have
    # barriers of their own (`sum_of_outer_products`).
    kept = dataclasses.replace(config, remat="none")
    plain = jax.jit(jax.grad(lambda params: jnp.sum(hidden_states(kept, params, SOURCE, DECODER_INPUT)[..., 3])))
    more = text.count("optimization_barrier") - plain.lower(small_params).as_text().count("optimization_barrier")
    assert (more > 0) == (remat != "none" and not loop)


def test_remat_policies_keep_and_recompute_what_they_say(small_config, small_params):
    """Recomputed products, counted in the program, are those worked out by hand; bytes kept grow where they shrink."""
    batch, source, target, size, inner = 2, SOURCE.shape[1], DECODER_INPUT.shape[1], 24, 36
    encoder_layers, decoder_layers = small_config.num_encoder_layers, small_config.num_decoder_layers
    # Multiply-adds in each of the forward pass's products, over all layers.
    tokens = batch * (encoder_layers * source + decoder_layers * 2 * target)
    keys_and_values = batch * (encoder_layers * source + decoder_layers * (target + source)) * 2 * size**2
    attention = batch * (encoder_layers * source**2 + decoder_layers * (target**2 + target * source)) * 2 * size
    within_sublayers = keys_and_values + tokens * size**2 + attention + tokens * size * inner
    out_of_sublayers = tokens * size**2 + tokens * inner * size
    recomputed = {
        "full": within_sublayers + out_of_sublayers,
        "sublayer_outputs": within_sublayers,
        "dots_with_no_batch_dims_saveable": attention,
        "dots_saveable": 0,
        "none": 0,
    }
    assert set(recomputed) == set(REMAT_POLICIES)

    def operations_and_bytes_kept(remat: str) -> tuple[int, int]:
        loss = partial(hidden_states, dataclasses.replace(small_config, remat=remat))
        backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: loss(p, SOURCE, DECODER_INPUT), params), small_params
        )
        kept = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward[1]))
        gradient = jax.grad(lambda params: jnp.sum(loss(params, SOURCE, DECODER_INPUT)))
        return matrix_product_operations(jax.make_jaxpr(gradient)(small_params).jaxpr), kept

    found = {remat: operations_and_bytes_kept(remat) for remat in recomputed}
    least = found["none"][0]
    assert {remat: operations - least for remat, (operations, _) in found.items()} == {
        remat: 2 * multiply_adds for remat, multiply_adds in recomputed.items()
    }
    kept = [found[remat][1] for remat in recomputed]
    assert sorted(set(kept)) == kept, "each keeps more than the one before"


def test_bfloat16_stays_near_float32(shallow, plain):
    """Within a few of its steps of 2⁻⁸; gradients arrive as float32, for the float32 parameters."""
    loss, gradients = plain
    config, params = shallow
    low_loss, low_gradients = loss_and_gradients(config, params, "bfloat16", key=jax.random.key(4))
    run = partial(hidden_states, config, compute_dtype="bfloat16")
    assert jax.eval_shape(run, params, SOURCE, DECODER_INPUT).dtype == jnp.bfloat16
    np.testing.assert_allclose(low_loss, loss, rtol=0.01)
    assert low_loss != loss
    assert {leaf.dtype for leaf in jax.tree.leaves(low_gradients)} == {jnp.dtype("float32")}
    vector, low_vector = (np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (gradients, low_gradients))
    assert np.linalg.norm(low_vector - vector) < 0.05 * np.linalg.norm(vector)

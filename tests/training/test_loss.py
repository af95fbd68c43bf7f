"""The blocked vocabulary loss against the plain one, in value and gradient, whatever the block."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.model.deltalm import hidden_states
from deltalm_jax.training.loss import LossConfig, token_nll, vocabulary_loss_and_gradients
from tests.model.conftest import GOLDEN_NAMES, load_golden

B, T, D, V = 3, 11, 8, 40
SMOOTHED = LossConfig(label_smoothing=0.1, z_loss=0.01)


def blocks_of(tokens: int, config: LossConfig = SMOOTHED, vocab_size: int = V) -> LossConfig:
    """The configuration with room for so many tokens' logits."""
    return dataclasses.replace(config, block_megabytes=tokens * vocab_size * 4 / 1e6 + 1e-9)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) > 0.3), jnp.float32)
    return hidden, table, targets, weights


def plain(config, hidden, table, targets, weights):
    """The loss as its definition: a cross-entropy with the smoothed distribution, and a penalty on log Z."""
    logits = hidden @ table.T
    rest = config.label_smoothing / (table.shape[0] - 1)
    wanted = jnp.where(jax.nn.one_hot(targets, table.shape[0]) > 0, 1 - config.label_smoothing, rest)
    losses = optax.safe_softmax_cross_entropy(logits, wanted)
    return ((losses + config.z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2) * weights).sum()


def blocked(config, hidden, table, targets, weights, scale=1.0, d_table=None, vocab_size=V):
    d_table = jnp.zeros(table.shape, jnp.float32) if d_table is None else d_table
    return vocabulary_loss_and_gradients(hidden, table, targets, weights, scale, d_table, config, vocab_size)


@pytest.mark.parametrize("block", [1, 4, 7, 12, 1000])
@pytest.mark.parametrize(
    "config", [LossConfig(), SMOOTHED, LossConfig(label_smoothing=0.1), LossConfig(z_loss=0.01)], ids=str
)
def test_equals_the_plain_loss_and_its_gradients(arrays, config, block):
    """The value is not scaled, the gradients are; the table's is added to what was there."""
    hidden, table, targets, weights = arrays
    before = jax.random.normal(jax.random.key(0), table.shape)
    (value, _), d_hidden, d_table, _ = blocked(blocks_of(block, config), *arrays, scale=0.37, d_table=before)
    wanted, (wanted_hidden, wanted_table) = jax.value_and_grad(
        lambda h, t: plain(config, h, t, targets, weights), argnums=(0, 1)
    )(hidden, table)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(d_hidden, 0.37 * wanted_hidden, atol=3e-6)
    np.testing.assert_allclose(d_table, before + 0.37 * wanted_table, atol=3e-6)


@pytest.mark.parametrize("config", [LossConfig(), SMOOTHED], ids=str)
def test_a_bias_of_the_output_layer(arrays, config):
    hidden, table, targets, weights = arrays
    bias = jax.random.normal(jax.random.key(1), (V,))

    def with_bias(bias):
        """A bias is the weight of an input that is always 1."""
        wider = jnp.concatenate([hidden, jnp.ones((*hidden.shape[:2], 1))], axis=-1)
        return plain(config, wider, jnp.concatenate([table, bias[:, None]], axis=1), targets, weights)

    wanted, wanted_bias = jax.value_and_grad(with_bias)(bias)
    (value, _), _, _, d_bias = vocabulary_loss_and_gradients(
        hidden, table, targets, weights, 0.37, jnp.zeros((V, D)), blocks_of(5, config), V, bias
    )
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(d_bias, 0.37 * wanted_bias, atol=3e-6)
    logits = jnp.einsum("BTD,VD->BTV", hidden, table) + bias
    likelihood = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(token_nll(hidden, table, targets, blocks_of(5), V, bias), likelihood, atol=3e-6)


def test_the_reported_likelihood_is_not_smoothed(arrays):
    (_, nll), *_ = blocked(SMOOTHED, *arrays)
    np.testing.assert_allclose(nll, plain(LossConfig(), *arrays), rtol=2e-6)


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_token_nll(arrays, block):
    hidden, table, targets, _ = arrays
    wanted = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets)
    np.testing.assert_allclose(token_nll(hidden, table, targets, blocks_of(block), V), wanted, atol=3e-6)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@pytest.mark.parametrize("case", ["pad", "nopad"])
def test_smoothing_is_that_of_the_official_code(name, case):
    """fairseq's own sum over the official model's outputs."""
    golden = load_golden(name)
    encoder, decoder, targets = golden.tokens(case)
    hidden = hidden_states(golden.config, golden.params, encoder, decoder)
    weights = jnp.asarray(targets != 0, jnp.float32)
    config = LossConfig(label_smoothing=0.1)
    table = golden.params["token_embedding"]
    (loss, nll), *_ = blocked(config, hidden, table, targets, weights, vocab_size=golden.config.vocab_size)
    np.testing.assert_allclose(loss, golden.arrays[f"{case}/sum_label_smoothed_loss_eps0.1"], rtol=1e-6)
    np.testing.assert_allclose(nll, golden.arrays[f"{case}/sum_nll"], rtol=1e-6)


def test_rows_added_for_sharding_are_not_scored(arrays):
    hidden, table, targets, weights = arrays
    larger = jnp.concatenate([table, 100 * jnp.ones((8, D))])

    (value, _), d_hidden, d_table, _ = blocked(blocks_of(6), hidden, larger, targets, weights)
    wanted, (wanted_hidden, wanted_table) = jax.value_and_grad(
        lambda h, t: plain(SMOOTHED, h, t, targets, weights), argnums=(0, 1)
    )(hidden, table)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(d_hidden, wanted_hidden, atol=3e-6)
    np.testing.assert_allclose(d_table[:V], wanted_table, atol=3e-6)
    assert not d_table[V:].any()


def test_memory_does_not_grow_with_targets_and_vocabulary():
    """Four sizes of V × T, each four times the last: the compiled gradient's temporary memory beyond the table's own
    gradient stays within a block's, where the plain loss's grows with every logit."""

    def temporary_bytes(function, vocab_size, length):
        shapes = [(2, length, D), (vocab_size, D), (2, length), (2, length)]
        dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
        arguments = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    megabyte = LossConfig(label_smoothing=0.1, z_loss=0.01, block_megabytes=1.0)
    bytes_of_ours, whole = [], []
    for vocab_size, length in ((2_000, 128), (4_000, 256), (8_000, 512), (16_000, 1024)):
        table_bytes = 4 * vocab_size * D

        def ours(h, t, targets, weights, vocab_size=vocab_size):
            return blocked(megabyte, h, t, targets, weights, vocab_size=vocab_size)

        def theirs(h, t, targets, weights):
            return jax.grad(lambda h, t: plain(megabyte, h, t, targets, weights), argnums=(0, 1))(h, t)

        bytes_of_ours.append(temporary_bytes(ours, vocab_size, length) - 2 * table_bytes)
        whole.append(temporary_bytes(theirs, vocab_size, length))
    assert max(bytes_of_ours) < 8e6, bytes_of_ours
    assert max(bytes_of_ours) < 2 * min(bytes_of_ours), bytes_of_ours
    assert whole[3] > 40 * whole[0], "the bound above must be able to fail"


def test_zero_weights_give_zero_and_finite_gradients(arrays):
    hidden, table, targets, _ = arrays
    (value, _), *gradients, _ = blocked(blocks_of(6), hidden, table, targets, jnp.zeros((B, T)))
    assert value == 0
    assert all(not g.any() for g in gradients)


def test_bfloat16_stays_near_float32(arrays):
    hidden, table, targets, weights = arrays
    low, high = hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16)
    (value, _), d_hidden, d_table, _ = blocked(blocks_of(6), low, high, targets, weights)
    assert (value.dtype, d_hidden.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, plain(SMOOTHED, hidden, table, targets, weights), rtol=0.02)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e15])
def test_logits_far_beyond_what_exp_can_bear_give_finite_numbers(arrays, scale):
    """Logits are float32 and their largest is subtracted first, so `exp` never overflows, in bfloat16 runs too."""
    hidden, table, targets, weights = arrays
    low, high = (scale * hidden).astype(jnp.bfloat16), (scale * table).astype(jnp.bfloat16)
    (value, _), *gradients, _ = blocked(blocks_of(6, LossConfig()), low, high, targets, weights)
    assert value > scale
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1.0}, r"LossConfig.label_smoothing must lie in \[0, 1\), found 1.0"),
        ({"z_loss": -1e-4}, "LossConfig.z_loss must not be negative"),
        ({"block_megabytes": 0.0}, "LossConfig.block_megabytes must be positive"),
        ({"objective_weights": {"a": -1.0}}, r"objective_weights\['a'\] must not be negative"),
    ],
)
def test_senseless_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**arguments)

"""ModelConfig: presets, sizes by arithmetic, and one clear error for each mistake."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from deltalm_jax.fields import is_operational
from deltalm_jax.model.config import (
    ATTENTIONS,
    DECODERS,
    EOS_ID,
    PAD_ID,
    PRESETS,
    REMAT_POLICIES,
    ModelConfig,
    decoder_layer_parameter_count,
    encoder_layer_parameter_count,
    parameter_count,
    resolve_compute_dtype,
)
from deltalm_jax.model.deltalm import init_params


def shapes_of(config: ModelConfig):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def test_the_defaults_are_base():
    assert ModelConfig() == PRESETS["base"]


@pytest.mark.parametrize(
    ("name", "total", "layer"),
    [
        ("base", 362_981_376, 7_087_872),
        ("large", 861_777_920, 12_596_224),
        ("large_from_xlmr", 861_777_920 + 2 * 2 * 1024, 12_596_224),
    ],
)
def test_released_sizes(name: str, total: int, layer: int):
    """Figures worked out from the official model code, and a LayerNorm more on each side for a start from XLM-R."""
    config = PRESETS[name]
    assert parameter_count(config) == total
    assert encoder_layer_parameter_count(config) == layer


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        dataclasses.replace(PRESETS["tiny"], decoder="vanilla"),
        dataclasses.replace(PRESETS["base"], decoder="vanilla", norm_placement="pre"),
        dataclasses.replace(PRESETS["tiny"], norm_placement="pre"),
        dataclasses.replace(PRESETS["tiny"], norm_placement="pre", embedding_layer_norm=False, max_length=99),
    ],
    ids=lambda config: f"{config.hidden_size}-{config.decoder}-{config.norm_placement}",
)
def test_arithmetic_agrees_with_the_parameters_made(config: ModelConfig):
    params = shapes_of(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == parameter_count(config)

    def layer_size(side: str) -> int:
        return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params[side]["layers"]))

    assert layer_size("encoder") == encoder_layer_parameter_count(config)
    assert layer_size("decoder") == decoder_layer_parameter_count(config)
    if config.decoder == "interleaved":
        assert layer_size("decoder") == 2 * layer_size("encoder"), "an interleaved layer is two encoder layers"


@pytest.mark.parametrize(("name", "tensors"), [("base", 392), ("large", 772)])
def test_as_many_tensors_as_the_official_checkpoint(name: str, tensors: int):
    """It stores each layer's tensors singly, and the shared token table twice."""
    params = shapes_of(PRESETS[name])
    stacked = jax.tree.leaves([params["encoder"].pop("layers"), params["decoder"].pop("layers")])
    assert sum(leaf.shape[0] for leaf in stacked) + len(jax.tree.leaves(params)) == tensors - 1


def test_large_has_no_embedding_layer_norm_and_post_norm_no_final_one():
    assert "embedding_layer_norm" in shapes_of(PRESETS["base"])["encoder"]
    for side in ("encoder", "decoder"):
        assert set(shapes_of(PRESETS["large"])[side]) == {"position_embedding", "layers"}
        pre = shapes_of(dataclasses.replace(PRESETS["large"], norm_placement="pre"))[side]
        assert set(pre) == {"position_embedding", "layers", "final_layer_norm"}


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("hidden_size", "768", TypeError),
        ("hidden_size", 768.0, TypeError),
        ("num_heads", True, TypeError),
        ("dropout_rate", "0.1", TypeError),
        ("dropout_rate", False, TypeError),
        ("embedding_layer_norm", 1, TypeError),
        ("norm_placement", None, TypeError),
        ("num_encoder_layers", 0, ValueError),
        ("max_length", -1, ValueError),
        ("scan_layers", 1, TypeError),
        ("remat", True, TypeError),
        ("remat", "everything", ValueError),
        ("decoder", "Vanilla", ValueError),
        ("num_heads", 7, ValueError),
        ("vocab_size", 3, ValueError),
        ("dropout_rate", 1.0, ValueError),
        ("attention_dropout_rate", -0.1, ValueError),
        ("activation_dropout_rate", float("nan"), ValueError),
        ("norm_placement", "sandwich", ValueError),
        ("compute_dtype", "float16", ValueError),
        ("attention", "flash", ValueError),
    ],
)
def test_a_mistake_is_named(field: str, value: object, error: type[Exception]):
    with pytest.raises(error, match=f"ModelConfig.{field} .*{value!r}|ModelConfig.{field} .*{value}"):
        dataclasses.replace(PRESETS["base"], **{field: value})


@pytest.mark.parametrize(
    ("field", "choices"), [("remat", REMAT_POLICIES), ("decoder", DECODERS), ("attention", ATTENTIONS)]
)
def test_an_unknown_name_lists_the_known_ones(field: str, choices: tuple[str, ...]):
    with pytest.raises(ValueError, match=", ".join(f"'{choice}'" for choice in choices)):
        ModelConfig(**{field: "nothing"})
    for choice in choices:
        ModelConfig(**{field: choice})


def test_a_vanilla_layer_of_base_by_hand():
    """Two attentions of 4 · (768² + 768), one network of 2 · 768 · 3072 + 3072 + 768, three LayerNorms of 2 · 768."""
    config = dataclasses.replace(PRESETS["base"], decoder="vanilla")
    assert decoder_layer_parameter_count(config) == 4_724_736 + 4_722_432 + 4_608
    assert parameter_count(PRESETS["base"]) - parameter_count(config) == 6 * (4_722_432 + 1_536)


def test_an_int_is_a_float():
    assert ModelConfig(dropout_rate=0).dropout_rate == 0


def test_a_config_can_key_a_compilation_cache():
    assert hash(ModelConfig()) == hash(dataclasses.replace(PRESETS["large"], **dataclasses.asdict(PRESETS["base"])))


@pytest.mark.parametrize(
    ("chosen", "platform", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("auto", "tpu", "bfloat16"),
        ("float32", "tpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_compute_dtype(chosen: str, platform: str, expected: str):
    assert resolve_compute_dtype(ModelConfig(compute_dtype=chosen), platform) == expected


def test_only_how_it_is_computed_may_change_on_resume():
    operational = {field.name for field in dataclasses.fields(ModelConfig) if is_operational(field)}
    assert operational == {"remat", "scan_layers", "attention"}


def test_ids_are_the_vocabularys():
    vocabulary = pytest.importorskip("deltalm_jax.data.vocabulary")
    assert (PAD_ID, EOS_ID) == (vocabulary.PAD_ID, vocabulary.EOS_ID)

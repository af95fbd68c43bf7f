"""What the data's fields come to: lengths, shapes, the command that prepares the data, and what prepared data must fit."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

import numpy as np
import pytest

from deltalm_jax import prepare
from deltalm_jax.data.chunks import PreparedDataError
from deltalm_jax.data.filtering import describe
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.flags import parse_filters
from deltalm_jax.data.stream import Stream
from deltalm_jax.objectives import SpanCorruption, TranslationSpanCorruption, length_settings
from deltalm_jax.training.data_config import DataConfig
from deltalm_jax.training.gin_files import ConfigError, load
from deltalm_jax.training.prepared import check, prepare_command
from tests.support import runs
from tests.support.toy_data import SAMPLE_VOCABULARY, write_toy_data

SC, TSC = "span_corruption", "translation_span_corruption"


def lengths(**fields: Any) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    data = DataConfig(**fields)
    return data.raw_lengths(), data.shapes()


def test_sizing_decides_what_512_tokens_are():
    assert lengths() == ({SC: 512, TSC: 512}, {SC: (461, 101), TSC: (341, 341)})
    sized = {SC: 568, TSC: 766}, {SC: (512, 114), TSC: (512, 512)}
    assert lengths(sizing="t5", num_sentinels=128) == sized
    alone = {"objective_batch_sizes": {SC: 2048}, "noise_densities": {SC: 0.25}}
    assert lengths(sizing="t5", **alone) == ({SC: 614}, {SC: (512, 206)})
    assert lengths(mask_sides="one", num_sentinels=127)[1] == {SC: (461, 101), TSC: (512, 337)}


def test_every_field_reaches_its_objective():
    data = DataConfig(
        sizing="t5",
        mask_sides="one",
        num_sentinels=400,
        noise_densities={SC: 0.1, TSC: 0.4},
        mean_span_lengths={SC: 2.0, TSC: 5.0},
    )
    found = {name: objective.corruption for name, objective in data.objectives().items()}
    assert found == {SC: SpanCorruption(0.1, 2.0, "t5"), TSC: TranslationSpanCorruption(0.4, 5.0, "t5", "one")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizing": "t5"}, f"{TSC} of up to 766 tokens needs 128 sentinels, but DataConfig.num_sentinels is 100"),
        ({"mask_sides": "one"}, f"{TSC} of up to 512 tokens needs 127 sentinels, but DataConfig.num_sentinels is 100"),
        ({"num_sentinels": 84}, "needs 85 sentinels, but DataConfig.num_sentinels is 84"),
        ({"sizing": "T5"}, "DataConfig: sizing must be one of raw, t5, found 'T5'"),
        ({"mask_sides": "two"}, "DataConfig: mask_sides must be one of both, one, found 'two'"),
        (
            {"mask_sides": "one", "objective_batch_sizes": {SC: 8}},
            "DataConfig.mask_sides is 'one', but translation_span_corruption",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_positions_must_cover_inputs_and_targets_not_the_raw_text():
    t5 = ["DataConfig.sizing='t5'", "DataConfig.num_sentinels=128"]
    assert load(["pretrain_base.gin"], t5).data.raw_lengths() == {SC: 568, TSC: 766}
    load(["pretrain_base.gin"], ["ModelConfig.max_length=461"])
    with pytest.raises(ConfigError, match="inputs of up to 461 and targets of up to 101 .* positions for 460 tokens"):
        load(["pretrain_base.gin"], ["ModelConfig.max_length=460"])
    # At 80 %, it is the targets that are too long.
    dense = [*t5, "DataConfig.noise_densities={'span_corruption': 0.8, 'translation_span_corruption': 0.5}"]
    with pytest.raises(ConfigError, match="span_corruption inputs of up to 511 and targets of up to 1278"):
        load(["pretrain_base.gin"], [*dense, "DataConfig.num_sentinels=1000"])


@pytest.mark.parametrize(
    ("fields", "flags", "value"),
    [
        ([], {"--chunk_length=32"}, 32),
        (
            ["DataConfig.sizing='t5'", "DataConfig.num_sentinels=40"],
            {"--chunk_length=span_corruption=34,translation_span_corruption=46", "--num_sentinels=40"},
            {SC: 34, TSC: 46},
        ),
    ],
)
def test_the_command_prepares_what_training_asks_for(fields, flags, value, tmp_path):
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, *fields])
    command = prepare_command(config, tmp_path)
    assert flags <= set(command)
    parsed = prepare.parse_arguments(command[3:])
    assert parsed.chunk_length == value
    assert parsed.num_sentinels == config.data.num_sentinels


def test_the_command_prepares_examples_as_training_asks_for(tmp_path):
    fields = ["source_length=40", "target_length=24", "packing=False", "source_prefix='__{target}__ '"]
    config = load(["finetune_examples.gin"], [f"DataConfig.{field}" for field in fields])
    command = prepare_command(config, tmp_path)
    parsed = prepare.parse_arguments([*command[3:], "--vocabulary=sample"])
    assert (parsed.source_length, parsed.target_length, parsed.packing) == (40, 24, False)
    assert parsed.source_prefix == "__{target}__ "
    assert not [flag for flag in command if flag.startswith("--chunk_length")]
    assert config.data.shapes() == {"sequence_to_sequence": (40, 24)}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "DataConfig.source_length=600",
            "source_length and target_length give sequence_to_sequence inputs of up to 600",
        ),
        ("DataConfig.target_length=1", "target_length must be at least 2"),
        ("DataConfig.decoder_start='first_target'", 'decoder_start must be "eos" for sequence_to_sequence'),
        ("DataConfig.warm_epochs={'span_corruption': -1.0}", "warm_epochs['span_corruption'] must lie in [0, 1000)"),
        (
            "DataConfig.sampling_exponents={'sequence_to_sequence': 0.0}, "
            "DataConfig.warm_epochs={'sequence_to_sequence': 5.0}",
            "the temperature rises to 1 / sampling_exponents['sequence_to_sequence'], which must be above 0",
        ),
        ("OptimizerConfig.schedule='cosine'", "schedule must be one of linear, inverse_sqrt, found 'cosine'"),
    ],
)
def test_what_examples_cannot_have_is_refused(field, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(["finetune_examples.gin"], re.split(r", (?=DataConfig)", field))


def test_data_of_other_lengths_is_refused(tmp_path):
    """T5's sizing of 32 tokens wants chunks of 34 and 46; the toy data has 32 and 32."""
    plain = load(["pretrain_tiny.gin"], [*runs.SMALL])
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    check(plain, prepared)
    t5 = dataclasses.replace(plain, data=dataclasses.replace(plain.data, sizing="t5"))
    with pytest.raises(PreparedDataError, match=r"raw length of span_corruption \(of .*chunk_length 32 .*'t5'\) is 34"):
        check(t5, prepared)
    more = dataclasses.replace(plain, data=dataclasses.replace(plain.data, num_sentinels=101))
    with pytest.raises(PreparedDataError, match=r"DataConfig.num_sentinels is 101, but .* was prepared with 100"):
        check(more, prepared)


def test_data_of_another_vocabulary_of_the_same_size_is_refused(tmp_path):
    """Ids that mean other pieces would look like a model that learns badly."""
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    same = tmp_path / "renamed.model"
    same.write_bytes(SAMPLE_VOCABULARY.read_bytes())
    check(load(["pretrain_tiny.gin"], [*runs.SMALL, f"DataConfig.vocabulary={same}"]), prepared)
    other = tmp_path / "other.model"
    other.write_bytes(SAMPLE_VOCABULARY.read_bytes()[:-1] + b"x")
    with pytest.raises(PreparedDataError, match=r"DataConfig.vocabulary is .*other.model, but .* with another model"):
        check(load(["pretrain_tiny.gin"], [*runs.SMALL, f"DataConfig.vocabulary={other}"]), prepared)


def test_filters_go_to_the_preparation_and_are_compared_with_its(tmp_path):
    test_set = tmp_path / "flores.txt"
    test_set.write_text("a sentence\n")
    bindings = ["FilterConfig.pair_max_overlap=0.8", f"FilterConfig.test_sets=['{test_set}']"]
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, *bindings])
    parsed = prepare.parse_arguments(prepare_command(config, tmp_path)[3:])
    assert parse_filters(parsed.filters) == config.filters

    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    settings = prepared.manifest.setdefault("settings", {})
    plain = load(["pretrain_tiny.gin"], [*runs.SMALL])
    with pytest.raises(PreparedDataError, match=r"pair_max_overlap is 0.8, but .* was prepared with .*default"):
        check(config, prepared)
    settings["filters"] = describe(config.filters)
    check(config, prepared)
    check(plain, prepared)  # says nothing of filters, and takes what there is
    other = dataclasses.replace(config, filters=dataclasses.replace(config.filters, pair_max_overlap=0.9))
    with pytest.raises(PreparedDataError, match=r"pair_max_overlap is 0.9, but .* was prepared with 0.8"):
        check(other, prepared)
    less = dataclasses.replace(config, filters=FilterConfig(pair_max_overlap=0.8))
    with pytest.raises(PreparedDataError, match="FilterConfig.test_sets is at its default"):
        check(less, prepared)
    test_set.write_text("another sentence\n")
    with pytest.raises(PreparedDataError, match="FilterConfig.test_sets"):
        check(config, prepared)
    test_set.unlink()  # known by its name then
    check(config, prepared)


def test_a_run_with_t5_sizing_reads_chunks_of_two_lengths(tmp_path):
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, "DataConfig.sizing='t5'"])
    raw = config.data.raw_lengths()
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS, chunk_length=raw)
    check(config, prepared)
    stream = Stream(prepared, config.objectives(), seed=0)
    assert config.data.shapes() == {SC: (32, 8), TSC: (32, 32)}
    for name, arrays in stream.batch(0).items():
        assert arrays["inputs"].shape[1:] + arrays["targets"].shape[1:] == config.data.shapes()[name]
        assert np.count_nonzero(arrays["inputs"], axis=1).max() == 32, "full"


def test_prepare_names_the_settings_that_fit_its_lengths(tmp_path):
    """The next command that `prepare` prints, taken at its word, accepts the data."""
    for lengths, wanted in (
        ({SC: 568, TSC: 766}, (512, "t5")),
        ({SC: 512, TSC: 512}, (512, "raw")),
        ({SC: 9, TSC: 7}, None),
    ):
        found = length_settings(lengths)
        assert found == (wanted or (None, "t5"))
    data = write_toy_data(tmp_path / "data", runs.TOY_TASKS, chunk_length={SC: 141, TSC: 190})
    words = shlex.split(prepare._next_command(data))
    assert words[:5] == ["python", "-m", "deltalm_jax.train", "--gin_file=pretrain_tiny.gin", words[4]]
    assert words[4] == f"--gin.DataConfig.prepared_dir={data.folder}"
    check(load(["pretrain_tiny.gin"], [word.removeprefix("--gin.") for word in words[5:]]), data)


def test_a_limit_of_epochs_is_for_the_planned_steps(tmp_path):
    limited = [*runs.SMALL, "DataConfig.max_epochs={'span_corruption': 8000.0}", "OptimizerConfig.decay_steps=40000"]
    config = load(["pretrain_tiny.gin"], limited)
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    names = [name for name, (objective, _, _) in runs.TOY_TASKS.items() if objective == SC]
    epochs = Stream(prepared, config.objectives(), seed=0).epochs(40_000)
    free = Stream(prepared, load(["pretrain_tiny.gin"], limited[:-2] + limited[-1:]).objectives(), seed=0).epochs(
        40_000
    )
    assert max(free[name] for name in names) > 11_000 > 8000 * 1.02 > max(epochs[name] for name in names) > 7900
    assert {name: n for name, n in epochs.items() if name not in names} == {
        name: n for name, n in free.items() if name not in names
    }
    with pytest.raises(ValueError, match=r"DataConfig.max_epochs\['span_corruption'\] must be above 0, found 0"):
        DataConfig(max_epochs={SC: 0.0})
    with pytest.raises(ValueError, match="DataConfig.max_epochs: unknown objective 'spam'"):
        DataConfig(max_epochs={"spam": 1.0})


def test_languages_asked_for_are_compared_as_asked(tmp_path):
    """The paper's languages are many, and a task of one's own may be in yet another."""
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, "DataConfig.languages=['paper']"])
    with pytest.raises(PreparedDataError, match=r"DataConfig.languages and the languages of .* differ by .*paper"):
        check(config, prepared)
    prepared.manifest["languages"] = ["paper"]
    check(config, prepared)

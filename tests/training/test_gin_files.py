"""Configuration files: every shipped one loads, each value knows its origin, and each mistake gets one clear error."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

import configs
from deltalm_jax.model.config import PRESETS, ModelConfig, parameter_count
from deltalm_jax.training.gin_files import ConfigError, load

SHIPPED = sorted(p.name for p in pathlib.Path(configs.__path__[0]).glob("*.gin"))
MINIMAL = 'TrainConfig.init_from = "random"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.gin") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load([name])
    assert config.name == name.removesuffix(".gin")
    assert pathlib.Path(configs.__path__[0], name).read_text().startswith("#"), "opens with what it is"


def test_the_base_config_is_the_papers():
    config = load(["pretrain_base.gin"])
    assert parameter_count(config.model) == 362_981_376
    assert (config.train.steps, sum(config.data.objective_batch_sizes.values())) == (600_000, 2048)
    assert (config.optimizer.beta1, config.optimizer.beta2, config.optimizer.warmup_steps) == (0.9, 0.999, 10_000)
    assert config.data.shapes() == {"span_corruption": (461, 101), "translation_span_corruption": (341, 341)}


@pytest.mark.parametrize(
    ("file", "preset", "overrides"),
    [
        ("pretrain_tiny.gin", "tiny", ["ModelConfig.max_length=512"]),
        ("pretrain_small.gin", "small", []),
        ("pretrain_base.gin", "base", []),
        ("pretrain_large.gin", "large_from_xlmr", []),
        ("pretrain_large.gin", "large", ["ModelConfig.embedding_layer_norm=False"]),
    ],
)
def test_files_and_presets_agree(file: str, preset: str, overrides: list[str]):
    assert load([file], overrides).model == PRESETS[preset]


def test_large_is_base_but_for_its_size_and_half_the_learning_rate():
    base, large = load(["pretrain_base.gin"]), load(["pretrain_large.gin"])
    assert large.data == base.data
    assert dataclasses.replace(large.optimizer, learning_rate=2e-4) == base.optimizer
    assert large.optimizer.learning_rate == 1e-4
    assert large.train == base.train


def test_later_layers_win_and_origins_are_kept(write):
    write("TrainConfig.steps = 10\nTrainConfig.seed = 1\nTrainConfig.log_every = 2\n" + MINIMAL, "base.gin")
    first = write('include "base.gin"\nTrainConfig.seed = 5\nTrainConfig.log_every = 3\n', "first.gin")
    second = write("TrainConfig.log_every = 4\n", "second.gin")
    config = load([first, second], ["TrainConfig.checkpoint_every=7"])
    train = config.train
    assert (train.steps, train.seed, train.log_every, train.checkpoint_every) == (10, 5, 4, 7)
    origin = config.origins
    assert origin["TrainConfig.steps"].endswith("base.gin:1")
    assert origin["TrainConfig.seed"].endswith("first.gin:2")
    assert origin["TrainConfig.log_every"].endswith("second.gin:1")
    assert origin["TrainConfig.checkpoint_every"] == "command line"
    assert origin["TrainConfig.eval_every"] == "default"


def test_macros(write):
    config = load([write("length = 40\nTrainConfig.steps = %length\nOptimizerConfig.decay_steps = %length\n"
                         "OptimizerConfig.warmup_steps = 1\n" + MINIMAL)])  # fmt: skip
    assert (config.train.steps, config.optimizer.decay_steps) == (40, 40)


def test_overrides_take_bare_words_for_strings_only(write):
    path = write(MINIMAL)
    assert load([path], ["DataConfig.vocabulary=a/b.model"]).data.vocabulary == "a/b.model"
    assert load([path], ['DataConfig.languages=["de", "fr"]']).data.languages == ("de", "fr")
    with pytest.raises(ConfigError, match="'soon' is not a value of type int"):
        load([path], ["TrainConfig.steps=soon"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TrainConfig.stepz = 3", r"mine.gin:2: TrainConfig has no field 'stepz'; did you mean 'steps'"),
        ("TrianConfig.steps = 3", r"mine.gin:2: unknown name 'TrianConfig'; did you mean 'TrainConfig'"),
        ("TrainConfig.steps = 3\nTrainConfig.steps = 4", r"mine.gin:3: TrainConfig.steps is bound twice .* line 2"),
        ("TrainConfig.steps = 'a'", r"mine.gin:2: TrainConfig.steps must be int, found 'a'"),
        ("TrainConfig.steps = True", r"mine.gin:2: TrainConfig.steps must be int, found True"),
        ("TrainConfig.steps = 0", r"mine.gin:2: TrainConfig.steps must be at least 1"),
        ("eval/TrainConfig.steps = 3", r"mine.gin:2: scopes"),
        ("TrainConfig.steps = @forever()", r"mine.gin.*references such as @forever"),
        ("TrainConfig.steps = %nothing", r"mine.gin:2: unknown macro %nothing"),
        ("import os", r"mine.gin:2: a configuration may import only deltalm_jax, tasks.*--allow_import=os"),
        ("DataConfig.task_module = 'my_tasks'", r"mine.gin:2: DataConfig.task_module: .*--allow_import=my_tasks"),
        ("DataConfig.task_module = 'tasksy.mine'", r"mine.gin:2: DataConfig.task_module: .*--allow_import=tasksy"),
        ("DataConfig.task_module = 'my_tasks.py'", r"mine.gin:2: DataConfig.task_module must be the name of a module"),
        ("DataConfig.task_module = 'my/tasks'", r"mine.gin:2: DataConfig.task_module must be the name of a module"),
        ("import tasks.nothing", r"mine.gin:2: cannot import 'tasks.nothing'"),
        ("include 'pretrain_tiny.gin'", r"mine.gin:2: one include at most, as the file's first statement"),
        ("TrainConfig.steps = ", r"mine.gin:\d: a value is missing, or none that can be read: 'TrainConfig.steps ='"),
        (
            "DataConfig.vocabulary = models/x",
            r"mine.gin:2: models is no value \(a text needs quotes\): 'DataConfig.voc",
        ),
        ("DataConfig.languages = ['de',", r"mine.gin: a bracket or a text is opened and never closed"),
        ("ModelConfig.num_heads = 7", r"mine.gin:2: ModelConfig.num_heads"),
        (
            "DataConfig.chunk_length = 600",
            r"DataConfig.chunk_length is 600, .*span_corruption inputs of up to 540 and .*ModelConfig.max_length has .* 512 ",
        ),
        ("DataConfig.objective_batch_sizes = {'mlm': 3}", r"mine.gin:2: .*unknown objective 'mlm'"),
        ("DataConfig.noise_densities = {'span_corruption': 0.1}", "says nothing of translation_span_corruption"),
        ("MeshConfig.data = 0", r"mine.gin:2: MeshConfig.data must be a positive integer or -1"),
    ],
)
def test_mistakes_name_the_line_and_the_cure(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load([write(MINIMAL + text + "\n")])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="is a folder: name one of the files in it"):
        load([str(tmp_path)])


def test_an_import_can_be_allowed(write, tmp_path, monkeypatch):
    (tmp_path / "my_own_tasks.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write("import my_own_tasks\n" + MINIMAL)
    with pytest.raises(ConfigError, match="add --allow_import=my_own_tasks"):
        load([path])
    load([path], allow_imports=["my_own_tasks"])


def test_a_module_of_tasks_can_be_allowed_and_is_not_imported(write):
    path = write("DataConfig.task_module = 'no_such_package.tasks'\n" + MINIMAL)
    config = load([path], allow_imports=["no_such_package"])
    assert config.data.task_module == "no_such_package.tasks"
    assert "DataConfig.task_module" not in config.identity()
    with pytest.raises(ConfigError, match="add --allow_import=mine"):
        load([path], ["DataConfig.task_module=mine"])
    assert load([path], ["DataConfig.task_module=tasks.pretraining"]).data.task_module == "tasks.pretraining"


def test_init_from_must_be_said(write):
    with pytest.raises(ConfigError, match="TrainConfig.init_from is not set"):
        load([write("TrainConfig.steps = 3\n")])


def test_a_missing_file_is_named_with_the_nearest_shipped_one():
    with pytest.raises(ConfigError, match=r"'pretrain_tinny.gin' not found.*Did you mean pretrain_tiny.gin"):
        load(["pretrain_tinny.gin"])


def test_no_file_at_all():
    with pytest.raises(ConfigError, match="no configuration"):
        load([])


def test_identity_holds_what_a_resume_must_not_change():
    identity = load(["pretrain_tiny.gin"]).identity()
    assert {"TrainConfig.seed", "OptimizerConfig.learning_rate", "ModelConfig.hidden_size",
            "DataConfig.objective_batch_sizes", "OptimizerConfig.decay_steps"} <= identity.keys()  # fmt: skip
    for free in (
        "TrainConfig.checkpoint_every",
        "TrainConfig.stop_at_step",
        "TrainConfig.steps",
        "MeshConfig.data",
        "DataConfig.prepared_dir",
    ):
        assert free not in identity


def test_every_field_of_the_model_is_identity_but_how_it_is_computed():
    identity = load(["pretrain_tiny.gin"]).identity()
    free = {f"ModelConfig.{f.name}" for f in dataclasses.fields(ModelConfig)} - identity.keys()
    assert free == {"ModelConfig.remat", "ModelConfig.scan_layers", "ModelConfig.attention"}

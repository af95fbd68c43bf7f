"""What is written beside the weights of an exported model, read as JSON and as text. The tests that load it need torch."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.weights import hugging_face
from deltalm_jax.weights.hugging_face.export_files import MODEL_FILES, write_companions
from deltalm_jax.weights.hugging_face.tokenizer_files import tokenizer_json
from tasks.corpora import SAMPLE_DIR

PACKAGE = Path(hugging_face.__path__[0])
MODEL = SAMPLE_DIR / "vocabulary.model"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(MODEL)


def trained(tmp_path: Path, **options: Any) -> Vocabulary:
    model = io.BytesIO()
    sentences = ["the cat sat on the mat", "a dog ran to the cat", "one two three"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, **{"vocab_size": 20, **options}
    )
    (tmp_path / "trained.model").write_bytes(model.getvalue())
    return Vocabulary.load(tmp_path / "trained.model")


def written(folder: Path, config: ModelConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Every file there: parsed if it is JSON."""
    write_companions(folder, config, vocabulary)
    return {
        path.name: json.loads(path.read_text("utf-8")) if path.suffix == ".json" else path.read_bytes()
        for path in folder.iterdir()
    }


def test_which_files(tmp_path: Path, vocabulary: Vocabulary) -> None:
    without = {"config.json", "generation_config.json", "README.md", *MODEL_FILES}
    assert written(tmp_path, PRESETS["tiny"], None).keys() == without
    files = written(tmp_path, PRESETS["tiny"], vocabulary)
    assert files.keys() == without | {"tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"}
    assert files["sentencepiece.bpe.model"] == MODEL.read_bytes()
    for name in MODEL_FILES:
        assert files[name] == (PACKAGE / name).read_bytes()
    assert {path.name for path in PACKAGE.glob("*_deltalm.py")} == set(MODEL_FILES)


def test_configuration_of_base_and_large(tmp_path: Path) -> None:
    base = written(tmp_path, PRESETS["base"], None)["config.json"]
    assert base["model_type"] == "deltalm"
    # Shapes of the released models.
    shape = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    assert [base[name] for name in shape] == [250_104, 768, 12, 6, 12, 3072]
    assert (base["layernorm_embedding"], base["normalize_before"], base["interleaved_decoder"]) == (True, False, True)
    large = written(tmp_path, PRESETS["large"], None)["config.json"]
    assert [large[name] for name in shape] == [250_104, 1024, 24, 12, 16, 4096]
    assert (large["layernorm_embedding"], large["normalize_before"]) == (False, False)
    for found in (base, large):
        assert found["decoder_attention_heads"] == found["encoder_attention_heads"]
        assert found["decoder_ffn_dim"] == found["encoder_ffn_dim"]
        ids = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
        assert [found[name] for name in ids] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"max_length": 77}, "max_position_embeddings", 77),
        ({"norm_placement": "pre"}, "normalize_before", True),
        ({"decoder": "vanilla"}, "interleaved_decoder", False),
        ({"dropout_rate": 0.25}, "dropout", 0.25),
        ({"attention_dropout_rate": 0.25}, "attention_dropout", 0.25),
        ({"activation_dropout_rate": 0.25}, "activation_dropout", 0.25),
    ],
)
def test_one_field(tmp_path: Path, change: dict[str, Any], field: str, value: Any) -> None:
    tiny = PRESETS["tiny"]
    before = written(tmp_path, tiny, None)["config.json"]
    after = written(tmp_path, dataclasses.replace(tiny, **change), None)["config.json"]
    assert {name for name in after if after[name] != before[name]} == {field}
    assert after[field] == value


def test_generation(tmp_path: Path) -> None:
    found = written(tmp_path, dataclasses.replace(PRESETS["tiny"], max_length=77), None)["generation_config.json"]
    assert found["max_length"] == 77
    assert (found["decoder_start_token_id"], found["eos_token_id"], found["suppress_tokens"]) == (2, 2, [1])
    assert not {name for name in found if name.startswith("forced")}, "other ports force <s> in front"


def test_model_files_stand_alone() -> None:
    """They import torch, transformers and each other, and nothing here imports them."""
    defined: dict[str, set[str]] = {}
    for name in MODEL_FILES:
        tree = ast.parse((PACKAGE / name).read_text("utf-8"))
        defined[name] = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        modules = {
            ("." * node.level + (node.module or "")) if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        roots = {module if module.startswith(".") else module.partition(".")[0] for module in modules}
        own = {f".{Path(other).stem}" for other in MODEL_FILES}
        assert roots <= {"__future__", "dataclasses", "torch", "transformers"} | own
    command = (
        "import sys, deltalm_jax.weights.hugging_face.export_files; "
        "print([name for name in sys.modules if name.endswith('_deltalm') or name in ('torch', 'transformers')])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    assert "DeltaLMConfig" in defined["configuration_deltalm.py"]
    assert {"DeltaLMModel", "DeltaLMForConditionalGeneration"} <= defined["modeling_deltalm.py"]


def test_configuration_names_are_arguments_of_the_class(tmp_path: Path) -> None:
    tree = ast.parse((PACKAGE / "configuration_deltalm.py").read_text("utf-8"))
    (init,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = {argument.arg for argument in init.args.args} - {"self"}
    found = written(tmp_path, PRESETS["base"], None)["config.json"]
    assert found.keys() - arguments == {"model_type", "architectures", "auto_map", "transformers_version"}
    assert arguments <= found.keys()
    # The class's defaults are base.
    defaults = [ast.literal_eval(default) for default in init.args.defaults]
    assert dict(zip([argument.arg for argument in init.args.args[1:]], defaults, strict=True)) == {
        name: found[name] for name in arguments
    }
    for reference in found["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (PACKAGE / f"{module}.py").read_text("utf-8")


def test_every_id_of_the_tokenizer(vocabulary: Vocabulary) -> None:
    found = tokenizer_json(vocabulary, vocabulary.size)
    pieces = found["model"]["vocab"]
    assert [piece for piece, _ in pieces[:4]] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert found["model"]["unk_id"] == 3
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    assert len(pieces) == vocabulary.num_pieces + 1 == vocabulary.mask_id
    for index in range(4, len(pieces)):
        assert pieces[index] == (processor.id_to_piece(index - 1), processor.get_score(index - 1))
    added = {token["id"]: token for token in found["added_tokens"]}
    assert list(added) == [0, 1, 2, 3, *range(vocabulary.mask_id, vocabulary.size)]
    assert all(token["special"] for token in added.values())
    assert added[vocabulary.mask_id]["content"] == "<mask>"
    assert added[vocabulary.sentinel_start + 99]["content"] == "<mask_99>"
    assert added[vocabulary.size - 1]["content"] == f"<unused_{vocabulary.size - 1}>"


def test_other_layouts_and_tables(tmp_path: Path, vocabulary: Vocabulary) -> None:
    def names(vocabulary: Vocabulary, rows: int) -> list[str]:
        return [token["content"] for token in tokenizer_json(vocabulary, rows)["added_tokens"][4:]]

    later = Vocabulary.load(MODEL, sentinel_start=8004, num_sentinels=2)
    assert names(later, later.size) == [
        "<mask>", "<unused_8002>", "<unused_8003>", "<mask_0>", "<mask_1>", "<unused_8006>", "<unused_8007>",
    ]  # fmt: skip
    assert names(later, later.size + 1)[-1] == "<unused_8008>"
    # A table without the rows behind the pieces, such as fairseq's fine-tuned models have.
    cut = vocabulary.num_pieces + 1
    assert names(vocabulary, cut) == []
    files = written(tmp_path, dataclasses.replace(PRESETS["tiny"], vocab_size=cut), vocabulary)
    assert "mask_token" not in files["tokenizer_config.json"]
    with pytest.raises(ValueError, match=r"8,000 rows does not fit vocabulary\.model, .* ids up to 8,000"):
        tokenizer_json(vocabulary, cut - 1)


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({"model_type": "bpe"}, "a unigram model"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "no treat_whitespace_as_suffix"),
    ],
)
def test_models_that_have_no_tokenizer_json(tmp_path: Path, options: dict[str, Any], lacking: str) -> None:
    vocabulary = trained(tmp_path, **options)
    with pytest.raises(ValueError, match=rf"trained\.model cannot be written .* it lacks: {lacking}\."):
        tokenizer_json(vocabulary, vocabulary.size)


def test_users_own_symbols_are_tokens(tmp_path: Path) -> None:
    vocabulary = trained(tmp_path, user_defined_symbols=["<date>"], control_symbols=["<2en>"], vocab_size=24)
    added = {token["content"]: token for token in tokenizer_json(vocabulary, vocabulary.size)["added_tokens"]}
    assert (added["<date>"]["special"], added["<2en>"]["special"]) == (False, True)
    for name in ("<date>", "<2en>"):
        piece = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model).piece_to_id(name)
        assert added[name]["id"] == piece + 1


def test_model_card(tmp_path: Path, vocabulary: Vocabulary) -> None:
    card = written(tmp_path, PRESETS["base"], None)["README.md"].decode()
    assert "362,981,376 parameters" in card
    assert "AutoTokenizer.from_pretrained" not in card
    assert "AutoTokenizer.from_pretrained" in written(tmp_path, PRESETS["tiny"], vocabulary)["README.md"].decode()

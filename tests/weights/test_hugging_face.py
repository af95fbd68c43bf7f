"""An exported folder in Hugging Face transformers: numbers of the official code, of our JAX model, and of SentencePiece."""

from __future__ import annotations

import lzma
import os
import tempfile
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece

# Before transformers is imported: nothing is looked up on the network, and the model's code is copied to a folder of ours.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hugging_face_modules_")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary  # noqa: E402
from deltalm_jax.model.config import PRESETS, ModelConfig  # noqa: E402
from deltalm_jax.model.deltalm import hidden_states, logits  # noqa: E402
from deltalm_jax.weights.hugging_face.export_files import write_companions  # noqa: E402
from tests.model.conftest import (  # noqa: E402
    DECODER_LAYER,
    ENCODER_LAYER,
    GOLDEN_NAMES,
    TO_FAIRSEQ,
    VARIANTS,
    load_golden,
    our_ids,
)
from tests.support.small_models import random_params  # noqa: E402

pytestmark = pytest.mark.torch

SAMPLE = Path(__file__).parents[2] / "tasks" / "sample"
BOS, PAD, EOS, UNK = range(4)
TOLERANCE = 2e-5
VANILLA_LAYER = {name: theirs for name, theirs in DECODER_LAYER.items() if "feed_forward" not in name} | {
    "feed_forward": ("", {"input": "fc1", "output": "fc2"}),
    "feed_forward_layer_norm": "final_layer_norm",
}


def load(folder: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()


def write_golden(name: str, folder: Path) -> dict[str, np.ndarray]:
    """An exported folder with the weights of a golden file; returns the file's arrays."""
    golden = load_golden(name)
    write_companions(folder, golden.config, None)
    state = {
        "model." + key.removeprefix("sd/").replace("encoder.embed_tokens", "shared"): array
        for key, array in golden.arrays.items()
        if key.startswith("sd/")
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return golden.arrays


def from_params(params: dict[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters under the names of the exported model."""
    table = params["token_embedding"]
    state = {"model.shared.weight": np.concatenate([table[np.argsort(TO_FAIRSEQ)], table[4:]])}
    for side, names in (
        ("encoder", ENCODER_LAYER),
        ("decoder", DECODER_LAYER if config.decoder == "interleaved" else VANILLA_LAYER),
    ):
        state[f"model.{side}.embed_positions.weight"] = params[side]["position_embedding"]
        for ours, theirs in (("embedding_layer_norm", "layernorm_embedding"), ("final_layer_norm", "layer_norm")):
            if ours in params[side]:
                state[f"model.{side}.{theirs}.weight"] = params[side][ours]["scale"]
                state[f"model.{side}.{theirs}.bias"] = params[side][ours]["bias"]
        for ours, theirs in names.items():
            group, linears = (theirs, {None: None}) if isinstance(theirs, str) else theirs
            for inner, outer in linears.items():
                leaf = params[side]["layers"][ours] if inner is None else params[side]["layers"][ours][inner]
                for name, array in leaf.items():
                    for layer, weights in enumerate(array):
                        path = ".".join(filter(None, (f"model.{side}.layers.{layer}", group, outer)))
                        value = weights.T if name == "kernel" else weights
                        state[f"{path}.{'bias' if name == 'bias' else 'weight'}"] = np.ascontiguousarray(value)
    return state


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(model, arrays) of each golden file."""
    folder = tmp_path_factory.mktemp(request.param)
    arrays = write_golden(request.param, folder)
    return load(folder), arrays


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_golden("postnorm_lnemb", folder)
    return folder


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return load_golden("postnorm_lnemb").arrays


@pytest.fixture(scope="module")
def base_model(base_folder: Path) -> Any:
    return load(base_folder)


def tensors(arrays: dict[str, np.ndarray], case: str) -> tuple[Any, Any, Any]:
    """Source, decoder input and target ids of a golden file."""
    return tuple(torch.tensor(arrays[f"{case}/{name}"]) for name in ("src_tokens", "prev_output_tokens", "target"))


def assert_close_where(real: Any, ours: Any, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours[real].detach().numpy(), theirs[real.numpy()], rtol=0, atol=TOLERANCE)


# The model


@pytest.mark.parametrize("case", ["nopad", "pad"])
def test_every_state_of_the_official_code(golden_case: tuple[Any, Any], case: str) -> None:
    model, arrays = golden_case
    source, decoder_input, _ = tensors(arrays, case)
    with torch.no_grad():
        output = model(
            source, decoder_input_ids=decoder_input, output_hidden_states=True, output_attentions=True, use_cache=False
        )
        without_attentions = model(source, decoder_input_ids=decoder_input)
    real_source, real_target = source != PAD, decoder_input != PAD
    for index, state in enumerate(output.encoder_hidden_states[:-1]):
        assert_close_where(real_source, state, arrays[f"{case}/encoder_state_{index}"])
    assert not output.encoder_hidden_states[0][~real_source].any()
    assert_close_where(real_source, output.encoder_last_hidden_state, arrays[f"{case}/encoder_out"])
    for index, state in enumerate(output.decoder_hidden_states[:-1]):
        assert_close_where(real_target, state, arrays[f"{case}/decoder_state_{index}"])
    assert_close_where(real_target, output.decoder_hidden_states[-1], arrays[f"{case}/decoder_features"])
    assert_close_where(real_target, output.cross_attentions[-1].mean(1), arrays[f"{case}/cross_attn_mean_last"])
    for logits_BTV in (output.logits, without_attentions.logits):
        assert_close_where(real_target, logits_BTV, arrays[f"{case}/logits"])


@pytest.mark.parametrize("case", ["nopad", "pad"])
def test_the_official_loss(golden_case: tuple[Any, Any], case: str) -> None:
    model, arrays = golden_case
    source, decoder_input, target = tensors(arrays, case)
    count, expected = int(arrays[f"{case}/ntokens"]), float(arrays[f"{case}/sum_nll"])
    ignored = target.masked_fill(target == PAD, -100)
    with torch.no_grad():
        for labels in (target, ignored):
            np.testing.assert_allclose(model(source, labels=labels).loss.item() * count, expected, rtol=1e-6)
        given = model(source, decoder_input_ids=decoder_input, labels=ignored).loss
        np.testing.assert_allclose(given.item() * count, expected, rtol=1e-6)
        shared = model(source, labels=ignored, num_items_in_batch=7).loss
    np.testing.assert_allclose(shared.item() * 7, expected, rtol=1e-6)
    shifted = model.prepare_decoder_input_ids_from_labels(ignored)
    # fairseq turns the final </s> to the front instead: the inputs differ where the target is padding.
    assert torch.equal(shifted[target != PAD], decoder_input[target != PAD])


def test_official_gradients_with_and_without_checkpointing(base_folder: Path, arrays: dict[str, np.ndarray]) -> None:
    source, decoder_input, target = tensors(arrays, "pad")
    for checkpointing in (False, True):
        model = load(base_folder)
        model.config.dropout = 0.0
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        runs = []
        model.model.decoder.layers[1].fc4.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        # Without labels: the default is then to make a cache, which layers that run twice must not write to twice.
        logits_BTV = model(source, decoder_input_ids=decoder_input).logits
        torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), target.flatten().long(), ignore_index=PAD, reduction="sum"
        ).backward()
        assert len(runs) == (2 if checkpointing else 1)
        parameters = dict(model.named_parameters())
        for name, expected in arrays.items():
            if name.startswith("grad/"):
                ours = "model." + name.removeprefix("grad/").replace("encoder.embed_tokens", "shared")
                np.testing.assert_allclose(parameters[ours].grad.numpy(), expected, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("decoder", "placement"), VARIANTS)
@pytest.mark.parametrize("embedding_layer_norm", [True, False])
def test_our_jax_model(tmp_path: Path, decoder: str, placement: str, embedding_layer_norm: bool) -> None:
    config = ModelConfig(
        vocab_size=40,
        hidden_size=24,
        feed_forward_size=36,
        num_heads=3,
        num_encoder_layers=3,
        num_decoder_layers=2,
        max_length=20,
        decoder=decoder,
        norm_placement=placement,
        embedding_layer_norm=embedding_layer_norm,
    )
    params = random_params(config)
    write_companions(tmp_path, config, None)
    save_file(from_params(params, config), tmp_path / "model.safetensors", {"format": "pt"})
    random = np.random.default_rng(0)
    source, target = random.integers(4, 40, (3, 9)), random.integers(4, 40, (3, 7))
    source[0, :4], source[1, 6:], source[2, 3:5] = PAD, PAD, PAD  # Left, right and in the middle.
    target[0, :2], target[1, 5:] = PAD, PAD

    hidden = jax.jit(partial(hidden_states, config))(params, our_ids(source), our_ids(target))
    expected = np.asarray(logits(params, hidden))
    expected = np.concatenate([expected[..., np.argsort(TO_FAIRSEQ)], expected[..., 4:]], axis=-1)
    with torch.no_grad():
        ours = load(tmp_path)(torch.tensor(source), decoder_input_ids=torch.tensor(target)).logits
    real = torch.tensor(target != PAD)
    np.testing.assert_allclose(ours[real].numpy(), expected[real.numpy()], rtol=1e-4, atol=1e-4)


class EndAtLength(transformers.LogitsProcessor):
    """fairseq's rule for the longest hypotheses: only `</s>` may come, at the price that the model gives it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] < self.length:
            return scores
        only_eos = torch.full_like(scores, -float("inf"))
        only_eos[:, EOS] = scores[:, EOS]
        return only_eos


def test_greedy_search_as_in_fairseq(base_model: Any, arrays: dict[str, np.ndarray]) -> None:
    source = tensors(arrays, "pad")[0]
    found = base_model.generate(source, num_beams=1, max_length=14, logits_processor=[EndAtLength(13)])
    assert found[:, 1:].tolist() == [arrays[f"gen/beam1/{row}/0/tokens"].tolist() for row in range(3)]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beam_search_as_in_fairseq(base_model: Any, arrays: dict[str, np.ndarray], early_stopping: Any) -> None:
    """All four hypotheses and their scores. No hypothesis ends early in the golden file, so each rule of stopping fits."""
    found = base_model.generate(
        tensors(arrays, "pad")[0],
        num_beams=4,
        num_return_sequences=4,
        max_length=14,
        early_stopping=early_stopping,
        logits_processor=[EndAtLength(13)],
        output_scores=True,
        return_dict_in_generate=True,
    )
    places = [f"gen/beam4/{row}/{rank}" for row in range(3) for rank in range(4)]
    assert found.sequences[:, 1:].tolist() == [arrays[f"{place}/tokens"].tolist() for place in places]
    scores = np.array([arrays[f"{place}/score"] for place in places])
    np.testing.assert_allclose(found.sequences_scores.numpy(), scores, rtol=1e-5)


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 4}, {"do_sample": True, "num_beams": 1}])
def test_the_cache_changes_nothing(base_model: Any, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> None:
    source = tensors(arrays, "pad")[0]
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(base_model.generate(source, max_length=12, use_cache=use_cache, **options))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match=r"Only a cache that grows is supported|does not support .*static"):
        base_model.generate(source, max_length=12, cache_implementation="static", **options)


@pytest.mark.parametrize("masked", [True, False])
def test_logits_step_by_step(base_model: Any, arrays: dict[str, np.ndarray], masked: bool) -> None:
    """Tokens fed two at a time, padding in front, to the cache of the steps before."""
    source = tensors(arrays, "pad")[0]
    tokens = torch.tensor([[PAD, PAD, EOS, 40, 50, 60], [EOS, 41, 51, 61, 71, 81], [PAD, EOS, 42, 52, 62, 72]])
    tokens = tokens if masked else tokens[1:2].repeat(3, 1)
    real = tokens != PAD
    cache_name = "cache" if "cache" in transformers.modeling_outputs.Seq2SeqLMOutput.__dataclass_fields__ else None
    cache_name = cache_name or "past_key_values"
    with torch.no_grad():
        whole = base_model(source, decoder_input_ids=tokens).logits
        cache = None
        for end in (2, 4, 6):
            step = base_model(
                source,
                decoder_input_ids=tokens[:, end - 2 : end],
                decoder_attention_mask=real[:, :end] if masked else None,
                **{cache_name: cache},
            )
            cache = step[cache_name]
            part = real[:, end - 2 : end]
            assert_close_where(part, step.logits, whole[:, end - 2 : end].numpy())


def test_padding_may_stand_on_either_side(base_model: Any, arrays: dict[str, np.ndarray]) -> None:
    source, decoder_input, _ = tensors(arrays, "pad")
    left = torch.stack([torch.cat([row[row == PAD], row[row != PAD]]) for row in source])
    assert not torch.equal(source, left)
    for options in ({"num_beams": 1}, {"num_beams": 4}):
        expected = base_model.generate(source, max_length=12, **options)
        for ids, mask in ((left, None), (left, left != PAD), (source, (source != PAD).long())):
            assert torch.equal(base_model.generate(ids, attention_mask=mask, max_length=12, **options), expected)
    with torch.no_grad():
        right_logits = base_model(source, decoder_input_ids=decoder_input).logits
        left_logits = base_model(left, decoder_input_ids=decoder_input, attention_mask=left != PAD).logits
    assert_close_where(decoder_input != PAD, left_logits, right_logits.numpy())
    # A prompt for the decoder, padded in front.
    prompt = torch.tensor([[PAD, PAD, EOS], [EOS, 40, 41], [PAD, EOS, 50]])
    together = base_model.generate(source, decoder_input_ids=prompt, num_beams=1, max_length=10)
    for row in range(3):
        alone = prompt[row][prompt[row] != PAD][None]
        real = source[row][source[row] != PAD][None]
        found = base_model.generate(real, decoder_input_ids=alone, num_beams=1, max_length=10 - 3 + alone.shape[1])
        assert torch.equal(together[row, 3 - alone.shape[1] :], found[0])


def test_a_mask_hides_tokens(base_model: Any, arrays: dict[str, np.ndarray]) -> None:
    source, decoder_input, _ = tensors(arrays, "nopad")
    mask = torch.ones_like(source)
    mask[0, 2], mask[1, :3] = 0, 0
    with torch.no_grad():
        masked = base_model(source, attention_mask=mask, decoder_input_ids=decoder_input).logits
        absent = base_model(source.masked_fill(mask == 0, PAD), decoder_input_ids=decoder_input).logits
        plain = base_model(source, decoder_input_ids=decoder_input).logits
        embedded = base_model(
            inputs_embeds=base_model.get_input_embeddings()(source),
            attention_mask=mask,
            decoder_inputs_embeds=base_model.get_input_embeddings()(decoder_input),
            decoder_attention_mask=decoder_input != PAD,
        ).logits
    assert_close_where(decoder_input != PAD, masked, absent.numpy())
    assert_close_where(decoder_input != PAD, embedded, masked.numpy())
    assert (masked[:2] - plain[:2]).abs().max() > 1e-2


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout(base_folder: Path, arrays: dict[str, np.ndarray], field: str) -> None:
    source, decoder_input, _ = tensors(arrays, "nopad")
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}

    def in_training(**changed: float) -> Any:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            base_folder, trust_remote_code=True, **(rates | changed)
        ).train()
        torch.manual_seed(0)
        return model(source, decoder_input_ids=decoder_input).logits.detach()

    assert_close_where(decoder_input != PAD, in_training(), arrays["nopad/logits"])
    assert (in_training(**{field: 0.5}) - in_training()).abs().max() > 0.1


def test_saved_and_loaded_again(base_model: Any, base_folder: Path, tmp_path: Path) -> None:
    base_model.save_pretrained(tmp_path)
    assert {path.name for path in base_folder.iterdir()} - {"README.md"} <= {path.name for path in tmp_path.iterdir()}
    again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    before, after = (load_file(folder / "model.safetensors") for folder in (base_folder, tmp_path))
    assert before.keys() == after.keys(), "one copy of the token table"
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), array)
    table = again.model.shared.weight
    assert table is again.lm_head.weight is again.model.encoder.embed_tokens.weight
    assert table is again.model.decoder.embed_tokens.weight
    assert again.generation_config.num_beams == 5


def test_new_tokens_stay_tied(base_folder: Path, arrays: dict[str, np.ndarray]) -> None:
    model = load(base_folder)
    source, decoder_input, _ = tensors(arrays, "nopad")
    model.resize_token_embeddings(131, mean_resizing=False)
    assert model.config.vocab_size == 131
    with torch.no_grad():
        model.get_input_embeddings().weight[130] = torch.arange(32) / 10
        source[0, 3] = decoder_input[0, 2] = 130
        output = model(source, decoder_input_ids=decoder_input)
        hidden = model.model(source, decoder_input_ids=decoder_input).last_hidden_state
    np.testing.assert_allclose(output.logits[..., 130], hidden @ (torch.arange(32) / 10), atol=TOLERANCE)


def test_the_encoder_and_the_base_model_alone(base_folder: Path, arrays: dict[str, np.ndarray]) -> None:
    model = transformers.AutoModel.from_pretrained(base_folder, trust_remote_code=True).eval()
    source, decoder_input, _ = tensors(arrays, "pad")
    with torch.no_grad():
        encoded = model.get_encoder()(source)
        hidden = model(encoder_outputs=encoded, decoder_input_ids=decoder_input).last_hidden_state
        as_tuple = model(source, decoder_input_ids=decoder_input, return_dict=False)
    assert_close_where(source != PAD, encoded.last_hidden_state, arrays["pad/encoder_out"])
    assert_close_where(decoder_input != PAD, hidden, arrays["pad/decoder_features"])
    assert isinstance(as_tuple, tuple)
    assert_close_where(decoder_input != PAD, as_tuple[0], arrays["pad/decoder_features"])


@pytest.mark.parametrize(("preset", "count"), [("base", 362_981_376), ("large", 861_777_920)])
def test_sizes_of_the_released_models(tmp_path: Path, preset: str, count: int) -> None:
    """As many parameters as the official code has with 250,104 rows."""
    write_companions(tmp_path, PRESETS[preset], None)
    config = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    with torch.device("meta"):
        model = transformers.AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=True)
    assert model.num_parameters() == count


def test_what_does_not_fit_is_refused(base_model: Any) -> None:
    long = torch.full((1, 33), 50)
    with pytest.raises(ValueError, match="33 tokens does not fit: this model has positions for 32"):
        base_model(long, decoder_input_ids=torch.tensor([[EOS]]))
    with pytest.raises(ValueError, match="33 tokens does not fit"):
        base_model(torch.tensor([[50, EOS]]), decoder_input_ids=long)
    with pytest.raises(ValueError, match="Give either ids or embeddings: found neither"):
        base_model(torch.tensor([[50, EOS]]))
    config = type(base_model.config)
    with pytest.raises(ValueError, match=r"activation_function must be 'gelu', found 'relu'"):
        config(activation_function="relu")
    with pytest.raises(ValueError, match="d_model must be a multiple of the heads"):
        config(decoder_attention_heads=7)


# The tokenizer


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE / "vocabulary.model")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_companions(folder, ModelConfig(vocab_size=vocabulary.size, max_length=20), vocabulary)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The sample's text in 105 languages, and what no corpus should be trusted to lack."""
    files = sorted((SAMPLE / "cc100").glob("*.txt.xz"))
    texts = [text for file in files for text in lzma.decompress(file.read_bytes()).decode().splitlines()]
    decomposed = [unicodedata.normalize("NFD", text) for text in texts[::5]]
    odd = [
        "",
        " ",
        "  a  b ",
        "a\tb\nc",
        "\u2028",
        "😀👩‍👩‍👧",
        "ﬁ ½ Ⅷ",
        "𐍈𓀀",
        "e\u0301",
        "\ufeffx",
        "a\u200bb",
        "\x00a",
        "﷽",
    ]
    return texts + decomposed + odd


def exported(ids: list[int]) -> list[int]:
    """Ids of ours in the order of an exported model."""
    order = {0: PAD, 1: UNK, 2: BOS, 3: EOS}
    return [order.get(token, token) for token in ids]


def test_ids_are_those_of_sentencepiece(tokenizer: Any, vocabulary: Vocabulary, texts: list[str]) -> None:
    assert len(texts) > 10_000
    expected = [[*exported(ids), EOS] for ids in vocabulary.encode_batch(texts)]
    found = tokenizer(texts)["input_ids"]
    differing = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    assert not differing
    assert tokenizer(text_target=texts[:9])["input_ids"] == expected[:9]


def test_text_comes_back(tokenizer: Any, vocabulary: Vocabulary, texts: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    for text in texts[::7]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == processor.decode(processor.encode(text))


def test_special_tokens(tokenizer: Any, vocabulary: Vocabulary) -> None:
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        BOS, PAD, EOS, UNK,
    )  # fmt: skip
    assert tokenizer.mask_token_id == vocabulary.mask_id
    for sentinel in (0, 3, 99):
        assert tokenizer(f"<mask_{sentinel}>")["input_ids"] == [vocabulary.sentinel_start + sentinel, EOS]
    # What follows a sentinel starts a word exactly if a space stands there, as in pretraining.
    first, second = vocabulary.sentinel_start, vocabulary.sentinel_start + 1
    ids = [*vocabulary.encode("Every one"), first, *vocabulary.encode("has rights"), second, EOS_ID]
    written = vocabulary.decode(ids)
    assert written == "Every one<mask_0> has rights<mask_1></s>"
    assert tokenizer(written, add_special_tokens=False)["input_ids"] == exported(ids)
    assert tokenizer.decode(exported(ids)) == written
    assert tokenizer.decode(exported(ids), skip_special_tokens=True) == "Every one has rights"
    inside = tokenizer("Every <mask_0>body", add_special_tokens=False)["input_ids"]
    assert inside[inside.index(first) + 1] not in exported(vocabulary.encode("body"))[:1]
    assert tokenizer("a", "b")["input_ids"] == [*tokenizer("a")["input_ids"], *tokenizer("b")["input_ids"]]


def test_length_padding_and_truncation(tokenizer: Any, vocabulary: Vocabulary, texts: list[str]) -> None:
    batch = tokenizer(["a", texts[0]], padding=True, truncation=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert ids.shape == (2, 20)
    assert ids[1, -1] == EOS
    assert torch.equal(ids == PAD, mask == 0)
    assert ids[0].tolist() == [*exported(vocabulary.encode("a")), EOS, *[PAD] * (20 - int(mask[0].sum()))]


def test_new_tokens_get_new_rows(tokenizer_folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)
    assert len(tokenizer) == vocabulary.size
    tokenizer.add_tokens(["<2en>"], special_tokens=True)
    assert tokenizer("<2en> a")["input_ids"] == [vocabulary.size, *exported(vocabulary.encode("a")), EOS]
    tokenizer.save_pretrained(tmp_path)
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("<2en> a <mask_3>")["input_ids"] == tokenizer("<2en> a <mask_3>")["input_ids"]

"""XLM-R and InfoXLM, as Hugging Face and fairseq publish them: read as an encoder, and written for Hugging Face.

A folder of Hugging Face's (`model.safetensors` or `pytorch_model.bin`, `config.json`, `sentencepiece.bpe.model`) or a
`model.pt` of fairseq's, whose query, key and value projections may be joined in one `in_proj` (XLM-R's original files).
The head for masked language modelling is read if it is asked for; what serves classification is left out.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.weights import names
from deltalm_jax.weights.files import checked_config, read_state_dict
from deltalm_jax.weights.hugging_face.xlm_roberta_files import write_xlm_roberta_companions
from deltalm_jax.weights.state_dict import (
    MAX_PADDING_ROWS,
    StateDict,
    abstract_params,
    config_of,
    read_params,
    tensors_of,
)
from deltalm_jax.weights.tensors import StoredTensor, WeightsError, write_safetensors

_COPIES = ("lm_head.decoder.weight", "decoder.lm_head.weight", "encoder.lm_head.weight")

# XLM-R's vocabulary, where no SentencePiece model says otherwise: the id of <mask>.
XLMR_MASK_ID = 250_001

# What a `config.json` must say where it says anything: other models have tensors of the same names.
_CONFIG = {
    "model_type": ("xlm-roberta", "roberta"),
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-5, 1e-12),  # E5 was trained with the latter; to float32 the two are nearly alike
    "position_embedding_type": ("absolute",),
    "type_vocab_size": (1,),
    "pad_token_id": (1,),
}

_IGNORED = (
    r".*\.version", r".*position_ids", r"(.*\.)?lm_head\..*", r"(.*\.)?pooler\..*", r"classifier\..*",
    r"(.*\.)?classification_heads\..*", r"qa_outputs\..*",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder read from a file.

    Attributes:
      config: its sizes; `vocab_size` is the number of rows kept.
      params: {"token_embedding", "encoder"}, float32, in our order of ids; and "lm_head", if it was asked for and is there.
      notes: what was done with rows, one sentence each.
    """

    config: ModelConfig
    params: Params
    notes: tuple[str, ...]


def read_xlm_roberta(
    path: Path, vocabulary: Vocabulary | None, num_heads: int | None, *, with_head: bool = False
) -> Encoder:
    """Reads an encoder.

    Args:
      path: a folder of Hugging Face's or a file of fairseq's.
      vocabulary: the model's; None assumes XLM-R's layout of ids.
      num_heads: attention heads; None takes `config.json`'s, or those of the published models of this width.
      with_head: whether the head for masked language modelling is read too, if the file has one.

    Raises:
      WeightsError: names the file and the tensor that is missing, superfluous, misshapen or not finite, or says how table
        and vocabulary differ.
    """
    told = checked_config(path, _CONFIG)
    state = read_state_dict(path, "model")
    _split_in_proj(state)
    naming = _naming(state)
    config = config_of(state, naming, num_heads or told.get("num_attention_heads"), decoder=None)
    shapes = abstract_params(dataclasses.replace(config, num_decoder_layers=0))
    has_head = with_head and naming("lm_head/dense/kernel") in state.tensors
    if has_head:
        _one_bias(state, naming("lm_head/bias"))
    else:
        del shapes["lm_head"]
    params = read_params(state, shapes, naming, _COPIES if has_head else ())
    token_type = naming("encoder/position_embedding").replace("position_embeddings", "token_type_embeddings")
    if token_type != naming("encoder/position_embedding") and token_type in state.tensors:
        # Every token is of type 0, whose embedding may as well be part of its position's.
        params["encoder"]["position_embedding"] += state.take(token_type, (1, config.hidden_size))
    state.finish(_IGNORED)
    params["token_embedding"], notes = _known_rows(state, params["token_embedding"], vocabulary)
    if has_head:
        params["lm_head"]["bias"] = params["lm_head"]["bias"][: len(params["token_embedding"])]
    return Encoder(dataclasses.replace(config, vocab_size=len(params["token_embedding"])), params, notes)


def write_xlm_roberta(folder: Path, config: ModelConfig, params: Params, vocabulary: Vocabulary | None) -> None:
    """Writes a folder that `transformers.XLMRobertaForMaskedLM` loads; the table is written as it is.

    Args:
      folder: an existing folder.
      config: of an encoder alone, laid out as XLM-R (see `differences`).
      params: its parameters, without a projection of sentences, which has no place there.
      vocabulary: None for a folder without a tokenizer.

    Raises:
      WeightsError: the vocabulary does not fit the model, or cannot be written as a tokenizer.
    """
    try:
        write_xlm_roberta_companions(folder, config, vocabulary)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    naming = names.hugging_face_xlm_roberta("roberta.")
    tensors = dict(tensors_of(params, naming))
    # Every token is of the one type that there is: ours have no such embedding.
    tensors["roberta.embeddings.token_type_embeddings.weight"] = np.zeros((1, config.hidden_size), np.float32)
    write_safetensors(folder / "model.safetensors", tensors)


def differences(config: ModelConfig) -> list[str]:
    """What of a model an XLM-R has no place for; nothing if it can be written as one."""
    found = [
        (not config.is_encoder, f"a decoder (num_decoder_layers={config.num_decoder_layers})"),
        (config.norm_placement != "post", f"norm_placement={config.norm_placement!r}"),
        (not config.embedding_layer_norm, "embeddings without a LayerNorm"),
    ]
    return [what for differs, what in found if differs]


def _one_bias(state: StateDict, name: str) -> None:
    """Hugging Face keeps the head's bias under one of two names, or under both."""
    other = name.replace("lm_head.bias", "lm_head.decoder.bias")
    if name not in state.tensors and other in state.tensors:
        state.tensors[name] = state.tensors.pop(other)
    elif other in state.tensors:
        state.take_copies([other], state.take(name, state.shape(name)), name)


def _known_rows(
    state: StateDict, table_VD: np.ndarray, vocabulary: Vocabulary | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The rows whose meaning is known: the pieces and, if it is there, `<mask>`. Others are padding."""
    rows = len(table_VD)
    assumed = XLMR_MASK_ID if rows >= XLMR_MASK_ID else rows - 1
    mask_id = vocabulary.mask_id if vocabulary else assumed
    if not mask_id <= rows <= mask_id + 1 + MAX_PADDING_ROWS:
        of = f"the SentencePiece model {vocabulary.file_name}" if vocabulary else "XLM-R's vocabulary"
        raise WeightsError(
            f"{state.file}: the token table has {rows:,} rows, but {of} has the ids 0 to {mask_id - 1:,} and <mask>: model "
            "and vocabulary do not belong together"
        )
    if rows == mask_id:
        return table_VD, (f"{rows:,} token rows; there is none for <mask>, which is new",)
    dropped = rows - (mask_id + 1)
    note = f", {dropped} rows of padding after <mask> left out" if dropped else ", <mask> last"
    return table_VD[: mask_id + 1], (f"{rows:,} token rows{note}",)


def _naming(state: StateDict) -> names.Naming:
    for prefix in ("", "roberta.", "model.", "xlm_roberta."):
        if f"{prefix}embeddings.word_embeddings.weight" in state.tensors:
            return names.hugging_face_xlm_roberta(prefix)
    for side in ("decoder", "encoder"):
        prefix = f"{side}.sentence_encoder."
        if f"{prefix}embed_tokens.weight" in state.tensors:
            newer = f"{prefix}layernorm_embedding.weight" in state.tensors
            return names.fairseq_xlm_roberta(prefix, "layernorm_embedding" if newer else "emb_layer_norm")
    found = ", ".join(map(repr, list(state.tensors)[:3]))
    raise WeightsError(
        f"{state.file}: no XLM-R: there is neither 'embeddings.word_embeddings.weight' (Hugging Face) nor "
        f"'decoder.sentence_encoder.embed_tokens.weight' (fairseq) among its {len(state.tensors)} tensors ({found}, …)"
    )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of a stored tensor, in place of a `StoredTensor`."""

    whole: StoredTensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    def read(self) -> np.ndarray:
        return self.whole.read()[self.start : self.stop]


def _split_in_proj(state: StateDict) -> None:
    """Puts q_proj, k_proj and v_proj, which stand in this order, in place of each joint in_proj."""
    tensors: dict[str, Any] = state.tensors
    for name in [n for n in tensors if re.search(r"\.in_proj_(weight|bias)$", n)]:
        whole = tensors.pop(name)
        size, rest = divmod(whole.shape[0], 3)
        if rest:
            raise WeightsError(
                f"{state.file}: tensor {name!r} has {whole.shape[0]} rows, which are not three projections"
            )
        stem, kind = name.rsplit(".in_proj_", 1)
        for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
            tensors[f"{stem}.{part}.{kind}"] = _Rows(whole, i * size, (i + 1) * size)

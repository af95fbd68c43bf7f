"""DeltaLM as others keep it: Microsoft's released files, fairseq's checkpoints, and the ports to Hugging Face.

All have one token table in two or three places; copies are asserted to be equal on the way in, and made again on the
way out where the format stores them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.weights import names
from deltalm_jax.weights.files import checked_config, read_state_dict
from deltalm_jax.weights.hugging_face.export_files import write_companions
from deltalm_jax.weights.state_dict import StateDict, abstract_params, config_of, read_params, tensors_of
from deltalm_jax.weights.tensors import WeightsError, write_safetensors
from deltalm_jax.weights.torch_file import write_torch_file

Read = tuple[ModelConfig, Params, tuple[str, ...]]
"""Sizes, parameters in our order of ids, and notes on what was found."""

_FAIRSEQ_COPIES = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_HUGGING_FACE_COPIES = (
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_BIAS = "final_logits_bias"
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
# What a `config.json` of the ports, or of ours, must say where it says anything.
_CONFIG = {"model_type": ("deltalm", "Deltalm"), "activation_function": ("gelu",), "scale_embedding": (False,)}


def read_fairseq(path: Path, ffn_order: str, num_heads: int | None) -> Read:
    """Reads a released file ("weights": `src_embedding` …) or a checkpoint of fairseq's ("model": `encoder.embed_tokens` …).

    Args:
      path: the `.pt` file.
      ffn_order: which of a released file's two feed-forward networks is the bottom one (`names.official`).
      num_heads: attention heads; None takes those of the published models of this width.

    Raises:
      WeightsError: names the file and the tensor.
    """
    state = read_state_dict(path, "weights", "model")
    if "src_embedding.embed_tokens.weight" in state.tensors:
        return _read(
            state, names.official(ffn_order), ("tgt_embedding.embed_tokens.weight",), num_heads, "released file"
        )
    return _read(state, names.fairseq, _FAIRSEQ_COPIES, num_heads, "fairseq checkpoint", (r".*\.version",))


def read_hugging_face(path: Path, num_heads: int | None) -> Read:
    """Reads a folder of the public ports to Hugging Face, or of ours; arguments and errors as above."""
    told = checked_config(path, _CONFIG)
    heads = num_heads or told.get("encoder_attention_heads")
    if told.get("decoder_attention_heads", heads) != heads:
        raise WeightsError(f"{path}: config.json gives encoder and decoder different numbers of attention heads")
    state = read_state_dict(path, "model")
    if _BIAS in state.tensors and state.take(_BIAS, state.shape(_BIAS)).any():
        raise WeightsError(f"{state.file}: tensor {_BIAS!r} is not zero, but DeltaLM's output has no bias")
    decoder = "interleaved" if told.get("interleaved_decoder", True) else "vanilla"
    what = "Hugging Face port"
    config, params, notes = _read(state, names.hugging_face, _HUGGING_FACE_COPIES, heads, what, decoder=decoder)
    rates = {f"{name}_rate": told[name] for name in _DROPOUTS if name in told}
    try:
        return dataclasses.replace(config, **rates), params, notes
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: config.json: {error}") from error


def write_official(path: Path, config: ModelConfig, params: Params, ffn_order: str) -> None:
    """Writes a file like the released ones: 392 tensors for base, 772 for large.

    Raises:
      WeightsError: the decoder is not interleaved.
    """
    if config.decoder != "interleaved":
        raise WeightsError(f"a released file has an interleaved decoder, and no place for a {config.decoder} one")
    tensors = dict(tensors_of(params, names.official(ffn_order)))
    tensors["tgt_embedding.embed_tokens.weight"] = tensors["src_embedding.embed_tokens.weight"]
    write_torch_file(path, {"weights": tensors})


def write_hugging_face(folder: Path, config: ModelConfig, params: Params, vocabulary: Vocabulary | None) -> None:
    """Writes a folder that `transformers` loads, with a PyTorch module of ours.

    Raises:
      WeightsError: the vocabulary does not fit the model.
    """
    try:
        write_companions(folder, config, vocabulary)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    write_safetensors(folder / "model.safetensors", dict(tensors_of(params, names.hugging_face)))


def _read(
    state: StateDict,
    naming: names.Naming,
    copies: tuple[str, ...],
    num_heads: int | None,
    what: str,
    ignored: tuple[str, ...] = (),
    decoder: str = "interleaved",
) -> Read:
    config = config_of(state, naming, num_heads, decoder)
    params = read_params(state, abstract_params(config), naming, copies)
    state.finish(ignored)
    return config, params, (f"{what}: {len(state.tensors)} tensors",)

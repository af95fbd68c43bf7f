"""What a folder of an exported encoder holds beside its weights, so that transformers loads it as XLM-R's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.weights.hugging_face.tokenizer_files import BOS, EOS, EXPORTED_IDS, PAD, write_tokenizer


def write_xlm_roberta_companions(folder: Path, config: ModelConfig, vocabulary: Vocabulary | None) -> None:
    """Writes `config.json` and the tokenizer.

    Args:
      folder: an existing folder; files of the same names are replaced.
      config: of the encoder whose weights are, or will be, in `model.safetensors` there.
      vocabulary: what it was trained with; None for a folder without a tokenizer.

    Raises:
      ValueError: as `write_tokenizer`; nothing of the folder may be used then.
    """
    if vocabulary is not None:
        write_tokenizer(
            folder, vocabulary, vocab_size=config.vocab_size, max_length=config.max_length, begins_with_bos=True
        )
    text = json.dumps(xlm_roberta_config_json(config), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def xlm_roberta_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of `config.json`: the arguments of transformers' `XLMRobertaConfig`.

    It has no dropout inside the feed-forward networks; `activation_dropout_rate` is left out.
    """
    return {
        "model_type": "xlm-roberta",
        # As in `export_files.model_config_json`.
        "transformers_version": "4.46.3",
        "architectures": ["XLMRobertaForMaskedLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.feed_forward_size,
        "num_hidden_layers": config.num_encoder_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.num_positions,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
        "tie_word_embeddings": True,
        "bos_token_id": EXPORTED_IDS[BOS],
        "pad_token_id": EXPORTED_IDS[PAD],
        "eos_token_id": EXPORTED_IDS[EOS],
    }

"""What a folder of an exported model holds beside its weights, so that Hugging Face transformers can load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import ModelConfig, parameter_count
from deltalm_jax.weights.hugging_face.tokenizer_files import BOS, EOS, EXPORTED_IDS, PAD, write_tokenizer

# Python files that travel with the model. They need torch and transformers, and nothing of this project.
MODEL_FILES = ("configuration_deltalm.py", "layers_deltalm.py", "modeling_deltalm.py")

_TOKEN_IDS = {
    "bos_token_id": EXPORTED_IDS[BOS],
    "pad_token_id": EXPORTED_IDS[PAD],
    "eos_token_id": EXPORTED_IDS[EOS],
    "decoder_start_token_id": EXPORTED_IDS[EOS],
}


def write_companions(folder: Path, config: ModelConfig, vocabulary: Vocabulary | None) -> None:
    """Writes everything but the weights: configurations, the model's code, the tokenizer, a model card.

    Args:
      folder: an existing folder; files of the same names are replaced.
      config: of the model whose weights are, or will be, in `model.safetensors` there.
      vocabulary: what the model was trained with; None for a folder without a tokenizer.

    Raises:
      ValueError: the vocabulary does not fit the model, or has no `tokenizer.json` (see `write_tokenizer`). Nothing of
        the folder may be used then.
    """
    if vocabulary is not None:
        write_tokenizer(folder, vocabulary, vocab_size=config.vocab_size, max_length=config.max_length)
    _write_json(folder / "config.json", model_config_json(config) | _layout(vocabulary))
    _write_json(folder / "generation_config.json", generation_config_json(config))
    for name in MODEL_FILES:
        shutil.copyfile(Path(__file__).parent / name, folder / name)
    (folder / "README.md").write_text(model_card(config, has_tokenizer=vocabulary is not None), encoding="utf-8")


def _layout(vocabulary: Vocabulary | None) -> dict[str, int]:
    """Where the sentinels are, for whoever converts the folder back; transformers keeps it and looks at nothing in it."""
    if vocabulary is None:
        return {}
    return {"sentinel_start": vocabulary.sentinel_start, "num_sentinels": vocabulary.num_sentinels}


def model_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of `config.json`: the arguments of `DeltaLMConfig`, and where to find the classes."""
    return {
        "model_type": "deltalm",
        # The oldest that was tried. Without it transformers 4.57 warns of a bug in Mistral's tokenizers.
        "transformers_version": "4.46.3",
        "architectures": ["DeltaLMForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_deltalm.DeltaLMConfig",
            "AutoModel": "modeling_deltalm.DeltaLMModel",
            "AutoModelForSeq2SeqLM": "modeling_deltalm.DeltaLMForConditionalGeneration",
        },
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.feed_forward_size,
        "decoder_ffn_dim": config.feed_forward_size,
        "max_position_embeddings": config.max_length,
        "dropout": config.dropout_rate,
        "attention_dropout": config.attention_dropout_rate,
        "activation_dropout": config.activation_dropout_rate,
        "activation_function": "gelu",
        "normalize_before": config.norm_placement == "pre",
        "layernorm_embedding": config.embedding_layer_norm,
        "interleaved_decoder": config.decoder == "interleaved",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "use_cache": True,
        **_TOKEN_IDS,
    }


def generation_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of `generation_config.json`: beam search much as in fairseq.

    Hypotheses are ranked by mean log-probability; a sentence is done when as many hypotheses as there are beams have
    ended; padding is never generated. (fairseq also makes hypotheses of full length end, at the price of `</s>`.)
    """
    return {
        **_TOKEN_IDS,
        "max_length": config.max_length,
        "num_beams": 5,
        "length_penalty": 1.0,
        "early_stopping": True,
        "suppress_tokens": [_TOKEN_IDS["pad_token_id"]],
    }


def model_card(config: ModelConfig, *, has_tokenizer: bool) -> str:
    """The folder's README."""
    loading = (
        """tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("A text.", return_tensors="pt")"""
        if has_tokenizer
        else "inputs = {'input_ids': …}  # ids of the vocabulary the model was trained with, `</s>` (2) at the end"
    )
    output = "tokenizer.batch_decode(outputs, skip_special_tokens=True)" if has_tokenizer else "outputs"
    decoder = "an interleaved" if config.decoder == "interleaved" else "a vanilla"
    return f"""---
library_name: transformers
tags: [deltalm]
---

# A DeltaLM

An encoder-decoder in the architecture of DeltaLM (arXiv 2106.13736) with {decoder} decoder: {config.num_encoder_layers}
encoder and {config.num_decoder_layers} decoder layers, width {config.hidden_size}, {config.vocab_size:,} tokens,
{parameter_count(config):,} parameters. Trained with, or converted by, deltalm_jax.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "…"  # this folder
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
{loading}
outputs = model.generate(**inputs)
print({output})
```

- `trust_remote_code=True` runs the Python files of this folder: read them first. They were tested with transformers
  4.46.3, 4.57.6, 5.0.0, 5.12.1 and 5.24.0, and torch 2.13.0 and 2.14.1.
- A source is its text and `</s>`; a target is its text and `</s>`, and decoding starts from `</s>`. There is no `<s>`.
- `model(**inputs, labels=labels).loss` is the mean over the targets; `-100` and padding do not count.
- At most {config.max_length} tokens on either side.
- A model that was only pretrained fills in spans: it expects `<mask_0>`, `<mask_1>`, … in its input, and writes
  `<mask_0> …  <mask_1> …`. For translation or any other task, fine-tune it first.
"""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

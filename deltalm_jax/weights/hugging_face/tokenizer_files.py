"""A vocabulary as the files of a Hugging Face tokenizer, written as plain JSON without the `tokenizers` library.

Ids are those of fairseq and XLM-R: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, and from 4 on the same as everywhere else in
this project. A text becomes its pieces and a final `</s>`, as DeltaLM is fine-tuned in fairseq; no `<s>`, unless asked for.

Two things differ from SentencePiece. Where two segmentations of a run like `ppp` score the same, the other may be chosen
(with XLM-R's model in one web text of 2,000). And specials written in a text, `</s>` or `<mask_3>`, are those specials, as
everywhere in transformers.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as protobuf

from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary

# Ids in the exported folder. Those of `deltalm_jax.data.vocabulary` are in another order.
BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
SPECIALS = (BOS, PAD, EOS, UNK)
EXPORTED_IDS = {name: index for index, name in enumerate(SPECIALS)}

_WORD_START = "\u2581"
_Piece = protobuf.ModelProto.SentencePiece


def write_tokenizer(
    folder: Path, vocabulary: Vocabulary, *, vocab_size: int, max_length: int, begins_with_bos: bool = False
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the SentencePiece model as `sentencepiece.bpe.model`.

    Args:
      folder: an existing folder.
      vocabulary: what the model was trained with.
      vocab_size: rows of the model's table. The tokenizer is made exactly as long, so that tokens which a user adds get
        new rows: rows without a meaning become `<unused_ID>`. A table cut short of the sentinels loses them.
      max_length: longest sequence of the model, for truncation.
      begins_with_bos: whether a text begins with `<s>`, as in XLM-R; two are then `<s> A </s></s> B </s>`.

    Raises:
      ValueError: the table has fewer rows than the vocabulary has pieces, or the SentencePiece model has a property that
        a `tokenizer.json` of this kind cannot have.
    """
    tokenizer = tokenizer_json(vocabulary, vocab_size, begins_with_bos)
    mask = vocabulary.decode([vocabulary.mask_id])
    names = {"bos_token": BOS, "pad_token": PAD, "eos_token": EOS, "unk_token": UNK, "sep_token": EOS, "cls_token": BOS}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        **({"mask_token": mask} if vocab_size > vocabulary.mask_id else {}),
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(vocabulary.model)


def tokenizer_json(vocabulary: Vocabulary, vocab_size: int, begins_with_bos: bool = False) -> dict[str, Any]:
    """The content of `tokenizer.json`; arguments and errors as for `write_tokenizer`."""
    if vocab_size <= vocabulary.num_pieces:
        raise ValueError(
            f"A token table of {vocab_size:,} rows does not fit {vocabulary.file_name}, whose pieces take the ids up to "
            f"{vocabulary.num_pieces:,}: give the vocabulary that the model was trained with, or none."
        )
    model = protobuf.ModelProto.FromString(vocabulary.model)
    _check(model, vocabulary.file_name)
    first = EOS_ID  # Pieces 0 to 2 of the SentencePiece model are <unk>, <s>, </s>.
    pieces = [*((name, 0.0) for name in SPECIALS), *((piece.piece, piece.score) for piece in model.pieces[first:])]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(_added(index, name) for name, index in EXPORTED_IDS.items()),
            *(
                _added(index, piece.piece, special=piece.type == _Piece.CONTROL)
                for index, piece in enumerate(model.pieces[first:], len(SPECIALS))
                if piece.type in (_Piece.CONTROL, _Piece.USER_DEFINED)
            ),
            *(_added(index, _name(vocabulary, index)) for index in range(vocabulary.mask_id, vocab_size)),
        ],
        "normalizer": _normalizer(model.normalizer_spec),
        # Only a text's very beginning gets the mark of a word start: what follows a sentinel may continue a word.
        "pre_tokenizer": _metaspace(split=model.trainer_spec.split_by_whitespace),
        "post_processor": _template(begins_with_bos),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, _metaspace(split=True)]},
        "model": {
            "type": "Unigram",
            "unk_id": EXPORTED_IDS[UNK],
            "vocab": pieces,
            "byte_fallback": model.trainer_spec.byte_fallback,
        },
    }


def _check(model: protobuf.ModelProto, name: str) -> None:
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    needed = {
        "a unigram model": trainer.model_type == protobuf.TrainerSpec.UNIGRAM,
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "no treat_whitespace_as_suffix": not trainer.treat_whitespace_as_suffix,
        "no unused pieces": all(piece.type != _Piece.UNUSED for piece in model.pieces),
    }
    lacking = [what for what, there in needed.items() if not there]
    if lacking:
        raise ValueError(
            f"{name} cannot be written as a tokenizer.json, which needs {', '.join(needed)}; it lacks: "
            f"{', '.join(lacking)}. Export without a vocabulary, and tokenize with SentencePiece."
        )


def _name(vocabulary: Vocabulary, token: int) -> str:
    """How a row behind the pieces is written: `<mask>`, `<mask_3>`, `<unused_250102>`."""
    return vocabulary.decode([token]) if token < vocabulary.size else f"<unused_{token}>"


def _added(index: int, content: str, *, special: bool = True) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _normalizer(spec: protobuf.NormalizerSpec) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        if "nfkc" in spec.name:
            # SentencePiece composes what is decomposed; Precompiled does so for one base and one mark only.
            steps.append({"type": "NFC"})
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    # What remove_extra_whitespaces does. A single space in front stays: it is what marks a word start.
    steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    steps.append({"type": "Replace", "pattern": {"Regex": r" \z"}, "content": ""})
    return {"type": "Sequence", "normalizers": steps}


def _metaspace(*, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": _WORD_START, "prepend_scheme": "first", "split": split}


def _template(begins_with_bos: bool) -> dict[str, Any]:
    text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    bos, eos = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (BOS, EOS))
    used = (BOS, EOS) if begins_with_bos else (EOS,)
    return {
        "type": "TemplateProcessing",
        "single": [bos, text, eos] if begins_with_bos else [text, eos],
        "pair": [bos, text, eos, eos, other, eos] if begins_with_bos else [text, eos, other, eos],
        "special_tokens": {name: {"id": name, "ids": [EXPORTED_IDS[name]], "tokens": [name]} for name in used},
    }

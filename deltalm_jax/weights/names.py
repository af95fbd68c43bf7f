"""What other people call our parameters: one table for each naming, used for reading and for writing.

A naming takes the path of one of our leaves, such as "decoder/layers/cross_attention/query/kernel", to the name of a
tensor, such as "decoder.layers.{layer}.encoder_attn.q_proj.weight", where {layer} is the leaf's leading axis. A tensor
called `.weight` of a linear map is [output, input] in PyTorch, the transpose of our kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Naming = Callable[[str], str]
"""Path of a leaf of ours → name of a tensor, with "{layer}" where our leaf is stacked."""

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def _attention(ours: str, theirs: str, parts: Mapping[str, str] = _ATTENTION) -> dict[str, str]:
    return {f"layers/{ours}/{name}": f"layers.{{layer}}.{theirs}.{part}" for name, part in parts.items()}


def _feed_forward(ours: str, first: str, second: str) -> dict[str, str]:
    return {f"layers/{ours}/input": f"layers.{{layer}}.{first}", f"layers/{ours}/output": f"layers.{{layer}}.{second}"}


# fairseq's names within one side (microsoft/unilm deltalm; a vanilla layer's as in fairseq's TransformerDecoderLayer).
_FAIRSEQ_SIDE = {
    "position_embedding": "embed_positions",
    "embedding_layer_norm": "layernorm_embedding",
    "final_layer_norm": "layer_norm",
    **_attention("self_attention", "self_attn"),
    "layers/self_attention_layer_norm": "layers.{layer}.self_attn_layer_norm",
    # An encoder layer and a vanilla decoder layer have one feed-forward network …
    **_feed_forward("feed_forward", "fc1", "fc2"),
    "layers/feed_forward_layer_norm": "layers.{layer}.final_layer_norm",
    **_attention("cross_attention", "encoder_attn"),
    "layers/cross_attention_layer_norm": "layers.{layer}.encoder_attn_layer_norm",
    # … an interleaved one two, and the one that comes first has the later numbers.
    **_feed_forward("bottom_feed_forward", "fc3", "fc4"),
    "layers/bottom_feed_forward_layer_norm": "layers.{layer}.ffn_layer_norm",
    **_feed_forward("top_feed_forward", "fc1", "fc2"),
    "layers/top_feed_forward_layer_norm": "layers.{layer}.final_layer_norm",
}

# The official files' (key map of microsoft/unilm deltalm/models/deltalm.py, `upgrade_state_dict`).
_OFFICIAL_ENCODER = _FAIRSEQ_SIDE | {
    "embedding_layer_norm": "emb_layer_norm",
    **_feed_forward("feed_forward", "ffn.fc1", "ffn.fc2"),
}
_FFN_1, _FFN_2 = ("ffn_1.fc1", "ffn_1.fc2"), ("ffn_2.fc1", "ffn_2.fc2")
_OFFICIAL_DECODERS = {
    order: _FAIRSEQ_SIDE
    | {"embedding_layer_norm": "emb_layer_norm"}
    | _feed_forward("bottom_feed_forward", *bottom)
    | _feed_forward("top_feed_forward", *top)
    for order, bottom, top in (("ffn_1_is_bottom", _FFN_1, _FFN_2), ("ffn_1_is_top", _FFN_2, _FFN_1))
}
FFN_ORDERS = tuple(_OFFICIAL_DECODERS)

_HUGGING_FACE_XLM_ROBERTA = {
    "position_embedding": "embeddings.position_embeddings",
    "embedding_layer_norm": "embeddings.LayerNorm",
    **{
        f"layers/{ours}": f"encoder.layer.{{layer}}.{theirs}"
        for ours, theirs in {
            "self_attention/query": "attention.self.query",
            "self_attention/key": "attention.self.key",
            "self_attention/value": "attention.self.value",
            "self_attention/output": "attention.output.dense",
            "self_attention_layer_norm": "attention.output.LayerNorm",
            "feed_forward/input": "intermediate.dense",
            "feed_forward/output": "output.dense",
            "feed_forward_layer_norm": "output.LayerNorm",
        }.items()
    },
}


def fairseq(path: str) -> str:
    """Names in a DeltaLM of fairseq's (`model` of a fine-tuned checkpoint): one token table, "encoder.embed_tokens"."""
    if path == "token_embedding":
        return "encoder.embed_tokens.weight"
    side, rest = path.split("/", 1)
    return f"{side}.{_tensor(_FAIRSEQ_SIDE, rest)}"


def hugging_face(path: str) -> str:
    """Names in the public ports to Hugging Face, and in ours: fairseq's behind "model."."""
    return "model.shared.weight" if path == "token_embedding" else f"model.{fairseq(path)}"


def official(ffn_order: str) -> Naming:
    """Names in the released files (`weights` of deltalm-base.pt), by which of `FFN_ORDERS` their `ffn_1` is read.

    "ffn_1_is_bottom" is what the present official loader does; the first release's had it the other way round.
    """
    decoder = _OFFICIAL_DECODERS[ffn_order]

    def name(path: str) -> str:
        if path == "token_embedding":
            return "src_embedding.embed_tokens.weight"
        side, rest = path.split("/", 1)
        tensor = _tensor(_OFFICIAL_ENCODER if side == "encoder" else decoder, rest)
        if rest.startswith(("position_embedding", "embedding_layer_norm")):
            return f"{'src' if side == 'encoder' else 'tgt'}_embedding.{tensor}"
        return f"{side}.{tensor}"

    return name


def hugging_face_xlm_roberta(prefix: str) -> Naming:
    """Names in an `XLMRobertaModel` (`prefix` "") or `XLMRobertaForMaskedLM` ("roberta."): the encoder's, and the head's."""

    def name(path: str) -> str:
        if path == "token_embedding":
            return f"{prefix}embeddings.word_embeddings.weight"
        if path.startswith("lm_head/"):
            return _head_tensor(path)
        return prefix + _tensor(_HUGGING_FACE_XLM_ROBERTA, path.removeprefix("encoder/"))

    return name


def fairseq_xlm_roberta(prefix: str, embedding_layer_norm: str) -> Naming:
    """Names in an XLM-R of fairseq's, "decoder.sentence_encoder.…" and "decoder.lm_head.…".

    Prefix and LayerNorm's name have changed over its versions.
    """
    side = _FAIRSEQ_SIDE | {"embedding_layer_norm": embedding_layer_norm}

    def name(path: str) -> str:
        if path == "token_embedding":
            return f"{prefix}embed_tokens.weight"
        if path.startswith("lm_head/"):
            return f"{prefix.split('.')[0]}.{_head_tensor(path)}"
        return prefix + _tensor(side, path.removeprefix("encoder/"))

    return name


def is_transposed(path: str) -> bool:
    """Whether the tensor is the transpose of our leaf."""
    return path.endswith("/kernel")


def _tensor(modules: Mapping[str, str], path: str) -> str:
    """A leaf's name: its module's by the table, then PyTorch's word for what it is in it."""
    if path == "position_embedding":
        return f"{modules[path]}.weight"
    module, leaf = path.rsplit("/", 1)
    return f"{modules[module]}.{_leaf(leaf)}"


def _head_tensor(path: str) -> str:
    """The head for masked language modelling, whose parts all call the same: "lm_head.dense.weight", "lm_head.bias"."""
    module, leaf = path.rsplit("/", 1)
    return f"{module.replace('/', '.')}.{_leaf(leaf)}"


def _leaf(name: str) -> str:
    return "bias" if name == "bias" else "weight"

"""The official DeltaLM in NumPy, straight from a state dict in the released files' names: an oracle of its own.

Names and order of operations are those of microsoft/unilm's `deltalm`; float64. Nothing of the project is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

PAD, EOS = 1, 2  # fairseq's ids

State = dict[str, np.ndarray]


def random_state(
    layers: int, blocks: int, d: int, ffn: int, rows: int, positions: int, *, embedding_layer_norm: bool, seed: int = 0
) -> State:
    """Every tensor of a released file, float32, no bias or scale of which is trivial."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, mean: float = 0.0) -> np.ndarray:
        return random.normal(mean, 0.3, shape).astype(np.float32)

    def norm(name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", draw(d, mean=1.0)
        yield f"{name}.bias", draw(d)

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", draw(outputs, inputs) / math.sqrt(inputs) * 3
        yield f"{name}.bias", draw(outputs)

    def attention(name: str) -> Iterator[tuple[str, np.ndarray]]:
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{name}.{projection}", d, d)
        yield from norm(f"{name}_layer_norm")

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        table = draw(rows, d)
        for side in ("src", "tgt"):
            yield f"{side}_embedding.embed_tokens.weight", table
            yield f"{side}_embedding.embed_positions.weight", draw(positions + 2, d)
            if embedding_layer_norm:
                yield from norm(f"{side}_embedding.emb_layer_norm")
        for i in range(layers):
            name = f"encoder.layers.{i}"
            yield from attention(f"{name}.self_attn")
            yield from linear(f"{name}.ffn.fc1", d, ffn)
            yield from linear(f"{name}.ffn.fc2", ffn, d)
            yield from norm(f"{name}.final_layer_norm")
        for i in range(blocks):
            name = f"decoder.layers.{i}"
            yield from attention(f"{name}.self_attn")
            yield from attention(f"{name}.encoder_attn")
            for network in ("ffn_1", "ffn_2"):
                yield from linear(f"{name}.{network}.fc1", d, ffn)
                yield from linear(f"{name}.{network}.fc2", ffn, d)
            yield from norm(f"{name}.ffn_layer_norm")
            yield from norm(f"{name}.final_layer_norm")

    return dict(tensors())


def logits(state: State, heads: int, source_BS: np.ndarray, decoder_BT: np.ndarray) -> np.ndarray:
    """float64 [B, T, V], columns in fairseq's order of ids; `source_BS` may hold padding."""
    state = {name: values.astype(np.float64) for name, values in state.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def attend(name: str, x: np.ndarray, seen: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        def split(part: str, y: np.ndarray) -> np.ndarray:
            return linear(f"{name}.{part}", y).reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        q, k, v = split("q_proj", x), split("k_proj", seen), split("v_proj", seen)
        scores = np.where(allowed, (q / math.sqrt(q.shape[-1])) @ k.transpose(0, 1, 3, 2), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        return norm(f"{name}_layer_norm", x + linear(f"{name}.out_proj", mixed.transpose(0, 2, 1, 3).reshape(x.shape)))

    def feed_forward(name: str, layer_norm: str, x: np.ndarray) -> np.ndarray:
        return norm(layer_norm, x + linear(f"{name}.fc2", gelu(linear(f"{name}.fc1", x))))

    def embed(side: str, tokens: np.ndarray) -> np.ndarray:
        real = tokens != PAD
        rows = np.cumsum(real, 1) * real + 1
        x = state[f"{side}_embedding.embed_tokens.weight"][tokens]
        x = x + state[f"{side}_embedding.embed_positions.weight"][rows]
        return norm(f"{side}_embedding.emb_layer_norm", x) if f"{side}_embedding.emb_layer_norm.weight" in state else x

    real = (source_BS != PAD)[:, None, None, :]
    x = embed("src", source_BS) * (source_BS != PAD)[:, :, None]
    for i in range(sum(name.endswith("ffn.fc1.weight") for name in state)):
        name = f"encoder.layers.{i}"
        x = attend(f"{name}.self_attn", x, x, real)
        x = feed_forward(f"{name}.ffn", f"{name}.final_layer_norm", x)
    y = embed("tgt", decoder_BT)
    causal = np.tril(np.ones((decoder_BT.shape[1],) * 2, bool))
    for i in range(sum(name.endswith("ffn_1.fc1.weight") for name in state)):
        name = f"decoder.layers.{i}"
        y = attend(f"{name}.self_attn", y, y, causal)
        y = feed_forward(f"{name}.ffn_1", f"{name}.ffn_layer_norm", y)
        y = attend(f"{name}.encoder_attn", y, x, real)
        y = feed_forward(f"{name}.ffn_2", f"{name}.final_layer_norm", y)
    return y @ state["tgt_embedding.embed_tokens.weight"].T

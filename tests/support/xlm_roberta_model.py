"""XLM-R with its head for masked language modelling in NumPy, straight from a state dict in Hugging Face's names: an oracle.

Names and order of operations are those of `transformers`' `XLMRobertaForMaskedLM`; float64. Nothing of the project is used.
"""

from __future__ import annotations

import math

import numpy as np

PAD = 1  # fairseq's id

State = dict[str, np.ndarray]


def random_state(layers: int, d: int, ffn: int, rows: int, positions: int, *, seed: int = 0) -> State:
    """Every tensor of an `XLMRobertaForMaskedLM`, float32, no bias, scale or token type of which is trivial."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, mean: float = 0.0) -> np.ndarray:
        return random.normal(mean, 0.3, shape).astype(np.float32)

    def norm(name: str) -> State:
        return {f"{name}.weight": draw(d, mean=1.0), f"{name}.bias": draw(d)}

    def linear(name: str, inputs: int, outputs: int) -> State:
        weight = draw(outputs, inputs) / np.float32(math.sqrt(inputs)) * 3
        return {f"{name}.weight": weight, f"{name}.bias": draw(outputs)}

    state = {
        "roberta.embeddings.word_embeddings.weight": draw(rows, d),
        "roberta.embeddings.position_embeddings.weight": draw(positions + 2, d),
        "roberta.embeddings.token_type_embeddings.weight": draw(1, d),
        **norm("roberta.embeddings.LayerNorm"),
    }
    for i in range(layers):
        name = f"roberta.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            state |= linear(f"{name}.attention.self.{part}", d, d)
        state |= linear(f"{name}.attention.output.dense", d, d) | norm(f"{name}.attention.output.LayerNorm")
        state |= linear(f"{name}.intermediate.dense", d, ffn)
        state |= linear(f"{name}.output.dense", ffn, d) | norm(f"{name}.output.LayerNorm")
    return state | linear("lm_head.dense", d, d) | norm("lm_head.layer_norm") | {"lm_head.bias": draw(rows)}


def logits(state: State, heads: int, tokens_BS: np.ndarray) -> np.ndarray:
    """float64 [B, S, V], columns in fairseq's order of ids, at each position; `tokens_BS` may end in padding."""
    state = {name: values.astype(np.float64) for name, values in state.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    real = tokens_BS != PAD
    table = state["roberta.embeddings.word_embeddings.weight"]
    position_rows = np.cumsum(real, 1) * real + PAD
    x = table[tokens_BS] + state["roberta.embeddings.token_type_embeddings.weight"][0]
    x = norm("roberta.embeddings.LayerNorm", x + state["roberta.embeddings.position_embeddings.weight"][position_rows])
    for i in range(sum(name.endswith("intermediate.dense.weight") for name in state)):
        name = f"roberta.encoder.layer.{i}"
        q, k, v = (split(linear(f"{name}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
        scores = np.where(real[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = ((weights / weights.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", mixed))
        inner = gelu(linear(f"{name}.intermediate.dense", x))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", inner))
    x = norm("lm_head.layer_norm", gelu(linear("lm_head.dense", x)))
    return x @ table.T + state["lm_head.bias"]

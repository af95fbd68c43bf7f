"""What an encoder has learned, measured without any task: masked pieces, and translations found among others.

Of masked language modelling: how often a masked piece is the model's first choice. Of sentences: each is encoded alone,
`<s> text </s>`, and made one vector; how often is its translation the nearest of the sentences in the other language? It is
asked of every hidden state, for languages come together in the middle of an encoder and part again towards its output,
which has to say which word of which language stands somewhere.

Batches have few shapes, each compiled once: rows of padding fill them up. What is found does not depend on the batch.

Legend: B batch, S positions, T positions to predict, D hidden size, V vocabulary, N layers, K sentences of a language,
R representations of a kind (N + 1 hidden states, or one projection).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltalm_jax.data.packing import join_and_cut
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, Vocabulary
from deltalm_jax.model.config import PAD_ID, ModelConfig, resolve_compute_dtype
from deltalm_jax.model.deltalm import Params, encoder_states, logits
from deltalm_jax.model.encoder_model import masked_states, sentence_states
from deltalm_jax.objectives.hashing import hash_keys, string_key
from deltalm_jax.objectives.masked_language_model import MaskedLanguageModel
from deltalm_jax.training.group_gradients import masked_places

NOISE_DENSITY = 0.15
CHUNK_LENGTH = 128
MIN_PAIRS = 10
# Logits of a batch take rows × 20 positions × V floats: of 250,104 pieces, 160 MB.
_CHUNK_ROWS = 8
_BATCH_TOKENS = 2048
_SMALLEST_WIDTH = 16
# Sentences whose vectors are kept, for English ones come up with many languages: of a base model, 80 kB each.
_KEPT_SENTENCES = 4096
# Vectors that are equal have products that differ by less: they are float64, of length at most 1.
_TIE = 1e-12

Vectors = dict[str, np.ndarray]
"""Kind of representation → float32 [R, K, D]."""


def chunks_of(
    vocabulary: Vocabulary, documents: Sequence[Sequence[str]], length: int, limit: int | None = None
) -> list[np.ndarray]:
    """Documents joined and cut as for pretraining: int32 arrays of at most `length` ids, the first `limit` of them."""
    return join_and_cut((vocabulary.encode_batch(paragraphs) for paragraphs in documents), length)[:limit]


def masked_accuracy(
    config: ModelConfig,
    params: Params,
    vocabulary: Vocabulary,
    chunks: Mapping[str, Sequence[np.ndarray]],
    length: int,
    rows: int = _CHUNK_ROWS,
) -> dict[str, dict[str, float]]:
    """Masks chunks as pretraining does, and asks the model for what stood there.

    Of each chunk 15 % of positions are picked by a hash of its language and number; the masks are the same whenever, and
    with whatever model of this vocabulary, it is asked. Picked positions count alike, also those that keep their piece,
    `<s>` and `</s>`. All rows of the token table are choices.

    Args:
      config: of an encoder alone.
      params: its parameters.
      vocabulary: what the ids mean.
      chunks: language → chunks of at most `length` ids.
      length: width of the batches.
      rows: chunks in a batch.

    Returns:
      Language → "accuracy" (share of positions whose piece is the first choice), "loss" (mean negative log-likelihood,
      nats), "positions" and "chunks"; 0 positions have the accuracy and the loss 0. Languages without chunks are left out.
    """
    objective = MaskedLanguageModel(NOISE_DENSITY)
    dtype = resolve_compute_dtype(config, jax.default_backend())
    measure = jax.jit(partial(_measure_masked, config, dtype, objective.most_targets(length)))
    all_chunks = [(language, chunk) for language, found in chunks.items() for chunk in found]
    keys_C = np.array(
        [hash_keys(string_key(language), number) for language, found in chunks.items() for number in range(len(found))],
        np.uint64,
    )
    sums: dict[str, np.ndarray] = {language: np.zeros(4) for language, found in chunks.items() if found}
    for start in range(0, len(all_chunks), rows):
        part = all_chunks[start : start + rows]
        tokens_BL = _padded([chunk for _, chunk in part], rows, length)
        lengths_B = np.array([len(chunk) for _, chunk in part] + [0] * (rows - len(part)))
        keys_B = np.zeros(rows, np.uint64)
        keys_B[: len(part)] = keys_C[start : start + rows]
        masked = objective.corrupt(tokens_BL, lengths_B, keys_B, 0, 0, length, mask_id=vocabulary.mask_id)
        correct_B, nll_B, positions_B = jax.device_get(measure(params, masked.inputs_BS, masked.targets_BT))
        for row, (language, _) in enumerate(part):
            sums[language] += correct_B[row], nll_B[row], positions_B[row], 1
    return {language: _shares(found) for language, found in sums.items()}


def over_all(languages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What `masked_accuracy` gives for the chunks of all languages together: every position counts alike."""
    weighted = [
        (x["accuracy"] * x["positions"], x["loss"] * x["positions"], x["positions"], x["chunks"])
        for x in languages.values()
    ]
    return _shares(np.sum(weighted, axis=0))


def _shares(sums: np.ndarray) -> dict[str, float]:
    correct, nll, positions, chunks = sums.tolist()
    among = max(positions, 1)
    return {
        "accuracy": correct / among,
        "loss": nll / among,
        "positions": round(positions),
        "chunks": round(chunks),
    }


def _measure_masked(
    config: ModelConfig, dtype: str, most: int, params: Params, inputs_BS: jax.Array, targets_BS: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each row: right first choices, negative log-likelihoods, and targets; sums, float32 [B]."""
    places_BT, targets_BT = masked_places(targets_BS, most)
    hidden_BTD = masked_states(config, params, inputs_BS, places_BT, compute_dtype=dtype)
    logits_BTV = logits(params, hidden_BTD) + params["lm_head"]["bias"]
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=2) - target_BT
    real_BT = targets_BT != PAD_ID
    right_BT = real_BT & (jnp.argmax(logits_BTV, axis=2) == targets_BT)
    return (
        jnp.sum(right_BT, axis=1, dtype=jnp.float32),
        jnp.sum(nll_BT * real_BT, axis=1),
        jnp.sum(real_BT, axis=1, dtype=jnp.float32),
    )


class SentenceEncoder:
    """Sentences → vectors, of a DeltaLM's encoder or of an encoder alone.

    Kinds: "mean", the mean of a hidden state over a sentence's positions, `<s>` and `</s>` among them; "first", the state at
    `<s>`; both of all N + 1 hidden states, 0 being the embeddings. And "projected", what contrast compares, if the model has
    a `sentence_layer`.
    """

    def __init__(self, config: ModelConfig, params: Params, batch_tokens: int = _BATCH_TOKENS) -> None:
        """A model, and about how many ids go through it at once."""
        self._params, self._longest, self._batch_tokens = params, config.max_length, batch_tokens
        dtype = resolve_compute_dtype(config, jax.default_backend())
        self._vectors = jax.jit(partial(_sentence_vectors, config, dtype))
        self._kept: dict[tuple[int, ...], Vectors] = {}

    def cut(self, ids: Sequence[int]) -> tuple[int, ...]:
        """`<s> text </s>` of a text's ids, of which those stay that the model has positions for."""
        return BOS_ID, *ids[: self._longest - 2], EOS_ID

    def __call__(self, sentences: Sequence[tuple[int, ...]], keep: bool = False) -> Vectors:
        """The vectors of sentences that `cut` gave; `keep`: they are likely to be asked for again."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._kept]
        found = self._kept | self._encode(new)
        if keep:
            self._kept |= {sentence: found[sentence] for sentence in new[: _KEPT_SENTENCES - len(self._kept)]}
        kinds = found[sentences[0]]
        return {kind: np.stack([found[sentence][kind] for sentence in sentences], axis=1) for kind in kinds}

    def _encode(self, sentences: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Vectors]:
        """Sentence → kind → [R, D]. In batches of sentences of about one length."""
        by_width: dict[int, list[tuple[int, ...]]] = {}
        for sentence in sentences:
            width = _SMALLEST_WIDTH
            while width < len(sentence):
                width *= 2
            by_width.setdefault(min(width, self._longest), []).append(sentence)
        found = {}
        for width, members in sorted(by_width.items()):
            rows = max(self._batch_tokens // width, 1)
            for start in range(0, len(members), rows):
                part = members[start : start + rows]
                vectors = jax.device_get(self._vectors(self._params, _padded(part, rows, width)))
                for row, sentence in enumerate(part):
                    found[sentence] = {kind: vectors_RBD[:, row] for kind, vectors_RBD in vectors.items()}
        return found


def _sentence_vectors(config: ModelConfig, dtype: str, params: Params, tokens_BS: jax.Array) -> dict[str, jax.Array]:
    states_NBSD = encoder_states(config, params, tokens_BS, compute_dtype=dtype).astype(jnp.float32)
    real_BS = (tokens_BS != PAD_ID).astype(jnp.float32)
    # Rows that only fill the batch have no position, and nobody looks at what is made of them.
    count_B1 = jnp.maximum(jnp.sum(real_BS, axis=1, keepdims=True), 1)
    vectors = {
        "mean": jnp.einsum("NBSD,BS->NBD", states_NBSD, real_BS, precision="highest") / count_B1,
        "first": states_NBSD[:, :, 0],
    }
    if config.sentence_layer:
        vectors["projected"] = sentence_states(config, params, tokens_BS, compute_dtype=dtype)[None]
    return vectors


def distinct_pairs(
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs of which neither side has occurred in one before: an exact copy cannot be a wrong answer."""
    seen: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = set(), set()
    kept = []
    for pair in pairs:
        if pair[0] not in seen[0] and pair[1] not in seen[1]:
            kept.append(pair)
            for side, sentence in zip(seen, pair, strict=True):
                side.add(sentence)
    return kept


def retrieval_accuracy(queries_KD: np.ndarray, answers_KD: np.ndarray, cosine: bool = True) -> tuple[float, float]:
    """How often a row's counterpart is the nearest of all rows of the other side.

    Where several are equally near, the counterpart among them counts as one in so many: vectors that are all the same score
    as chance does, 1 / K.

    Args:
      queries_KD: float, one side.
      answers_KD: the other, row by row its counterpart.
      cosine: by the cosine; else by the inner product.

    Returns:
      The share of queries whose answer is found, and of answers whose query is found.
    """
    sides = [np.asarray(side_KD, np.float64) for side_KD in (queries_KD, answers_KD)]
    lengths = [np.linalg.norm(side_KD, axis=1, keepdims=True) for side_KD in sides]
    # All by the longest is the inner product still, in other units.
    first_KD, second_KD = (
        side_KD / np.maximum(length_K1 if cosine else length_K1.max(), 1e-300)
        for side_KD, length_K1 in zip(sides, lengths, strict=True)
    )
    products_KK = first_KD @ second_KD.T
    return _found(products_KK), _found(products_KK.T)


def _found(products_KK: np.ndarray) -> float:
    nearest_KK = products_KK >= products_KK.max(axis=1, keepdims=True) - _TIE
    return float(np.mean(np.diagonal(nearest_KK) / np.maximum(nearest_KK.sum(axis=1), 1)))


def retrieval(encoder: SentenceEncoder, vocabulary: Vocabulary, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> Any:
    """Finds translations by nearest neighbour, from English and to English, in each language among its own pairs.

    Args:
      encoder: what makes vectors of sentences.
      vocabulary: what makes ids of text.
      pairs: language → (English, translation).

    Returns:
      What scores.json holds under "retrieval": "languages", of each "pairs", "chance" and of each way to compare
      ("mean", "first", "projected_inner_product", "projected_cosine") the accuracies "from_english" and "to_english", of
      all hidden states or a single one; "average", the same over languages; and "left_out", languages with fewer than
      `MIN_PAIRS` different pairs and how many these are.
    """
    languages: dict[str, Any] = {}
    left_out: dict[str, int] = {}
    for language, texts in pairs.items():
        sides = [[encoder.cut(ids) for ids in vocabulary.encode_batch(side)] for side in zip(*texts, strict=True)]
        distinct = distinct_pairs(list(zip(*sides, strict=True)))
        if len(distinct) < MIN_PAIRS:
            left_out[language] = len(distinct)
            continue
        english, other = zip(*distinct, strict=True)
        languages[language] = {"pairs": len(distinct), "chance": 1 / len(distinct)}
        languages[language] |= compare(encoder(english, keep=True), encoder(other))
    return {"languages": languages, "average": _average(list(languages.values())), "left_out": left_out}


def compare(english: Vectors, other: Vectors) -> dict[str, dict[str, list[float]]]:
    """Of each way to compare, the accuracies from and to English, one for each representation of the kind."""
    scores = {}
    for kind in english:
        for name, cosine in (("_cosine", True), ("_inner_product", False)) if kind == "projected" else (("", True),):
            found = [
                retrieval_accuracy(a_KD, b_KD, cosine) for a_KD, b_KD in zip(english[kind], other[kind], strict=True)
            ]
            scores[kind + name] = {
                "from_english": [accuracy for accuracy, _ in found],
                "to_english": [accuracy for _, accuracy in found],
            }
    return scores


def _average(languages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over languages; each counts alike, however many pairs it has."""
    if not languages:
        return {}
    average: dict[str, Any] = {key: float(np.mean([x[key] for x in languages])) for key in ("pairs", "chance")}
    for way in languages[0].keys() - average.keys():
        average[way] = {
            direction: np.mean([x[way][direction] for x in languages], axis=0).tolist()
            for direction in ("from_english", "to_english")
        }
    return average


def _padded(rows_of_ids: Sequence[Any], rows: int, width: int) -> np.ndarray:
    """int32 [rows, width], padded."""
    tokens_BS = np.full((rows, width), PAD_ID, np.int32)
    for row, ids in enumerate(rows_of_ids):
        tokens_BS[row, : len(ids)] = ids
    return tokens_BS

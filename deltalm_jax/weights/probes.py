"""What a released DeltaLM does not say of itself, found out from its weights.

Which rows of its table the sentinels are, and which of its two feed-forward networks comes first, is told in two ways by
public sources; a wrong reading loads, runs, and is only worse. Both probes let the weights decide.

Legend: B texts, S inputs, T targets, V vocabulary, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, PAD_ID
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params, hidden_states, logits, shift_right

# Of each text so many spans of so many tokens are masked, evenly spread.
SPANS = 3
_SPAN_LENGTH = 3
_LENGTH = 48


@dataclasses.dataclass(frozen=True)
class MaskedTexts:
    """Texts with some masked spans each. Where span k's sentinel is to stand, `order` has k + 1, elsewhere 0."""

    inputs_BS: np.ndarray
    targets_BT: np.ndarray
    input_order_BS: np.ndarray
    target_order_BT: np.ndarray

    def with_sentinels(self, first: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets with the sentinels `first`, `first + step`, …"""
        return (
            np.where(self.input_order_BS > 0, first + step * (self.input_order_BS - 1), self.inputs_BS),
            np.where(self.target_order_BT > 0, first + step * (self.target_order_BT - 1), self.targets_BT),
        )


def mask_texts(texts: Sequence[Sequence[int]]) -> MaskedTexts:
    """Masks three spans of three tokens in each text, as in span corruption: `<s> a X e f Y … </s>` and `X b c d Y …`.

    Args:
      texts: ids without specials; those with fewer than 18 are left out, longer ones cut after 48.

    Raises:
      ValueError: no text is long enough.
    """
    shortest = 2 * SPANS * _SPAN_LENGTH
    kept = [list(text[:_LENGTH]) for text in texts if len(text) >= shortest]
    if not kept:
        raise ValueError(f"no text has {shortest} tokens or more")
    inputs_BS = np.full((len(kept), _LENGTH + 2 - SPANS * (_SPAN_LENGTH - 1)), PAD_ID, np.int32)
    targets_BT = np.full((len(kept), SPANS * (_SPAN_LENGTH + 1)), PAD_ID, np.int32)
    input_order_BS, target_order_BT = np.zeros_like(inputs_BS), np.zeros_like(targets_BT)
    targets: list[int]
    for row, text in enumerate(kept):
        part = len(text) // SPANS
        inputs, targets = [BOS_ID], []
        for k in range(SPANS):
            begin = k * part + (part - _SPAN_LENGTH) // 2
            end = (k + 1) * part if k < SPANS - 1 else len(text)
            inputs += text[k * part : begin]
            input_order_BS[row, len(inputs)] = target_order_BT[row, len(targets)] = k + 1
            inputs += [PAD_ID, *text[begin + _SPAN_LENGTH : end]]
            targets += [PAD_ID, *text[begin : begin + _SPAN_LENGTH]]
        inputs.append(EOS_ID)
        inputs_BS[row, : len(inputs)] = inputs
        targets_BT[row] = targets
    return MaskedTexts(inputs_BS, targets_BT, input_order_BS, target_order_BT)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the token table that may be a sentinel.

    Attributes:
      id: its number.
      norm: its length.
      cosine: mean cosine to the other candidates; rows that training never touched look alike.
      ascending, descending: nats a target of masked text (its sentinels included) with this row as the first
        sentinel and those after, or before, it as the next; infinite where there are no such rows.
    """

    id: int
    norm: float
    cosine: float
    ascending: float
    descending: float


def probe_sentinels(config: ModelConfig, params: Params, first_id: int, texts: MaskedTexts) -> list[Row]:
    """Looks at all rows from `first_id` on.

    A model that was pretrained with span corruption knows which sentinel comes next, and with which one targets begin if
    its decoder started from `</s>`: with the right ones the targets are likeliest. If it started from the first sentinel
    itself, only the direction is seen so; the first row is then where likeness to rows that were never used ends.
    """
    rows = np.asarray(params["token_embedding"])[first_id:].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    directions = rows / np.maximum(norms, 1e-12)[:, None]
    cosines = directions @ directions.T
    means = (cosines.sum(1) - 1) / max(len(rows) - 1, 1)
    score = _scorer(config, params)

    def of(first: int, step: int) -> float:
        last = first + step * (SPANS - 1)
        return score(*texts.with_sentinels(first, step)) if first_id <= last < config.vocab_size else float("inf")

    return [
        Row(first_id + i, float(norms[i]), float(means[i]), of(first_id + i, 1), of(first_id + i, -1))
        for i in range(len(rows))
    ]


@dataclasses.dataclass(frozen=True)
class Orders:
    """Both readings of the decoder's two feed-forward networks.

    Attributes:
      nll_as_read, nll_swapped: nats a token of masked text.
      cosines: per decoder layer, the cosine of its bottom and top network with those of encoder layers 2i and 2i + 1 of
        the model that it started from: [layer][bottom or top][2i or 2i + 1]; empty without that encoder.
    """

    nll_as_read: float
    nll_swapped: float
    cosines: np.ndarray


def swap_feed_forwards(params: Params) -> Params:
    """The same model with the decoder's bottom and top feed-forward networks exchanged; LayerNorms stay."""
    layers = params["decoder"]["layers"]
    swapped = layers | {
        "bottom_feed_forward": layers["top_feed_forward"],
        "top_feed_forward": layers["bottom_feed_forward"],
    }
    return params | {"decoder": params["decoder"] | {"layers": swapped}}


def probe_feed_forwards(
    config: ModelConfig, params: Params, sentinel: int, texts: MaskedTexts, encoder_layers: Params | None = None
) -> Orders:
    """Compares both readings: by the loss, and by likeness to the encoder that the decoder started from.

    Args:
      config, params: the model, as read.
      sentinel: id of the first sentinel.
      texts: masked texts.
      encoder_layers: stacked layers of the pretrained encoder, if it is at hand.
    """
    arrays = texts.with_sentinels(sentinel)
    losses = [_scorer(config, p)(*arrays) for p in (params, swap_feed_forwards(params))]
    cosines = np.zeros((0, 2, 2))
    if encoder_layers is not None:
        decoder = params["decoder"]["layers"]
        kernels = [np.asarray(decoder[f"{part}_feed_forward"]["input"]["kernel"]) for part in ("bottom", "top")]
        theirs = np.asarray(encoder_layers["feed_forward"]["input"]["kernel"])
        cosines = np.array(
            [
                [[_cosine(kernel[i], theirs[2 * i + upper]) for upper in (0, 1)] for kernel in kernels]
                for i in range(config.num_decoder_layers)
            ]
        )
    return Orders(losses[0], losses[1], cosines)


def _scorer(config: ModelConfig, params: Params) -> Callable[[np.ndarray, np.ndarray], float]:
    """(inputs, targets) → nats a target; compiled once."""
    nll = jax.jit(partial(_nll, config))
    on_device = jax.tree.map(jnp.asarray, params)
    return lambda inputs_BS, targets_BT: float(nll(on_device, inputs_BS, targets_BT))


def _nll(config: ModelConfig, params: Params, inputs_BS: jax.Array, targets_BT: jax.Array) -> jax.Array:
    hidden_BTD = hidden_states(config, params, inputs_BS, shift_right(targets_BT))
    log_probabilities_BTV = jax.nn.log_softmax(logits(params, hidden_BTD))
    return -jnp.take_along_axis(log_probabilities_BTV, targets_BT[:, :, None], axis=2).mean()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))

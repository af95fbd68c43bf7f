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

# A text's part that is masked for the probes: some tokens in the middle of it.
_SPAN = 4
_MAX_TOKENS = 48


@dataclasses.dataclass(frozen=True)
class MaskedTexts:
    """Texts with one masked span each; where the sentinel is to stand, there is `hole_BS` or `hole_BT`."""

    inputs_BS: np.ndarray
    targets_BT: np.ndarray
    hole_BS: np.ndarray
    hole_BT: np.ndarray

    def with_sentinel(self, sentinel: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets with this sentinel."""
        return np.where(self.hole_BS, sentinel, self.inputs_BS), np.where(self.hole_BT, sentinel, self.targets_BT)


def mask_texts(texts: Sequence[Sequence[int]]) -> MaskedTexts:
    """Masks four tokens in the middle of each text: `<s> … X … </s>` and `X a b c d`.

    Args:
      texts: ids without specials; those with fewer than 12 are left out, longer ones cut after 48.

    Raises:
      ValueError: no text is long enough.
    """
    kept = [list(text[:_MAX_TOKENS]) for text in texts if len(text) >= 3 * _SPAN]
    if not kept:
        raise ValueError(f"no text has {3 * _SPAN} tokens or more")
    inputs_BS = np.full((len(kept), _MAX_TOKENS + 3 - _SPAN), PAD_ID, np.int32)
    targets_BT = np.zeros((len(kept), _SPAN + 1), np.int32)
    hole_BS = np.zeros(inputs_BS.shape, bool)
    for row, text in enumerate(kept):
        middle = (len(text) - _SPAN) // 2
        inputs = [BOS_ID, *text[:middle], PAD_ID, *text[middle + _SPAN :], EOS_ID]
        inputs_BS[row, : len(inputs)] = inputs
        hole_BS[row, middle + 1] = True
        targets_BT[row, 1:] = text[middle : middle + _SPAN]
    hole_BT = np.zeros(targets_BT.shape, bool)
    hole_BT[:, 0] = True
    return MaskedTexts(inputs_BS, targets_BT, hole_BS, hole_BT)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the token table that may be a sentinel.

    Attributes:
      id: its number.
      norm: its length.
      cosine: mean cosine to the other candidates; rows that training never touched look alike, or like nothing.
      nll: nats a token of masked text, with this row as the first sentinel.
    """

    id: int
    norm: float
    cosine: float
    nll: float


def probe_sentinels(config: ModelConfig, params: Params, first_id: int, texts: MaskedTexts) -> list[Row]:
    """Looks at all rows from `first_id` on: the first sentinel is the one that makes masked text likeliest.

    Every text has one masked span, so its sentinel is the first of the model's; where that lies, and on which side of
    it its fellows are, tells the layout and its direction.
    """
    rows = np.asarray(params["token_embedding"])[first_id:].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    directions = rows / np.maximum(norms, 1e-12)[:, None]
    cosines = directions @ directions.T
    means = (cosines.sum(1) - 1) / max(len(rows) - 1, 1)
    score = _scorer(config, params)
    return [
        Row(first_id + i, float(norms[i]), float(means[i]), score(*texts.with_sentinel(first_id + i)))
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
    arrays = texts.with_sentinel(sentinel)
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
    """(inputs, targets) → nats a target token, the first (the sentinel) left out; compiled once."""
    nll = jax.jit(partial(_nll, config))
    on_device = jax.tree.map(jnp.asarray, params)
    return lambda inputs_BS, targets_BT: float(nll(on_device, inputs_BS, targets_BT))


def _nll(config: ModelConfig, params: Params, inputs_BS: jax.Array, targets_BT: jax.Array) -> jax.Array:
    hidden_BTD = hidden_states(config, params, inputs_BS, shift_right(targets_BT))
    log_probabilities_BTV = jax.nn.log_softmax(logits(params, hidden_BTD[:, 1:]))
    return -jnp.take_along_axis(log_probabilities_BTV, targets_BT[:, 1:, None], axis=2).mean()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))

"""From a file's tensors to our parameters and back, by a naming.

Everything is checked on the way: each tensor is there, has the shape that the others imply, is finite, and none is left
over. What is wrong is named with its file.

Legend: V vocabulary, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from deltalm_jax.data.vocabulary import FROM_FAIRSEQ, TO_FAIRSEQ
from deltalm_jax.model.config import RESERVED_POSITIONS, ModelConfig
from deltalm_jax.model.deltalm import Params, init_params
from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.weights.names import Naming, is_transposed
from deltalm_jax.weights.tensors import StoredTensor, WeightsError

# Attention heads, which no tensor tells, by the width of published models.
PUBLISHED_HEADS = {384: 12, 768: 12, 1024: 16}

# A token table may be padded to a round number of rows; one that is longer than this is another vocabulary's.
MAX_PADDING_ROWS = 1024

# Leaves with a row for each token: their first four are in another order in others' files.
_BY_TOKEN = ("token_embedding", "lm_head/bias")

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class StateDict:
    """The tensors of one file, each of which must be used.

    Args:
      file: for messages.
      tensors: by name.
    """

    def __init__(self, file: Any, tensors: Mapping[str, StoredTensor]) -> None:
        self.file, self.tensors = file, dict(tensors)
        self._used: set[str] = set()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
          WeightsError: there is no such tensor.
        """
        if name not in self.tensors:
            raise WeightsError(f"{self.file}: there is no tensor {name!r} among its {len(self.tensors)}")
        return tuple(self.tensors[name].shape)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor's values as float32.

        Raises:
          WeightsError: it is missing, has another shape, holds no floats, or is not finite.
        """
        if (found := self.shape(name)) != shape:
            raise WeightsError(f"{self.file}: tensor {name!r} has the shape {found}, expected {shape}")
        if (dtype := self.tensors[name].dtype) not in _FLOATS:
            raise WeightsError(f"{self.file}: tensor {name!r} holds {dtype}, expected one of {', '.join(_FLOATS)}")
        values = self.tensors[name].read().astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{self.file}: tensor {name!r} is not finite: {np.isnan(values).sum():,} NaN, "
                f"{np.isinf(values).sum():,} infinite of {values.size:,} values"
            )
        self._used.add(name)
        return values

    def take_copies(self, names: Iterable[str], original: np.ndarray, of: str) -> None:
        """Takes tensors that must equal another, where they are stored at all.

        Raises:
          WeightsError: one differs.
        """
        for name in names:
            if name not in self.tensors:
                continue
            copy = self.take(name, original.shape)
            if not np.array_equal(copy, original):
                rows = np.flatnonzero((copy != original).reshape(len(copy), -1).any(axis=1))
                raise WeightsError(
                    f"{self.file}: tensor {name!r} should be a copy of {of!r}, which this model has once, but "
                    f"{len(rows):,} rows differ, the first of them row {rows[0]}"
                )

    def layers(self, template: str) -> int:
        """How many layers there are, by the highest number in a name like `template`."""
        pattern = re.compile(re.escape(template).replace(re.escape("{layer}"), r"(\d+)"))
        numbers = [int(found[1]) for name in self.tensors if (found := pattern.fullmatch(name))]
        if not numbers:
            raise WeightsError(
                f"{self.file}: there is no tensor {template.format(layer=0)!r} among its {len(self.tensors)}"
            )
        return max(numbers) + 1

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raises WeightsError if tensors are left that match none of the regular expressions."""
        left = [name for name in self.tensors if name not in self._used]
        unknown = sorted(name for name in left if not any(re.fullmatch(pattern, name) for pattern in ignored))
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise WeightsError(
                f"{self.file}: no place for {', '.join(map(repr, unknown[:3]))}{more}: not a tensor of this kind of model"
            )


def config_of(state: StateDict, naming: Naming, num_heads: int | None, decoder: str | None) -> ModelConfig:
    """The sizes, read off the tensors.

    Args:
      state: the file.
      naming: what it calls our leaves.
      num_heads: attention heads; None takes those of the published models of this width.
      decoder: the kind of its decoder layers; None: it has none, and the configuration a decoder as large as the encoder.

    Raises:
      WeightsError: a tensor is missing, or the number of heads must be given.
    """
    rows, hidden_size = _two(state, naming("token_embedding"))
    num_encoder_layers = state.layers(naming("encoder/layers/self_attention/query/kernel"))
    feed_forward_size = _two(state, naming("encoder/layers/feed_forward/input/kernel").format(layer=0))[0]
    positions, _ = _two(state, naming("encoder/position_embedding"))
    heads = num_heads or PUBLISHED_HEADS.get(hidden_size)
    if heads is None:
        raise WeightsError(
            f"{state.file}: no tensor tells the number of attention heads, and there is no published model of width "
            f"{hidden_size}: give --num_heads"
        )
    decoder_layers = (
        state.layers(naming("decoder/layers/self_attention/query/kernel"))
        if decoder
        else max(num_encoder_layers // 2, 1)
    )
    try:
        return ModelConfig(
            vocab_size=rows,
            hidden_size=hidden_size,
            feed_forward_size=feed_forward_size,
            num_heads=heads,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=decoder_layers,
            max_length=positions - RESERVED_POSITIONS,
            decoder=decoder or "interleaved",
            norm_placement="pre" if decoder and naming("encoder/final_layer_norm/scale") in state.tensors else "post",
            embedding_layer_norm=naming("encoder/embedding_layer_norm/scale") in state.tensors,
        )
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{state.file}: the sizes of its tensors make no model: {error}") from error


def abstract_params(config: ModelConfig) -> Params:
    """The shapes of a model's parameters, as a tree like them."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def read_params(state: StateDict, shapes: Params, naming: Naming, copies: Iterable[str] = ()) -> Params:
    """Reads the leaves of `shapes`; token ids are fairseq's in the file and ours in what is returned.

    One tensor is read at a time, so that memory holds the parameters and little more.

    Args:
      state: the file.
      shapes: tree of shapes (`abstract_params`), or a part of it.
      naming: what the file calls our leaves.
      copies: names of tensors that must equal the token table, if they are stored.

    Raises:
      WeightsError: names the file and the tensor that is missing, has another shape, is not finite, or is no copy.
    """

    def read(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if "{layer}" not in (name := naming(path)):
            values = state.take(name, shape[::-1] if is_transposed(path) else shape)
            if path == "token_embedding":
                state.take_copies(copies, values, name)
            if path in _BY_TOKEN:
                values[:4] = values[list(TO_FAIRSEQ)]
            return values.T if is_transposed(path) else values
        stacked = np.empty(shape, np.float32)
        for layer, target in enumerate(stacked):
            into = target.T if is_transposed(path) else target
            into[...] = state.take(name.format(layer=layer), into.shape)
        return stacked

    return unflatten({path: read(path, tuple(leaf.shape)) for path, leaf in flatten(shapes).items()})


def tensors_of(params: Params, naming: Naming) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a state dict, one by one, in fairseq's order of ids.

    All but those with a row for each token are views of the parameters, many of them transposed: writers make contiguous
    what they write.
    """
    for path, leaf in flatten(params).items():
        values, name = np.asarray(leaf), naming(path)
        if path in _BY_TOKEN:
            values = values.copy()
            values[:4] = values[list(FROM_FAIRSEQ)]
        layers = enumerate(values) if "{layer}" in name else [(0, values)]
        for layer, tensor in layers:
            yield name.format(layer=layer), tensor.T if is_transposed(path) else tensor


def flatten(params: Params) -> dict[str, Any]:
    """{"encoder/layers/…/kernel": leaf}, the token table first."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {path_name(path): leaf for path, leaf in leaves}
    return {"token_embedding": named.pop("token_embedding")} | named


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _two(state: StateDict, name: str) -> tuple[int, int]:
    shape = state.shape(name)
    if len(shape) != 2:
        raise WeightsError(f"{state.file}: tensor {name!r} has the shape {shape}, expected two dimensions")
    return shape[0], shape[1]

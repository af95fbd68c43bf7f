"""`generate`: hypotheses for sources of any number and length, by way of batches of few shapes.

Legend: B sources, S source positions, K beams, V vocabulary, P tokens of a forced beginning.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deltalm_jax.decoding.arguments import (
    GenerationError,
    LengthLimit,
    Limits,
    allowed_mask,
    check_prefixes,
    check_sources,
    each,
)
from deltalm_jax.decoding.batching import Batch, Batching, plan_batches
from deltalm_jax.decoding.options import Requests, Sampling, SearchOptions
from deltalm_jax.decoding.search import SearchResult, search
from deltalm_jax.model.config import PAD_ID, ModelConfig, resolve_compute_dtype
from deltalm_jax.model.deltalm import Params

if TYPE_CHECKING:
    from deltalm_jax.saved_model import Model


class Hypothesis(NamedTuple):
    """What a search found.

    Attributes:
      tokens: ids, without the start token; the last is `</s>`, unless the rule let the hypothesis end at its limit
        without ("huggingface").
      score: as the rule has it; NaN where the model gives NaN, and the tokens then mean nothing.
    """

    tokens: tuple[int, ...]
    score: float


def generate(
    model: Model | tuple[ModelConfig, Params],
    sources: Any,
    *,
    beam_size: int = 5,
    max_length: int | Sequence[int] | LengthLimit | None = None,
    min_length: int | Sequence[int] = 1,
    length_penalty: float = 1.0,
    rule: str = "fairseq",
    early_stopping: bool = False,
    num_return: int = 1,
    no_repeat_ngram_size: int = 0,
    sampling: Sampling | None = None,
    seed: int = 0,
    prefixes: Sequence[Sequence[int]] | None = None,
    allowed_tokens: Any = None,
    banned_tokens: Sequence[int] = (),
    batching: Batching | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses for each source, best first.

    A source's hypotheses do not depend on the other sources, on their order or on padding; neither do its samples.

    Args:
      model: what `deltalm_jax.load_model` returns; or its configuration and parameters.
      sources: int ids [B, S], padded with `PAD_ID` anywhere; or a sequence of sequences of ids.
      beam_size: hypotheses looked at at a time; 1 is greedy decoding. Not used if sampling.
      max_length: most tokens of a hypothesis, the final `</s>` not counted: of all, of each, or by the source's length.
        None for 200, or as many as the model has positions for.
      min_length: fewest tokens before `</s>`, of all or of each.
      length_penalty, rule, early_stopping, no_repeat_ngram_size: see `SearchOptions`.
      num_return: hypotheses for each source; at most `beam_size`, unless sampling. There are fewer if no more were found.
      sampling: how to draw hypotheses at random; None for beam search.
      seed: of the draws. A source's draws depend on it and on the source's place among `sources`.
      prefixes: how the hypotheses of each source must begin, each a sequence of ids without `</s>`; may be empty.
      allowed_tokens: bool [V]: nothing else is generated, but `</s>` and the prefixes.
      banned_tokens: ids never generated, but as a prefix.
      batching: shapes of the batches.
      devices: that share each batch; by default where the parameters are.

    Raises:
      GenerationError, ValueError, TypeError: an argument is out of range or of another type; the message names the source.
    """
    options = SearchOptions(
        beam_size=beam_size if sampling is None else num_return,
        min_length=0,
        length_penalty=length_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        rule=rule,
        early_stopping=early_stopping,
        sampling=sampling,
    )
    if not 1 <= num_return <= options.beam_size:
        raise GenerationError(
            f"num_return must be between 1 and beam_size={options.beam_size}, found {num_return}: raise beam_size"
        )
    generator = Generator(
        model, options, allowed_tokens=allowed_tokens, banned_tokens=banned_tokens, batching=batching, devices=devices
    )
    found = generator(sources, max_length=max_length, min_length=min_length, prefixes=prefixes, seed=seed)
    return [hypotheses[:num_return] for hypotheses in found]


class Generator:
    """A model, ready to be asked several times; `generate` is one made for one call.

    Args:
      model, allowed_tokens, banned_tokens, batching, devices: as for `generate`.
      options: how to search; the lengths in it are not used.
    """

    def __init__(
        self,
        model: Model | tuple[ModelConfig, Params],
        options: SearchOptions,
        *,
        allowed_tokens: Any = None,
        banned_tokens: Sequence[int] = (),
        batching: Batching | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.config, params = model if isinstance(model, tuple) else (model.config, model.params)
        if self.config.is_encoder:
            raise GenerationError("the model is an encoder alone (num_decoder_layers=0), which writes nothing")
        self.options, self.batching = options, batching or Batching()
        self.dtype = resolve_compute_dtype(self.config, devices[0].platform if devices else jax.default_backend())
        self.mesh = Mesh(np.array(devices), ("data",)) if devices else None
        self.params = jax.device_put(params, NamedSharding(self.mesh, PartitionSpec()) if self.mesh else None)
        self.shapes: set[tuple[int, ...]] = set()  # of the programs compiled so far: rows, source and target length
        allowed_V = allowed_mask(self.config, allowed_tokens, banned_tokens)
        self._allowed_V = None if allowed_V is None else jnp.asarray(allowed_V)

    def __call__(
        self,
        sources: Any,
        *,
        max_length: int | Sequence[int] | LengthLimit | None = None,
        min_length: int | Sequence[int] = 1,
        prefixes: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        only: tuple[int, int] = (0, 1),
    ) -> list[list[Hypothesis]]:
        """All K hypotheses for each source; arguments as for `generate`, and

        numbers: of each source, which its samples are drawn by; by default 0, 1, 2 and so on.
        only: (i, n) decodes only every n-th batch from the i-th on; the sources of the others have no hypotheses.
        """
        sources = check_sources(self.config, sources)
        lengths = [len(source) for source in sources]
        numbers = range(len(sources)) if numbers is None else numbers
        limits = Limits.of(self.config, self.options, max_length, lengths)
        min_length_B = each("min_length", min_length, len(sources))
        prefixes = check_prefixes(self.config, prefixes, limits, len(sources))
        for source, (least, most) in enumerate(zip(min_length_B, limits.of_each, strict=True)):
            if not 0 <= least <= most:
                raise GenerationError(
                    f"min_length of source {source} must be between 0 and its max_length of {most}, found {least}"
                )
        key = jax.random.key(seed) if self.options.sampling is not None else None
        devices = self.mesh.size if self.mesh else 1
        plan = plan_batches(lengths, self.batching, self.config.max_length, devices)[only[0] :: only[1]]
        prefix_length = max(map(len, prefixes), default=0)
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for batch, result in _one_behind(
            (batch, self._run(batch, sources, limits, min_length_B, prefixes, prefix_length, key, numbers))
            for batch in plan
        ):
            for source, *arrays in zip(batch.sources, *map(np.asarray, result), strict=False):
                found[source] = _hypotheses(*arrays)
        return found

    def _run(
        self,
        batch: Batch,
        sources: list[np.ndarray],
        limits: Limits,
        min_length_B: list[int],
        prefixes: list[Sequence[int]],
        prefix_length: int,
        key: jax.Array | None,
        numbers: Sequence[int],
    ) -> SearchResult:
        """Starts the search for a batch."""
        tokens_BS = np.zeros((batch.rows, batch.length), np.int32)
        prefix_BP = np.full((batch.rows, prefix_length), PAD_ID, np.int32)
        least_B, most_B = np.zeros(batch.rows, np.int32), np.ones(batch.rows, np.int32)
        number_B = np.zeros(batch.rows, np.uint32)
        for row, source in enumerate(batch.sources):
            tokens_BS[row, : len(sources[source])] = sources[source]
            prefix_BP[row, : len(prefixes[source])] = prefixes[source]
            least_B[row], most_B[row] = min_length_B[source], limits.of_each[source]
            number_B[row] = numbers[source]
        options = dataclasses.replace(self.options, max_length=limits.of_bucket(batch.length))
        requests = Requests(
            min_length_B=jnp.asarray(least_B),
            max_length_B=jnp.asarray(most_B),
            prefix_BP=jnp.asarray(prefix_BP) if prefix_length else None,
            key_B=None if key is None else jax.vmap(functools.partial(jax.random.fold_in, key))(number_B),
            allowed_V=self._allowed_V,
        )
        self.shapes.add((batch.rows, batch.length, options.max_length, prefix_length))
        if self.mesh is None:
            return search(self.config, self.params, tokens_BS, options, requests, compute_dtype=self.dtype)
        given = frozenset(name for name, value in requests._asdict().items() if value is not None)
        sharded = _sharded_search(self.config, options, self.dtype, self.mesh, given)
        return sharded(self.params, tokens_BS, requests)


@functools.cache
def _sharded_search(config: ModelConfig, options: SearchOptions, dtype: str, mesh: Mesh, given: frozenset[str]) -> Any:
    """The search with each device at work on its own sources; `given` names the requests there are."""
    of_sources, whole = PartitionSpec("data"), PartitionSpec()
    named: dict[str, Any] = {name: whole if name == "allowed_V" else of_sources for name in given}
    specs = Requests(**named)

    def run(params: Params, tokens_BS: jax.Array, requests: Requests) -> SearchResult:
        return search(config, params, tokens_BS, options, requests, compute_dtype=dtype)

    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(whole, of_sources, specs), out_specs=of_sources, check_vma=False)
    )


def _one_behind(started: Iterator[Any]) -> Iterator[Any]:
    """The same, each given out when the one after it has been started: so the device need not wait for the host."""
    before = None
    for this in started:
        if before is not None:
            yield before
        before = this
    if before is not None:
        yield before


def _hypotheses(tokens_KT: np.ndarray, scores_K: np.ndarray, lengths_K: np.ndarray) -> list[Hypothesis]:
    return [
        Hypothesis(tuple(tokens_T[:length].tolist()), float(score))
        for tokens_T, score, length in zip(tokens_KT, scores_K, lengths_K, strict=True)
        if score != -np.inf
    ]

"""The optimizer (optax): clipping, Adam, Adafactor or Muon, decoupled weight decay, and learning rates by step and place.

gradient ─ clip by global norm ─ Adam | Adafactor | Muon ─ + weight decay · parameter ─ × factor of the leaf ─ × -rate(step)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltalm_jax.errors import UserError
from deltalm_jax.fields import check_types
from deltalm_jax.parallel.sharding import path_name

# Names of leaves that weight decay leaves alone: it pulls towards 0, which is no sensible value for a norm's scale.
NOT_DECAYED = ("bias", "scale")
OPTIMIZERS = ("adam", "adafactor", "muon")
SCHEDULES = ("linear", "inverse_sqrt")

# Scale of Muon's updates, root mean square, at which Adam's learning rate and decay serve for both (Liu et al. 2025,
# "Muon is scalable for LLM training", section 2.2).
_MUON_RMS = 0.2


class OptimizerError(UserError, ValueError):
    """The optimizer's configuration does not fit the model."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in the paper's run; what the paper leaves open says so.

    Attributes:
      name: "adam"; "adafactor" (a factored second moment and no first: little memory; updates are relative to the
        parameters' size, so `learning_rate` is of the order 1e-2); or "muon" (orthogonalised momentum for the layers'
        matrices, Adam for everything else).
      learning_rate: peak. The paper does not state it; its neighbours used 1e-4 (mT6) to 2e-4 (InfoXLM).
      schedule: what follows the warm-up: "linear" decay (the paper's pretraining), or "inverse_sqrt", the peak times
        √(warmup_steps / step), as in fairseq and the official fine-tuning recipes.
      warmup_steps: steps of linear rise from 0 (paper: 10,000).
      decay_steps: step at which the linear decay reaches `final_learning_rate` (paper: 600,000, the length of the
        run). A field of its own: stopping earlier does not move the schedule. "inverse_sqrt" has no such end, but
        `DataConfig.max_epochs` counts up to it.
      final_learning_rate: value at and after `decay_steps`; of "inverse_sqrt" the least.
      beta1, beta2: Adam's (paper: 0.9, 0.999).
      epsilon: Adam's; not stated; 1e-6 in mT6 and InfoXLM.
      muon_momentum: Muon's momentum.
      weight_decay: not stated; 0.01 in InfoXLM. Not applied to biases and LayerNorm scales.
      gradient_clip_norm: global norm above which gradients are scaled down (paper: 1.0); 0 is off.
      learning_rate_factors: {regular expression: factor}. A parameter's rate is multiplied with the factor of the first
        expression that is found in its path (such as "encoder/layers/self_attention/query/kernel"); 0 freezes it.
      layer_decay: on either side, layer n of N has its rate multiplied with layer_decay ** (N - 1 - n), and the
        embeddings with layer_decay ** N; 1 is off.
      ema_decay: decay, a step, of an exponential moving average of the parameters, kept beside them and used for
        validation; 0 keeps none.
    """

    name: str = "adam"
    learning_rate: float = 2e-4
    schedule: str = "linear"
    warmup_steps: int = 10_000
    decay_steps: int = 600_000
    final_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    muon_momentum: float = 0.95
    weight_decay: float = 0.01
    gradient_clip_norm: float = 1.0
    learning_rate_factors: dict[str, float] = dataclasses.field(default_factory=dict)
    layer_decay: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.name not in OPTIMIZERS:
            raise ValueError(f"OptimizerConfig.name must be one of {', '.join(OPTIMIZERS)}, found {self.name!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"OptimizerConfig.schedule must be one of {', '.join(SCHEDULES)}, found {self.schedule!r}")
        if self.learning_rate <= 0:
            raise ValueError(f"OptimizerConfig.learning_rate must be positive, found {self.learning_rate}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "gradient_clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"OptimizerConfig.{name} must not be negative, found {getattr(self, name)}")
        if self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"OptimizerConfig.decay_steps ({self.decay_steps}) must lie after warmup_steps ({self.warmup_steps})"
            )
        for name in ("beta1", "beta2", "muon_momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"OptimizerConfig.{name} must lie in [0, 1), found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"OptimizerConfig.layer_decay must lie in (0, 1], found {self.layer_decay}")
        for pattern, factor in self.learning_rate_factors.items():
            where = f"OptimizerConfig.learning_rate_factors[{pattern!r}]"
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{where} is no regular expression: {error}") from error
            if factor < 0:
                raise ValueError(f"{where} must not be negative, found {factor}")


def learning_rate(config: OptimizerConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of update `step` (from 0): the first is peak / warmup_steps, update `warmup_steps` - 1 the peak."""
    done = jnp.asarray(step, jnp.float32) + 1.0
    warm = done / max(config.warmup_steps, 1)
    floor = config.final_learning_rate / config.learning_rate
    if config.schedule == "inverse_sqrt":
        after = jnp.maximum(jnp.sqrt(max(config.warmup_steps, 1) / done), floor)
    else:
        decay = (config.decay_steps - done) / (config.decay_steps - config.warmup_steps)
        after = floor + (1.0 - floor) * jnp.clip(decay, 0.0, 1.0)
    return config.learning_rate * jnp.where(done < config.warmup_steps, warm, after)


def decay_mask(params: Any) -> Any:
    """True for each leaf that weight decay applies to: all but biases and LayerNorm scales, by name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _last(path) not in NOT_DECAYED, params)


def learning_rate_factors(config: OptimizerConfig, params: Any) -> Any:
    """What each leaf's learning rate is multiplied with (`learning_rate_factors` times `layer_decay`).

    Args:
      config: the optimizer's.
      params: parameters, or their shapes.

    Returns:
      A tree like `params` of float32 arrays that broadcast to the leaves: scalars, and [N, 1, …] for stacked layers.

    Raises:
      OptimizerError: an expression fits no parameter.
    """
    depths = {side: _depth(params[side]) for side in ("encoder", "decoder") if side in params}
    unused = set(config.learning_rate_factors)

    def factor(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name = path_name(path)
        matching = [pattern for pattern in config.learning_rate_factors if re.search(pattern, name)]
        unused.difference_update(matching)
        by_name = config.learning_rate_factors[matching[0]] if matching else 1.0
        side, _, rest = name.partition("/")
        # The token table is shared by both sides; it lies below the deeper one.
        depth = depths.get(side, max(depths.values(), default=0))
        if rest.startswith("layers/"):
            exponents = (depth - 1 - np.arange(depth)).reshape(-1, *[1] * (len(leaf.shape) - 1))
        else:
            exponents = np.asarray(depth if "embedding" in name else 0)
        return np.asarray(by_name * config.layer_decay**exponents, np.float32)

    factors = jax.tree_util.tree_map_with_path(factor, params)
    if unused:
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise OptimizerError(
            f"OptimizerConfig.learning_rate_factors: {', '.join(map(repr, sorted(unused)))} is found in no parameter's "
            f"path. Paths are such as {', '.join(names[:: max(1, len(names) // 5)])}"
        )
    return factors


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The whole of the module's first lines as one optax transformation."""
    clip = optax.clip_by_global_norm(config.gradient_clip_norm) if config.gradient_clip_norm else optax.identity()
    chain = [clip, _preconditioner(config), optax.add_decayed_weights(config.weight_decay, mask=decay_mask)]
    if config.learning_rate_factors or config.layer_decay != 1:
        chain.append(
            optax.stateless(
                lambda updates, params: jax.tree.map(jnp.multiply, updates, learning_rate_factors(config, params))
            )
        )
    return optax.chain(*chain, optax.scale_by_learning_rate(lambda count: learning_rate(config, count)))


def _preconditioner(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adafactor":
        # As `optax.adafactor` without momentum (Shazeer & Stern 2018), short of its sign and learning rate. Stacked layers
        # share one clipping threshold and one scale.
        return optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.name == "adam":
        return adam
    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=_matrix_axes),
        # Orthogonal [I, O] matrices have root mean square 1 / √max(I, O).
        optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * _MUON_RMS * max(u.shape[-2:]) ** 0.5, updates)),
    )
    return optax.partition({"muon": muon, "adam": adam}, _muon_or_adam)


def _muon_or_adam(params: Any) -> Any:
    """Muon takes the kernels of the stacked layers, [N, I, O]."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if _last(path) == "kernel" else "adam", params)


def _matrix_axes(kernels: Any) -> Any:
    return jax.tree.map(lambda kernel: optax.contrib.MuonDimensionNumbers(kernel.ndim - 2, kernel.ndim - 1), kernels)


def _depth(side: Any) -> int:
    return jax.tree.leaves(side["layers"])[0].shape[0]


def _last(path: tuple[Any, ...]) -> str:
    return path_name(path[-1:])

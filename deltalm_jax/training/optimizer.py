"""The optimizer: Adam with decoupled weight decay, clipping, linear warm-up and linear decay (optax)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deltalm_jax.fields import check_types

# Names of leaves that weight decay leaves alone: it pulls towards 0, which is no sensible value for a norm's scale.
NOT_DECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in the paper's run; what the paper leaves open says so.

    Attributes:
      learning_rate: peak. The paper does not state it; its neighbours used 1e-4 (mT6) to 2e-4 (InfoXLM).
      warmup_steps: steps of linear rise from 0 (paper: 10,000).
      decay_steps: step at which the linear decay reaches `final_learning_rate` (paper: 600,000, the length of the
        run). A field of its own: stopping earlier does not move the schedule.
      final_learning_rate: value at and after `decay_steps`.
      beta1, beta2: paper: 0.9, 0.999.
      epsilon: not stated; 1e-6 in mT6 and InfoXLM.
      weight_decay: not stated; 0.01 in InfoXLM. Not applied to biases and LayerNorm scales.
      gradient_clip_norm: global norm above which gradients are scaled down (paper: 1.0); 0 is off.
    """

    learning_rate: float = 2e-4
    warmup_steps: int = 10_000
    decay_steps: int = 600_000
    final_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    gradient_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.learning_rate <= 0:
            raise ValueError(f"OptimizerConfig.learning_rate must be positive, found {self.learning_rate}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "gradient_clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"OptimizerConfig.{name} must not be negative, found {getattr(self, name)}")
        if self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"OptimizerConfig.decay_steps ({self.decay_steps}) must lie after warmup_steps ({self.warmup_steps})"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"OptimizerConfig.{name} must lie in [0, 1), found {getattr(self, name)}")


def learning_rate(config: OptimizerConfig, step: jax.Array | int) -> jax.Array:
    """Learning rate of update `step` (from 0): the first is peak / warmup_steps, update `warmup_steps` - 1 the peak."""
    done = jnp.asarray(step, jnp.float32) + 1.0
    warm = done / max(config.warmup_steps, 1)
    decay = (config.decay_steps - done) / (config.decay_steps - config.warmup_steps)
    floor = config.final_learning_rate / config.learning_rate
    return config.learning_rate * jnp.where(
        done < config.warmup_steps, warm, floor + (1.0 - floor) * jnp.clip(decay, 0.0, 1.0)
    )


def decay_mask(params: Any) -> Any:
    """True for each leaf that weight decay applies to: all but biases and LayerNorm scales, by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], "key", path[-1])) not in NOT_DECAYED, params
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip by global norm → Adam → decoupled weight decay → minus learning rate, as one optax transformation."""
    clip = optax.clip_by_global_norm(config.gradient_clip_norm) if config.gradient_clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(lambda count: learning_rate(config, count)),
    )

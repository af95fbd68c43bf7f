"""DeltaLM pretraining in JAX: from raw text to a sharded, resumable run (paper: arXiv 2106.13736).

`load_model(path)` gives a model that computes, from a run's directory or from a folder that
`python -m deltalm_jax.convert` wrote:

    model = deltalm_jax.load_model("runs/pretrain_tiny")
    model.config                                        # ModelConfig
    model.encode(tokens_BS)                             # float32 [B, S, D]
    model.logits(tokens_BS, decoder_tokens_BT)          # float32 [B, T, V]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from deltalm_jax.saved_model import Model

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"


def load_model(path: str | Path) -> Model:
    """Loads a model onto the default device; see `deltalm_jax.saved_model.open_model` for what `path` may be."""
    # Imported late: commands that only print their help should not wait for jax.
    from deltalm_jax.saved_model import load_model as load

    return load(path)

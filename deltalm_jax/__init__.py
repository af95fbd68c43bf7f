"""DeltaLM pretraining in JAX: from raw text to a sharded, resumable run (paper: arXiv 2106.13736)."""

__version__ = "0.1.0"

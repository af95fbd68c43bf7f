"""The error of readers of corpora."""

from __future__ import annotations

from deltalm_jax.errors import UserError


class CorpusError(UserError, ValueError):
    """A corpus file or folder that cannot be used; the message names the file, the place in it, and what to do."""

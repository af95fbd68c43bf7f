"""The project's own commands, as benchmarks start them."""

from __future__ import annotations

import subprocess
import sys


def run_command(name: str, *flags: str) -> None:
    """Runs `python -m deltalm_jax.NAME`, which speaks on stderr; ends this process with its exit code if that is not 0."""
    done = subprocess.run([sys.executable, "-m", f"deltalm_jax.{name}", *flags], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)

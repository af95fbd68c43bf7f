"""Compiler flags by platform, all in this file: `python -m deltalm_jax.parallel.flags tpu` prints NAME=value lines.

`launch/train.sh` sets them for the training that it starts; the training command itself changes no environment. By hand:

    export "$(python -m deltalm_jax.parallel.flags gpu)"

What the environment says already wins, flag by flag. This module imports no jax: flags count only before jax starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

# libtpu schedules collectives beside arithmetic by itself: of the documented flags for that
# (https://docs.jax.dev/en/latest/xla_flags.html) none changes what libtpu 0.0.42 compiles. Those tried: docs/pods.md.
_TPU: tuple[str, ...] = ()

# Documented at https://docs.jax.dev/en/latest/gpu_performance_tips.html, known to jaxlib 0.10.
_GPU = (
    # Starts collectives early and waits for them late, so that they run beside arithmetic. Off by default.
    "--xla_gpu_enable_latency_hiding_scheduler=true",
)

# Platform → the variable that its compiler reads, and our flags for it. An unknown flag in either ends the process.
PLATFORMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tpu": ("LIBTPU_INIT_ARGS", _TPU),
    "gpu": ("XLA_FLAGS", _GPU),
}


def settings(platform: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set for a platform.

    Args:
      platform: a key of PLATFORMS.
      environment: what is set already; a flag named there keeps the value that it has there.

    Returns:
      Variable → its whole value: our flags, then all that was there. Empty if there is nothing to add.
    """
    variable, flags = PLATFORMS[platform]
    present = environment.get(variable, "").split()
    named = {flag.partition("=")[0] for flag in present}
    ours = [flag for flag in flags if flag.partition("=")[0] not in named]
    return {variable: " ".join(ours + present)} if ours else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints `settings` of the platform named in the arguments; 2 is the exit code of a platform that there is not."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0] not in PLATFORMS:
        print(
            f"error: expected one of {', '.join(PLATFORMS)}, found {' '.join(arguments) or 'nothing'}", file=sys.stderr
        )
        return 2
    for variable, value in settings(arguments[0], os.environ).items():
        print(f"{variable}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Eight simulated devices for the tests of sharding; everything else uses the first."""

from __future__ import annotations

import os

# Before anything imports jax. Tests compile much and compute little, so code is compiled quickly rather than well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

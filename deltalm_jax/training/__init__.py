"""The training run: configuration, step, loop, checkpoints, metrics."""

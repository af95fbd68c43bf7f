"""Measurements behind what the project says of its speed: each a command that prints its figures beside its peers'.

    python -m benchmarks.corruption [--json]
    python -m benchmarks.stream [--json]
    python -m benchmarks.vocabulary_loss [--json]
    python -m benchmarks.loop [--json]
    python -m benchmarks.scaling [--json]
    python -m benchmarks.startup [--json]
    python -m benchmarks.attention [--rows N] [--json]
    python -m benchmarks.verify

Run them from the repository's root; they are no part of the installed package.
"""

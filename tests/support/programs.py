"""What a traced program computes, counted from its text."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend import core


def matrix_product_operations(jaxpr: Any) -> int:
    """Operations of all matrix products in a program: 2 · size of the result · size contracted, times loop lengths."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = jax.tree.leaves(list(equation.params.values()))
        nested = [value for value in inner if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))]
        counts = [matrix_product_operations(value) for value in nested]
        # Of alternatives one is run; all of ours multiply alike.
        total += times * (max(counts) if equation.primitive.name == "cond" else sum(counts))
    return total

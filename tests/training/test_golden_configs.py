"""Every shipped configuration as it was when last looked at: values, shapes of a step, parameters and how they are split.

A change here is a change of what users run. Write the files anew, and read the difference, with

    python -m tests.training.test_golden_configs
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh

import configs
from deltalm_jax.parallel.mesh import AXES
from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.step import abstract_state

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "configs"
SHIPPED = sorted(path.name for path in pathlib.Path(configs.__path__[0]).glob("*.gin"))
MESH = (1, 4, 1, 1, 2, 2)  # sizes of AXES


def described(name: str) -> dict[str, Any]:
    """What the golden file of a shipped configuration holds; JSON-able."""
    config = load([name])
    state = abstract_state(config.model, config.optimizer, AbstractMesh(MESH, AXES), config.contrast_or_none)

    def shown(leaf: jax.ShapeDtypeStruct) -> str:
        return f"{leaf.dtype}{list(leaf.shape)} split {[axis or '-' for axis in leaf.sharding.spec]}"

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        "values": config.values(),
        "batch, inputs, targets": config.step_shapes(),
        f"state on {dict(zip(AXES, MESH, strict=True))}": {path_name(path): shown(leaf) for path, leaf in leaves},
    }


def golden_file(name: str) -> pathlib.Path:
    return GOLDEN / f"{pathlib.Path(name).stem}.json"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_what_it_was(name):
    found = json.loads(json.dumps(described(name)))
    assert found == json.loads(golden_file(name).read_text(encoding="utf-8"))


def test_no_golden_file_is_left_over():
    assert sorted(GOLDEN.iterdir()) == [golden_file(name) for name in SHIPPED]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for shipped in SHIPPED:
        golden_file(shipped).write_text(json.dumps(described(shipped), indent=1) + "\n", encoding="utf-8")

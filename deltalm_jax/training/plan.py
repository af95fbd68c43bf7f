"""What XLA makes of a training step on a TPU pod: does it fit, what travels, and how fast could it be at most.

The step is the real one, lowered with the real shardings and compiled by libtpu, on any machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deltalm_jax.model.kernels import resolve_attention
from deltalm_jax.parallel.mesh import AXES, DATA_AXES, make_mesh, mesh_sizes
from deltalm_jax.parallel.program import Collective, read_program
from deltalm_jax.parallel.sharding import check_batch, in_layers, parameter_specs, split_dimensions
from deltalm_jax.parallel.topology import Topology, parse_topology
from deltalm_jax.training.config import Config
from deltalm_jax.training.flops import flops_per_step
from deltalm_jax.training.step import abstract_state, for_products, make_train_step

COMPUTE_DTYPE = "bfloat16"  # as "auto" has it on a TPU


def plan(config: Config, topology_name: str, cache: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a configuration's training step for a topology.

    Args:
      config: the run's configuration; its mesh is taken as it is.
      topology_name: see `parallel.topology`.
      cache: folder of earlier results, by program, versions and how they are read; None for none.

    Returns:
      JSON-able:
        topology, chips, devices, mesh, accumulation_steps, remat, attention
        fits, refusal: whether XLA compiles it, and what it says if not (a sentence; "" if it fits)
        hbm_bytes, hbm_capacity, hbm_share: a device's memory in all, what it has, and the share; `hbm` has it by part
        model_flops: operations of a step, all devices together (`training.flops`)
        collectives: kind, axis, network ("ICI" or "DCN"), bytes that a device sends in a step, count
        collective_bytes, collective_bytes_least: their sum, and what the sharding needs at least
        roofline_seconds: compute, hbm, network: what a step takes at least for each; step: the longest of the first two,
          and the network's on top of it as if nothing overlapped
        mfu_bound: model FLOPs utilisation at that speed
        compile_seconds

    Raises:
      MeshError: mesh, devices and batch do not go together.
      TopologyError: it cannot be compiled for.
    """
    topology = parse_topology(topology_name)
    devices = topology.devices()
    mesh = make_mesh(config.mesh, devices)
    check_batch(config.data.objective_batch_sizes, mesh, config.train.accumulation_steps)
    state = abstract_state(config.model, config.optimizer, mesh, config.contrast_or_none)
    step: Any = make_train_step(
        config.model, config.optimizer, config.loss, mesh,
        seed=config.train.seed, compute_dtype=COMPUTE_DTYPE, accumulation_steps=config.train.accumulation_steps,
        decoder_start=config.data.decoder_start, groups=config.data.groups(), contrast=config.contrast_or_none,
    )  # fmt: skip
    batch = {
        group: {
            name: jax.ShapeDtypeStruct((config.data.objective_batch_sizes[group], length), np.int32)
            for name, length in zip(("inputs", "targets"), lengths, strict=True)
        }
        for group, lengths in config.data.shapes().items()
    }
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
    reading = [pathlib.Path(inspect.getfile(code)).read_text(encoding="utf-8") for code in (plan, read_program)]
    key = hashlib.sha256(
        "\n".join([topology_name, jax.__version__, _libtpu_version(), *reading, lowered.as_text()]).encode()
    ).hexdigest()
    file = None if cache is None else cache / f"{key}.json"
    if file is not None and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))

    flops = flops_per_step(config.model, config.step_shapes())
    capacity = topology.generation.hbm_bytes * topology.chips // len(devices)
    result: dict[str, Any] = {
        "topology": topology_name,
        "chips": topology.chips,
        "devices": len(devices),
        "mesh": mesh_sizes(mesh),
        "accumulation_steps": config.train.accumulation_steps,
        "remat": config.model.remat,
        "attention": str(resolve_attention(config.model, devices[0], COMPUTE_DTYPE)),
        "hbm_capacity": capacity,
        "model_flops": flops.total,
    }
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result |= {"fits": False, "refusal": _refusal(str(error))} | dict.fromkeys(
            ("hbm_bytes", "hbm_share", "collectives", "roofline_seconds", "mfu_bound")
        )
    else:
        passes = len(batch) * config.train.accumulation_steps
        result |= {"fits": True, "refusal": ""}
        result |= _memory(compiled.memory_analysis(), state, mesh, capacity)
        result |= _traffic(compiled.as_text(), state, mesh, topology, flops.total, passes)
    result["compile_seconds"] = round(time.monotonic() - began, 1)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result), encoding="utf-8")
    return result


def _libtpu_version() -> str:
    return importlib.metadata.version("libtpu")


def _refusal(message: str) -> str:
    """XLA's own words on memory, in a line."""
    found = re.search(r"(Used .*? of .*?\.|Ran out of memory[^\n]*)", message)
    return " ".join((found[0] if found else message.splitlines()[0]).split())


def _memory(analysis: Any, state: Any, mesh: Mesh, capacity: int) -> dict[str, Any]:
    def held(tree: Any) -> int:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    # Not the sum of sizes: temporary memory that is needed at different times counts more than once in it.
    total = analysis.peak_memory_in_bytes + analysis.generated_code_size_in_bytes
    parts = {"parameters": held(state["params"]), "optimizer": held(state["optimizer"])}
    if "ema" in state:
        parts["ema"] = held(state["ema"])
    parts["program"] = analysis.generated_code_size_in_bytes
    # Gathered parameters, gradients, activations, a block's logits: what lives while a step runs.
    parts["during a step"] = total - sum(parts.values())
    return {"hbm_bytes": total, "hbm_share": total / capacity, "hbm": parts}


def _traffic(text: str, state: Any, mesh: Mesh, topology: Topology, flops: float, passes: int) -> dict[str, Any]:
    program = read_program(text)
    totals: dict[tuple[str, str], list[Any]] = {}
    for collective in program.collectives:
        entry = totals.setdefault((collective.kind, _axes_of(collective, mesh)), [0.0, 0])
        entry[0] += collective.sent
        entry[1] += collective.times
    generation, per_chip = topology.generation, mesh.size // topology.chips
    seconds = {"ICI": 0.0, "DCN": 0.0}
    collectives = []
    for (kind, axes), (sent, count) in sorted(totals.items(), key=lambda item: -item[1][0]):
        network = "DCN" if "slice" in axes else "ICI"
        collectives.append({"kind": kind, "axis": axes, "network": network, "bytes": round(sent), "count": count})
        # Round a ring in both directions: two links. A sum over slices goes through each device's share of the DCN.
        speed = generation.dcn_bandwidth if network == "DCN" else 2 * generation.link_bandwidth
        seconds[network] += sent / (speed / per_chip)
    compute = flops / (generation.flops * topology.chips)
    roofline = {
        "compute": compute,
        "hbm": program.memory_bytes / (generation.hbm_bandwidth / per_chip),
        "network": seconds["ICI"] + seconds["DCN"],
    }
    roofline["step"] = max(roofline["compute"], roofline["hbm"]) + roofline["network"]
    return {
        "collectives": collectives,
        "collective_bytes": round(sum(c["bytes"] for c in collectives)),
        "collective_bytes_least": round(least_bytes(state["params"], mesh, passes)),
        "roofline_seconds": roofline,
        "mfu_bound": compute / roofline["step"],
    }


def _axes_of(collective: Collective, mesh: Mesh) -> str:
    """The mesh axes that a group's devices differ in: "data_x", "data_x × fsdp"."""
    # XLA numbers a program's devices by their place in the mesh.
    places = np.array(np.unravel_index(list(collective.group), tuple(mesh.shape[a] for a in AXES)))
    return " × ".join(axis for axis, row in zip(AXES, places, strict=True) if len(set(row.tolist())) > 1)


def least_bytes(params: Any, mesh: Mesh, passes: int) -> float:
    """Bytes that each device sends in a step at least, with parameters split as they are; `tensor`'s are not counted.

    Of each parameter, once a step: the compute dtype gathered over `data`, and the float32 gradient summed and split over
    `data`, of each n - 1 of n parts; then the part summed over `slice`, twice. Over `fsdp` likewise, but layers are
    gathered for each pass forward, and backward again.

    Args:
      params: shapes.
      mesh: the mesh.
      passes: groups times microbatches.
    """
    data, slices, fsdp = math.prod(mesh.shape[a] for a in DATA_AXES), mesh.shape["slice"], mesh.shape["fsdp"]
    specs = jax.tree.leaves(parameter_specs(params, mesh))
    cast = jax.eval_shape(lambda params: for_products(params, COMPUTE_DTYPE), params)
    total = 0.0
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(cast), specs, strict=True):
        axes = {axis for _, axis in split_dimensions(spec, AXES)}
        size = math.prod(leaf.shape) / (mesh.shape["tensor"] if "tensor" in axes else 1)
        gathered = leaf.dtype.itemsize
        if "fsdp" in axes:
            total += size * (fsdp - 1) / fsdp * (passes * (2 * gathered + 4) if in_layers(path) else gathered + 4)
            size /= fsdp
        if axes & set(DATA_AXES):
            total += size * (data - 1) / data * (gathered + 4)
            total += size / data * 4 * 2 * (slices - 1) / slices
        else:
            total += size * 4 * 2 * (data * slices - 1) / (data * slices)
    return total

"""Processes and devices: joining the processes of a run, and arranging their devices in a mesh."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deltalm_jax.errors import UserError
from deltalm_jax.fields import check_types, operational

AXES = ("data", "fsdp", "tensor")


class MeshError(UserError, ValueError):
    """The devices, the mesh and the batch do not go together, or the processes are not told how to meet."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. All fields are operational: a run may resume on another arrangement.

    Attributes:
      data: ways the batch is split with parameters whole; -1 takes all devices the other axes leave.
      fsdp: ways the batch is split with parameters split too (gathered layer by layer).
      tensor: ways matrices and the vocabulary are split.
    """

    data: int = operational(-1)
    fsdp: int = operational(1)
    tensor: int = operational(1)

    def __post_init__(self) -> None:
        check_types(self)
        for name in AXES:
            value = getattr(self, name)
            if value < 1 and not (name == "data" and value == -1):
                raise ValueError(
                    f"MeshConfig.{name} must be a positive integer{' or -1' * (name == 'data')}, found {value!r}"
                )


def initialize_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the run; must come before anything touches a device.

    Args:
      coordinator: "host:port" of process 0, or "auto" to read TPU, SLURM or MPI surroundings; None for one process.
      num_processes: processes in all (with an explicit coordinator).
      process_id: this process's number.

    Raises:
      MeshError: only some of the three are given.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise MeshError("--num_processes and --process_id need --coordinator=HOST:PORT of process 0 as well")
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise MeshError(
                f"--coordinator=auto found no TPU pod, SLURM or MPI surroundings ({error}); pass --coordinator=HOST:PORT "
                "--num_processes=N --process_id=I"
            ) from error
        return
    if num_processes is None or process_id is None:
        raise MeshError(f"--coordinator={coordinator} needs --num_processes and --process_id as well")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor` over all devices of all processes.

    Raises:
      MeshError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices) or data < 1:
        raise MeshError(
            f"MeshConfig(data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}) does not cover "
            f"{len(devices)} devices: data × fsdp × tensor must equal their number"
        )
    shape = (data, config.fsdp, config.tensor)
    if devices[0].platform == "cpu":  # no interconnect to follow; keep each process's devices together
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)

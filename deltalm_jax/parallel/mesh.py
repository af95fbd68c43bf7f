"""Processes and devices: joining the processes of a run, and arranging their devices in a mesh."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from deltalm_jax.errors import UserError
from deltalm_jax.fields import check_types, operational
from deltalm_jax.parallel.listening import bind_address, exposure_warning, is_loopback, keep_gloo_on_loopback

# `data` is three axes of the mesh, one for each dimension of a TPU's torus (elsewhere all but the first have one device):
# libtpu scatters a sum round a ring, but what goes over a plane it sums in full first, at twice the traffic.
DATA_AXES = ("data_x", "data_y", "data_z")
AXES = ("slice", *DATA_AXES, "fsdp", "tensor")

# The processes of a run may start minutes apart. jax itself aborts the process where it gives up: later than we do.
JOIN_SECONDS = 300
_TIMEOUTS: Any = {
    "initialization_timeout": JOIN_SECONDS + 30,
    # At the end, all processes have been heard of (`training.peers`) before jax's own barrier.
    "shutdown_timeout_seconds": 30,
}


class MeshError(UserError, ValueError):
    """The devices, the mesh and the batch do not go together, or the processes are not told how to meet."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. All fields are operational: a run may resume on another arrangement.

    Attributes:
      slices: TPU slices, each with a fast network inside (ICI) and a slow one between them (DCN); each slice has all
        parameters, and only gradients travel between slices, each device's own part of them.
      data: ways the batch is split, with parameters gathered whole once a step; -1 takes all devices the other axes leave.
      fsdp: ways the batch is split, with parameters gathered layer by layer: less memory, more traffic.
      tensor: ways matrices and the vocabulary are split.
    """

    slices: int = operational(1)
    data: int = operational(-1)
    fsdp: int = operational(1)
    tensor: int = operational(1)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("slices", "data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value < 1 and not (name == "data" and value == -1):
                raise ValueError(
                    f"MeshConfig.{name} must be a positive integer{' or -1' * (name == 'data')}, found {value!r}"
                )


def check_process_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Whether the flags of several processes go together; arguments as for `initialize_processes`, which asks too.

    Raises:
      MeshError: only some of the three are given.
    """
    if coordinator is None and not (num_processes is None and process_id is None):
        raise MeshError("--num_processes and --process_id need --coordinator=HOST:PORT of process 0 as well")
    if coordinator not in (None, "auto") and (num_processes is None or process_id is None):
        raise MeshError(f"--coordinator={coordinator} needs --num_processes and --process_id as well")


def initialize_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the run; must come before anything touches a device.

    Args:
      coordinator: "host:port" of process 0, or "auto" to read TPU, SLURM or MPI surroundings; None for one process.
      num_processes: processes in all (with an explicit coordinator).
      process_id: this process's number.

    Raises:
      MeshError: only some of the three are given.
    """
    check_process_flags(coordinator, num_processes, process_id)
    if coordinator is None:
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize(**_TIMEOUTS)
        except (ValueError, RuntimeError) as error:
            raise MeshError(
                f"--coordinator=auto found no TPU pod, SLURM or MPI surroundings ({error}); pass --coordinator=HOST:PORT "
                "--num_processes=N --process_id=I"
            ) from error
        if jax.process_index() == 0:
            print(exposure_warning(coordinator, None), file=sys.stderr, flush=True)
        return
    local = is_loopback(coordinator.rpartition(":")[0])
    if local:
        keep_gloo_on_loopback()
    bound = bind_address(coordinator) if process_id == 0 else None
    if process_id == 0 and not local:
        print(exposure_warning(coordinator, bound), file=sys.stderr, flush=True)
    jax.distributed.initialize(coordinator, num_processes, process_id, coordinator_bind_address=bound, **_TIMEOUTS)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `AXES` over all devices of all processes.

    On TPUs the axes follow the wiring of a slice, and the `slice` axis the slices.

    Raises:
      MeshError: the axis sizes do not multiply to the number of devices, or there are other slices than said.
    """
    devices = jax.devices() if devices is None else devices
    inner = config.slices * config.fsdp * config.tensor
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices) or data < 1:
        raise MeshError(
            f"MeshConfig(slices={config.slices}, data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}) does not "
            f"cover {len(devices)} devices: slices × data × fsdp × tensor must equal their number"
        )
    if devices[0].platform != "tpu":  # no wiring to follow; keep each process's devices together
        array = np.array(devices).reshape(config.slices, data, 1, 1, config.fsdp, config.tensor)
        return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    slices = sorted({getattr(device, "slice_index", 0) for device in devices})
    if len(slices) != config.slices:
        raise MeshError(
            f"MeshConfig.slices is {config.slices}, but these {len(devices)} devices form {len(slices)} slice(s): set "
            f"MeshConfig.slices = {len(slices)}"
        )
    by_slice = [[d for d in devices if getattr(d, "slice_index", 0) == number] for number in slices]
    shape = (*_rings(data, by_slice[0]), config.fsdp, config.tensor)
    arrays = [_along_wires(shape, part) for part in by_slice]
    return Mesh(np.stack(arrays), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _along_wires(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    if _cores(devices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # A compiler's v4 has a device for each core, which `mesh_utils` refuses: the two of a chip are neighbours along x.
    places = sorted(devices, key=lambda device: (device.coords[0], device.core_on_chip, *device.coords[1:]))
    return np.array(places).reshape(shape)


def _cores(devices: Sequence[jax.Device]) -> int:
    """Devices of one chip."""
    return 1 + max(getattr(device, "core_on_chip", 0) for device in devices)


def _rings(data: int, devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """`data` as a product of up to three dimensions of the devices' torus, if it is one; else (data, 1, 1)."""
    torus = [1 + max(device.coords[i] for device in devices) for i in range(3)]
    torus[0] *= _cores(devices)
    for count in range(3, 0, -1):
        for sizes in itertools.combinations([size for size in torus if size > 1], count):
            if math.prod(sizes) == data:
                return (*sizes, 1, 1, 1)[:3]
    return data, 1, 1


def mesh_sizes(mesh: Mesh | jax.sharding.AbstractMesh) -> dict[str, int]:
    """Devices along each axis as `MeshConfig` has them: slices, data, fsdp, tensor."""
    data = math.prod(mesh.shape[axis] for axis in DATA_AXES)
    return {"slices": mesh.shape["slice"], "data": data, "fsdp": mesh.shape["fsdp"], "tensor": mesh.shape["tensor"]}

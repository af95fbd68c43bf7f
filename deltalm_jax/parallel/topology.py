"""TPU pods by name, as the compiler and a roofline see them, on a machine that need not have any.

Names are a generation and the dimensions of its torus, "v5e:16x16"; "2*v5e:8x8" is two such slices, joined by DCN.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from deltalm_jax.errors import UserError

if TYPE_CHECKING:
    import jax

GIB = 2**30


class TopologyError(UserError, ValueError):
    """There is no such topology, or nothing here to compile for it."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What one chip has, of which jax may make two devices. Google's data sheets; links and DCN as measured by the authors of
    "How to Scale Your Model" (2025, chapter 2).

    Attributes:
      flops: peak of dense bfloat16 products, operations a second.
      hbm_bytes: memory.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second that one ICI link carries one way; a ring uses two.
      dcn_bandwidth: bytes a second that leave the slice.
      accelerator_type: what a machine of that kind calls itself; its compiler wants to know.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    accelerator_type: str


GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {
        "v4": Generation(275e12, 32 * GIB, 1.23e12, 4.5e10, 6.25e9, "v4-8"),
        "v5e": Generation(197e12, 16 * GIB, 8.2e11, 4.5e10, 3.125e9, "v5litepod-4"),
        "v5p": Generation(459e12, 95 * GIB, 2.765e12, 9e10, 6.25e9, "v5p-8"),
        "v6e": Generation(918e12, 32 * GIB, 1.64e12, 9e10, 1.25e10, "v6e-4"),
    }
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one generation, each of as many chips as its dimensions multiply to."""

    name: str
    generation: Generation
    slices: int
    dimensions: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.dimensions)

    def devices(self) -> list[jax.Device]:
        """Devices to lower and compile for, which compute nothing. A v4 device is a core, half a chip.

        Raises:
          TopologyError: libtpu is not installed or does not know the topology.
        """
        from jax.experimental import topologies

        # What the library would ask a TPU machine's metadata server for; and it may not be the only one that runs.
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": self.generation.accelerator_type,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        name = self.name.rpartition("*")[2]
        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            return list(topologies.get_topology_desc(name, platform="tpu", **slices).devices)
        except Exception as error:  # whatever libtpu throws: it has no type of its own
            raise TopologyError(
                f"cannot compile for {self.name}: {str(error).splitlines()[0]}. It takes the package libtpu "
                "(pip install 'deltalm_jax[tpu]') and a topology that it knows"
            ) from error


def parse_topology(name: str) -> Topology:
    """A `Topology` by its name.

    Raises:
      TopologyError: it is not one.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+){1,2})", name)
    if match is None or match[2] not in GENERATIONS or int(match[1] or 1) < 1:
        raise TopologyError(
            f"expected a topology such as v5e:16x16, v5p:4x4x4 or 2*v5e:8x8 of {', '.join(GENERATIONS)}, found {name!r}"
        )
    dimensions = tuple(int(size) for size in match[3].split("x"))
    return Topology(name, GENERATIONS[match[2]], int(match[1] or 1), dimensions)

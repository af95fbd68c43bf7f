"""What a compiled program moves, read from XLA's text of it: between devices, and to and from memory.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# What moves nothing by itself, or is counted where it is called.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind within groups of devices.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      group: ids of one group's devices, in the order of the program's own numbering.
      size: bytes of the whole that is gathered, or of what is summed on each device, each time.
      times: how often a device takes part.
      shape: of the whole, for the reader.
    """

    kind: str
    group: tuple[int, ...]
    size: int
    times: int
    shape: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all, by the best algorithm round a ring: n - 1 of n parts, a sum to all twice."""
        share = (len(self.group) - 1) / len(self.group)
        return self.times * self.size * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program's traffic on each device.

    Attributes:
      collectives: communication.
      memory_bytes: about what is read from and written to memory (HBM).
    """

    collectives: tuple[Collective, ...]
    memory_bytes: float


def read_program(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations = _computations(text)
    (entry,) = (name for name, (is_entry, _) in computations.items() if is_entry)
    collectives: list[Collective] = []
    memory = 0.0
    for name, times, trips in _executed(computations, entry):
        shapes: dict[str, str] = {}
        for line in computations[name][1]:
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            own, shape, operation, rest = match.groups()
            shapes[own] = shape
            if operation in _FREE or operation.endswith("-done"):
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            memory += times * sum(_memory_bytes(s, trips) for s in (shape, *(shapes.get(o, "") for o in operands)))
            for inner in _collective_lines(line, computations):
                if (found := _collective(inner, times)) is not None:
                    collectives.append(found)
    return Program(tuple(collectives), memory)


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """{name: (is it the entry, its lines)}."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = []
            found[match[2]] = bool(match[1]), lines
        elif line.startswith("  "):
            lines.append(line)
    return found


def _executed(computations: dict[str, tuple[bool, list[str]]], entry: str) -> Iterator[tuple[str, int, int]]:
    """(computation, how often it runs, turns of the loop it is the body of) of all that is not fused."""
    waiting = [(entry, 1, 1)]
    while waiting:
        name, times, trips = waiting.pop()
        yield name, times, trips
        for line in computations[name][1]:
            if match := re.search(r"\bwhile\(.*body=%?([\w.\-]+)", line):
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                turns = int(count[1]) if count else 1
                waiting.append((match[1], times * turns, turns))
            elif match := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                waiting.append((match[1], times, trips))


def _collective_lines(line: str, computations: dict[str, tuple[bool, list[str]]]) -> list[str]:
    """Lines with a collective that this instruction is, or begins: libtpu puts some into fusions.

    One that runs beside several others appears in the fusion with each of these; it is begun in one.
    """
    match = re.search(r"\b(?:fusion|async-start)\(.*calls=%?([\w.\-]+)", line)
    if match is None:
        return [line]
    if match[1].startswith("async_collective_fusion"):
        return []
    return [inner for inner in computations.get(match[1], (False, []))[1] if _is_collective(inner)]


def _is_collective(line: str) -> bool:
    match = _INSTRUCTION.match(line)
    return match is not None and match[3].removesuffix("-start") in _KINDS


def _collective(line: str, times: int) -> Collective | None:
    if not _is_collective(line):
        return None
    match = _INSTRUCTION.match(line)
    assert match is not None
    kind = match[3].removesuffix("-start")
    shape = match[2]
    if match[3].endswith("-start") and kind == "all-gather":  # (what goes in, what comes out)
        shape = shape[shape.index(",", shape.index("]")) :]
    group = _group(line)
    size = sum(_array_bytes(a) for a in _ARRAY.finditer(shape))
    if kind == "reduce-scatter":
        size *= len(group)
    shown = ", ".join(f"{a[1]}[{a[2]}]" for a in list(_ARRAY.finditer(shape))[:3])
    return Collective(kind, group, size, times, shown) if len(group) > 1 else None


def _group(line: str) -> tuple[int, ...]:
    """The first replica group."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", line):
        return tuple(int(i) for i in match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        sizes = [int(n) for n in match[3].split(",")]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if match[4]:
            ids = ids.transpose([int(axis) for axis in match[4].split(",")])
        return tuple(ids.reshape(int(match[1]), int(match[2]))[0].tolist())
    # mesh['a'=4,'b'=2] {'a'}: all devices along the axes named, at the first place of the others
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        wanted = re.findall(r"'([^']+)'", match[2])
        return tuple(ids[tuple(slice(None) if name in wanted else 0 for name in axes)].ravel().tolist())
    return ()


def _array_bytes(array: re.Match[str]) -> int:
    return _BYTES.get(array[1], 0) * math.prod(int(n) for n in array[2].split(",") if n)


def _memory_bytes(shape: str, trips: int) -> float:
    """Bytes of the arrays in a shape that lie in memory, not in on-chip memory ("S(1)").

    Of an array with as many rows as the loop has turns, such as stacked layers, each turn is taken to touch its own row.
    """
    total = 0.0
    for array in _ARRAY.finditer(shape):
        rows = int(array[2].split(",")[0] or 1) if array[2] else 1
        if array[3] is None:
            total += _array_bytes(array) / (trips if trips > 1 and rows == trips else 1)
    return total

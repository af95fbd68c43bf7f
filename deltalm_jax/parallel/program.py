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
# A fusion beside which a collective goes on that another one began.
_GOES_ON = "async_collective_fusion"
# What moves nothing by itself, or is counted where it is called.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}

# By name: whether it is where the program begins, and its lines.
Computations = dict[str, tuple[bool, list[str]]]


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
            memory += times * _moved(line, computations, operation, shape, _operands(rest, shapes), trips)
            for inner in _collective_lines(line, computations):
                if (found := _collective(inner, times)) is not None:
                    collectives.append(found)
    return Program(tuple(collectives), memory)


def _computations(text: str) -> Computations:
    found: Computations = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = []
            found[match[2]] = bool(match[1]), lines
        elif line.startswith("  "):
            lines.append(line)
    return found


def _executed(computations: Computations, entry: str) -> Iterator[tuple[str, int, int]]:
    """(computation, how often it runs, turns of the loop it is the body of) of all that is not fused."""
    waiting = [(entry, 1, 1)]
    while waiting:
        name, times, trips = waiting.pop()
        yield name, times, trips
        for line in computations[name][1]:
            if match := re.search(r"\bwhile\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                turns = _turns(line, computations.get(match[1], (False, []))[1])
                waiting.append((match[2], times * turns, turns))
            elif match := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                waiting.append((match[1], times, trips))


def _turns(line: str, condition: list[str]) -> int:
    """How often a loop turns: XLA on a CPU notes it, libtpu leaves "counter < constant" as the condition."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(noted[1])
    bounds = [match[1] for other in condition if (match := re.search(r"s32\[\]\S* constant\((\d+)\)", other))]
    if len(bounds) != 1 or not any("direction=LT" in other for other in condition):
        raise ValueError(f"cannot tell how often this loop of a compiled program turns: {line.strip()[:200]}")
    return int(bounds[0])


def _collective_lines(line: str, computations: Computations) -> list[str]:
    """Lines with a collective that this instruction is, or begins: libtpu puts some into fusions.

    One that runs beside several others appears in the fusion with each of these; it is begun in one.
    """
    match = re.search(r"\b(?:fusion|async-start)\(.*calls=%?([\w.\-]+)", line)
    if match is None:
        return [line]
    if match[1].startswith(_GOES_ON):
        return []
    return [inner for inner in computations.get(match[1], (False, []))[1] if _is_collective(inner)]


def _is_collective(line: str) -> bool:
    match = _INSTRUCTION.match(line)
    return match is not None and match[3].removesuffix("-start") in _KINDS


def _between_slices(line: str, times: int) -> Collective | None:
    """A sum over slices: libtpu has each device hand its part to the host and take back the sum."""
    match = re.search(r" = \((\w+\[[\d,]*\]).* send\(.*_xla_megascale_target=\"\{([\d,]+)\}x\{0:(\d+)\}\"", line)
    if match is None:
        return None
    if 'transfer_type="ALL_REDUCE"' not in line:
        raise ValueError(f"cannot tell what this transfer between slices carries: {line.strip()[:200]}")
    (array,) = _ARRAY.finditer(match[1])
    group = tuple(i * (int(match[3]) + 1) for i in range(len(match[2].split(","))))
    return Collective("all-reduce", group, _array_bytes(array), times, match[1])


def _collective(line: str, times: int) -> Collective | None:
    if not _is_collective(line):
        return _between_slices(line, times)
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


def _moved(line: str, computations: Computations, operation: str, shape: str, operands: list[str], trips: int) -> float:
    """Bytes that an instruction reads from and writes to memory."""
    if "AllocateBuffer" in line:
        return 0.0
    if operation in ("copy-start", "slice-start"):
        # ((what is read), what is written, …): of a part as many bytes are read as written
        arrays = list(_ARRAY.finditer(shape))[:2]
        size = min(_array_bytes(array) for array in arrays)
        return sum(size for array in arrays if array[3] is None)
    within = re.search(r"\bfusion\(.*calls=%?([\w.\-]+)", line)
    inner = [line, *computations[within[1]][1]] if within and within[1] in computations else [line]
    if within and within[1].startswith(_GOES_ON):
        # What is under way beside it is counted where it was begun.
        under_way = _shapes_of_collectives(inner[1:])
        shape, *operands = (_ARRAY.sub(lambda a: "" if a[2] in under_way else a[0], s) for s in (shape, *operands))
    if any(" scatter(" in other for other in inner):  # in place: it touches as many rows as it is given
        given = sum(_memory_bytes(operand, trips) for operand in operands if _sizes(operand) != _sizes(shape))
        return 3 * given
    read = [_memory_bytes(operand, trips) for operand in operands]
    if any(" gather(" in other for other in inner):  # of what is looked up in, as many rows as come out
        out = sum(_array_bytes(array) for array in _ARRAY.finditer(shape))
        read = [min(size, out) for size in read]
    return _memory_bytes(shape, trips) + sum(read)


def _shapes_of_collectives(lines: list[str]) -> set[str]:
    """Dimensions, "16,8", of what collectives take and give."""
    matches = [match for line in lines if (match := _INSTRUCTION.match(line))]
    shapes = {match[1]: match[2] for match in matches}
    found: set[str] = set()
    for match in matches:
        if match[3].removesuffix("-start") in _KINDS:
            for shape in (match[2], *_operands(match[4], shapes)):
                found |= set(_sizes(shape))
    return found


def _operands(rest: str, shapes: dict[str, str]) -> list[str]:
    """Shapes of an instruction's operands, of what stands behind its opening bracket and the shapes so far by name."""
    return [shapes.get(name, "") for name in re.findall(r"%([\w.\-]+)", rest.partition(")")[0])]


def _sizes(shape: str) -> list[str]:
    return [array[2] for array in _ARRAY.finditer(shape)]


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

"""Damage to the files of a folder, one at a time, drawn from a seed and spread over every file; each is undone again."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import random
from collections.abc import Iterator, Sequence

KINDS = ("flip", "cut", "delete", "append")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One damage to one file.

    Attributes:
      kind: "flip" one bit, "cut" the end off, "delete" the file, "append" a byte.
      file: path in the folder.
      place: of a flip, the bit; of a cut, the bytes left; of an append, the byte; else 0.
    """

    kind: str
    file: str
    place: int = 0

    @contextlib.contextmanager
    def applied(self, folder: pathlib.Path) -> Iterator[pathlib.Path]:
        """The file is damaged inside the `with`, and as it was after it; gives its path."""
        path = folder / self.file
        whole = path.read_bytes()
        try:
            if self.kind == "delete":
                path.unlink()
            else:
                path.write_bytes(self.of(whole))
            yield path
        finally:
            path.write_bytes(whole)

    def of(self, content: bytes) -> bytes:
        """The content with the damage done."""
        match self.kind:
            case "flip":
                byte, bit = divmod(self.place, 8)
                return content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :]
            case "cut":
                return content[: self.place]
            case "append":
                return content + bytes([self.place])
        raise ValueError(f"{self.kind!r} leaves no content")


def mutations(folder: pathlib.Path, count: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Mutation]:
    """`count` different mutations, of each file and kind in turn; fewer only where files have not so many to offer.

    Args:
      folder: where the files are; empty ones cannot be flipped or cut.
      count: how many.
      seed: the same seed draws the same.
      kinds: some of `KINDS`.
    """
    draw = random.Random(seed)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    limits = {"flip": lambda size: 8 * size, "cut": lambda size: size, "delete": lambda _: 1, "append": lambda _: 256}
    pools = []
    for file, size in sizes.items():
        for kind in kinds:
            if limit := limits[kind](size):
                pools.append(iter([Mutation(kind, file, p) for p in draw.sample(range(limit), min(limit, count))]))
    found: list[Mutation] = []
    while pools and len(found) < count:
        for pool in list(pools):
            if (mutation := next(pool, None)) is None:
                pools.remove(pool)
            else:
                found.append(mutation)
    return found[:count]

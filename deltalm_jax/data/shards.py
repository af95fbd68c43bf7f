"""Shards: files of chunks in ArrayRecord, three little-endian bytes an id (250,104 ids need 18 bits).

A record is one chunk, its real length only. One record a group and no compression: that is what makes reading at
random fast (tens of thousands of records a second and core). Shapes: B records, L longest chunk.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from array_record.python import array_record_module

from deltalm_jax.paths import as_path, is_remote, make_folder, store_errors, upload

MAX_ID = 2**24 - 1
_BYTES_PER_ID = 3
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READ_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: path relative to the prepared folder, number of chunks, size in bytes, xxh3 (128 bit)."""

    file: str
    chunks: int
    bytes: int
    xxh3: str


def encode_record(ids: np.ndarray) -> bytes:
    """Ids as three little-endian bytes each.

    Args:
      ids: integers [L] in 0..2^24-1.

    Raises:
      ValueError: an id does not fit.
    """
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID:
        raise ValueError(f"ids must lie in 0..{MAX_ID}, found {int(ids.min())}..{int(ids.max())}")
    return ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :_BYTES_PER_ID].tobytes()


def decode_records(
    records: Sequence[bytes], width: int, limit_B: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode_record`, for a batch.

    Args:
      records: B byte strings, each of a whole number of ids.
      width: L, columns of the result.
      limit_B: the most ids each may have, where less than `width`.

    Returns:
      tokens_BL int32, padded with 0, and lengths_B int32.

    Raises:
      ValueError: a record has a length that cannot be; `args[1]` is its position.
    """
    sizes_B = np.fromiter(map(len, records), np.int64, len(records))
    lengths_B, rest_B = np.divmod(sizes_B, _BYTES_PER_ID)
    limit_B = np.broadcast_to(width if limit_B is None else limit_B, sizes_B.shape)
    bad = np.flatnonzero((rest_B != 0) | (lengths_B < 1) | (lengths_B > limit_B))
    if bad.size:
        row = int(bad[0])
        raise ValueError(f"a record of {sizes_B[row]} bytes is not 1 to {limit_B[row]} ids of 3 bytes", row)
    data = np.frombuffer(b"".join(records), np.uint8)
    ids = data[2::_BYTES_PER_ID].astype(np.int32)
    for byte in (1, 0):
        ids <<= 8
        ids |= data[byte::_BYTES_PER_ID]
    if len(ids) == len(records) * width:
        return ids.reshape(len(records), width), lengths_B.astype(np.int32)
    tokens_BL = np.zeros((len(records), width), np.int32)
    tokens_BL[np.arange(width) < lengths_B[:, None]] = ids
    return tokens_BL, lengths_B.astype(np.int32)


def digest_file(path: str | Path) -> str:
    """xxh3 (128 bit, hexadecimal) of a file's bytes."""
    digest = xxhash.xxh3_128()
    digest_into(digest, path)
    return digest.hexdigest()


def digest_into(digest: xxhash.xxh3_128, path: str | Path, start: int = 0, end: int | None = None) -> None:
    """Updates a digest with a file's bytes, or with those from `start` up to `end`."""
    with as_path(path).open("rb") as file:
        file.seek(start)
        left = math.inf if end is None else end - start
        while left > 0 and (block := file.read(int(min(_READ_SIZE, left)))):
            digest.update(block)
            left -= len(block)


def write_shard(folder: str | Path, file: str, records: Iterable[bytes]) -> Shard:
    """Writes one shard: under a temporary name, synced, then renamed, so that the final name is a whole file.

    In an object store the shard is written on this machine and then uploaded, whole.

    Args:
      folder: the folder being prepared, which is there.
      file: path of the shard inside it.
      records: encoded chunks, in order.

    Returns:
      What the manifest keeps of it.

    Raises:
      OSError: it cannot be written (disk full, no permission); nothing of it is left.
    """
    path = as_path(folder) / file
    make_folder(path.parent)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="deltalm_shard_") as scratch:
            temporary = Path(scratch, "shard")
            shard = _write_file(temporary, path, file, records)
            upload(temporary, path)
        return shard
    # A name of its own for every attempt: a runner may try the same shard twice at once.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        shard = _write_file(temporary, path, file, records)
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def _write_file(temporary: Path, path: Path, file: str, records: Iterable[bytes]) -> Shard:
    count = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
    except RuntimeError as error:
        # What ArrayRecord makes of a full disk.
        raise OSError(f"cannot write {path}: {error}") from error
    return Shard(file, count, temporary.stat().st_size, digest_file(temporary))


def sync(path: Path) -> None:
    """Asks the system to put a file's (or folder's) content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) so that, whatever happens, it has either the old or the whole new content."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        with store_errors():
            path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)

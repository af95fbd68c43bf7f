"""`downloads.json`: what was fetched into a folder, when, from where, and its sha256.

It is written before a file gets its name, so each file that is there under its name is in it. A file that is fetched again
has to have the digest that the record says: the record can be copied to another machine, to have the same corpora there.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalm_jax.data.fetching import DownloadError, Fetched
from deltalm_jax.data.shards import write_atomically

RECORD = "downloads.json"


class DownloadRecord:
    """The record of one folder."""

    def __init__(self, folder: Path):
        """Reads it; an empty one where there is none.

        Raises:
          DownloadError: it is no such record.
        """
        self.folder = folder
        self.path = folder / RECORD
        self.files: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self.files = dict(json.loads(self.path.read_text(encoding="utf-8"))["files"])
                for entry in self.files.values():
                    int(entry["bytes"]), str(entry["sha256"])
            except (ValueError, KeyError, TypeError) as error:
                raise DownloadError(
                    f"{self.path}: expected a record of downloads, found something else ({error!r}). "
                    "Remove it to begin a new one"
                ) from error

    def add(self, name: str, fetched: Fetched) -> None:
        """Records a file, by its path in the folder, and writes the record, with what another process has added meanwhile."""
        entry = {
            "url": fetched.url,
            "bytes": fetched.bytes,
            "sha256": fetched.sha256,
            "version": fetched.version,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with (self.folder / f".{RECORD}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.files = {**DownloadRecord(self.folder).files, name: entry}
            write_atomically(self.path, json.dumps({"files": dict(sorted(self.files.items()))}, indent=1) + "\n")

    def problem(self, name: str) -> str | None:
        """What is wrong with a recorded file's size, found without reading it; None: nothing, or it is not there yet."""
        path, entry = self.folder / name, self.files[name]
        if not path.exists() or path.stat().st_size == entry["bytes"]:
            return None
        return f"{path}: expected {entry['bytes']:,} bytes, as {RECORD} says, found {path.stat().st_size:,}"

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Reads every recorded file; gives its name and what is wrong with it, None where all is as recorded."""
        for name, entry in sorted(self.files.items()):
            path = self.folder / name
            if not path.exists():
                yield name, f"{path}: recorded in {RECORD}, but not there"
                continue
            found = self.problem(name)
            if found is None and (digest := _sha256(path)) != entry["sha256"]:
                expected = entry["sha256"]
                found = f"{path}: expected sha256 {expected[:12]}…, found {digest[:12]}…: it was changed or damaged"
            yield name, found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

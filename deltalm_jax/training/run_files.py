"""The files of a run that grow: numbers, TensorBoard's events, traces. An object cannot grow, so for a run in a bucket they
are kept on this machine and copied there at each checkpoint and at the end."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from deltalm_jax.paths import is_remote, store_errors, upload
from deltalm_jax.training.metrics import METRICS
from deltalm_jax.training.steady_file import LogError


class RunFiles:
    """Where a run writes its growing files.

    Attributes:
      folder: the run's folder, or one of this machine in its place.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def keep(self) -> None:
        """Makes what is written so far outlive this machine, as far as the run's folder does. From any thread."""


class _Copied(RunFiles):
    """Files of this machine that are copied to a bucket; a failure costs a warning, and the next time makes up for it."""

    def __init__(self, folder: pathlib.Path, run_dir: pathlib.Path, warn: Callable[[str], None]):
        super().__init__(folder)
        self._run_dir, self._warn = run_dir, warn
        self._kept: dict[str, tuple[int, int]] = {}

    def keep(self) -> None:
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name, found = path.relative_to(self.folder).as_posix(), path.stat()
            state = found.st_size, found.st_mtime_ns  # before it is read: what is added meanwhile goes next time
            if self._kept.get(name) == state:
                continue
            try:
                upload(path, self._run_dir / name)
            except OSError as error:
                self._warn(
                    f"WARNING: {self._run_dir / name} cannot be written: {error}. The next checkpoint tries again"
                )
                return
            self._kept[name] = state

    def fetch(self, name: str) -> None:
        """Brings a file back, if it is there."""
        path = self._run_dir / name
        try:
            with store_errors():
                if path.exists():
                    (self.folder / name).write_bytes(path.read_bytes())
        except OSError as error:
            raise LogError(f"{path}: cannot be read: {error}") from error


@contextlib.contextmanager
def run_files(run_dir: pathlib.Path, speaks: bool, warn: Callable[[str], None]) -> Iterator[RunFiles]:
    """The growing files of a run, for as long as it goes on.

    Args:
      run_dir: the run's folder, a path of `run_path`; made if absent.
      speaks: whether this process writes the run's numbers (one of several does): then those there are are brought back.
      warn: takes one line of text when a copy fails.

    Raises:
      LogError: there are numbers, but they cannot be read.
    """
    if not is_remote(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        yield RunFiles(run_dir)
        return
    with tempfile.TemporaryDirectory(prefix="deltalm_run_") as scratch:
        files = _Copied(pathlib.Path(scratch), run_dir, warn)
        if speaks:
            files.fetch(METRICS)
        try:
            yield files
        finally:
            files.keep()

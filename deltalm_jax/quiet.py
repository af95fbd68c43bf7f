"""Keeps import-time chatter of heavy packages off the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_CHATTER = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} |E\d{4} .*cuInit")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps what TensorFlow and Beam say on import off the terminal; other lines are shown afterwards.

    TensorFlow writes to the file descriptor before its own TF_CPP_MIN_LOG_LEVEL is looked at.
    """
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            logging.getLogger().setLevel(level)
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not _CHATTER.match(line):
                    print(line, file=sys.stderr)

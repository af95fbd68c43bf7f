"""Keeps passwords, keys and tokens out of what the commands print and what a run records.

Taken for secrets are

- the values of environment variables whose names say so (`HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`), of 8 characters or more,
  unless they are the path of a file, or the whole path of a folder, that is there;
- what has the form of a well-known kind of key, of a private key in PEM, or of a bearer token;
- the password in `scheme://user:password@host`;
- the value after a name such as `password`, `api_key` or `access_token`, in flags, JSON, gin and query strings.

Each is replaced by `[redacted]`. A secret of another form, or one that was encoded or cut, is not recognised: this is a
net below the rule that secrets do not belong into configurations.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, cast

REDACTED = "[redacted]"
# Shorter values (`1`, `true`, `default`) are no secrets, and replacing them would garble everything else.
MIN_SECRET_LENGTH = 8

_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|(TOKEN|KEY)S?(_|$)",
    re.IGNORECASE,
)
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|\\"(?:[^"\\\n]|\\[^"])*\\"|[^\s"'&,;\\)}\]]+)"""
# In each, the group `keep` stays.
_FORMS = re.compile(
    r"(?P<keep1>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?=-----END|\Z)"
    r"|\bhf_[A-Za-z0-9]{8,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}"
    r"|\bgithub_pat_\w{16,}"
    r"|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bAIza[\w-]{30,}"
    r"|\bya29\.[\w.-]{16,}"
    r"|\bsk-[A-Za-z0-9][\w-]{14,}"
    r"|\bxox[a-z]-[A-Za-z0-9-]{8,}"
    # pathlib makes one slash of two.
    r"|(?P<keep2>:/{1,2}[^\s/:@]*:)[^\s/]+(?=@)"
    # Flags, gin, query strings; and JSON, where the name is quoted. A number is how many, or an id: `pad_token=0`.
    r"""|(?P<keep3>(?:(?:secret(?:[_-]?key)?|passw(?:or)?d|passphrase|(?:api|access|private)[_-]?key|authorization)"""
    r"""\\?["']?\s*[=:]\s*|token(?:\\?["']\s*:|\s*=)\s*(?!["']?(?:[\d.]+\b|<))))"""
    rf"""(?!["']?(?:none|null|true|false)\b|["']?\[redacted|["']{{2}})(?:(?:Bearer|Basic|Token)\s+)?{_VALUE}"""
    r"|(?P<keep4>(?<![\w-])--[\w-]{0,60}(?:(?<!per_)token|secret(?:[_-]key)?|passw(?:or)?d|passphrase|(?:api|access)[_-]key)\s+)"
    rf"(?!-|\[redacted){_VALUE}"
    r"|(?P<keep5>\bBearer\s+)(?!token\b)[\w.~+/=-]{8,}",
    re.IGNORECASE | re.DOTALL,
)


class Redactor:
    """Replaces secrets in texts and records.

    Args:
      environment: names and values, among which the secret ones are looked for.
    """

    def __init__(self, environment: Mapping[str, str]):
        spellings: set[str] = set()
        for name, value in environment.items():
            if not _SECRET_NAME.search(name) or len(value) < MIN_SECRET_LENGTH or _is_path(value):
                continue
            # A key of several lines may be printed line by line.
            for secret in (value, *(line for line in value.splitlines() if len(line) >= 2 * MIN_SECRET_LENGTH)):
                spellings |= {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe="")}
        longest_first = sorted(spellings, key=lambda spelling: (-len(spelling), spelling))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if spellings else None

    def text(self, text: str) -> str:
        """The text with `[redacted]` for each secret."""
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        return _FORMS.sub(_keep_name, text)

    def record(self, value: Any) -> Any:
        """The same for all texts inside a JSON-able value, names of entries included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.record(key): self.record(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.record(item) for item in value]
        return value


def _is_path(value: str) -> bool:
    try:
        return os.path.isfile(value) or (os.path.isabs(value) and os.path.exists(value))
    except ValueError:  # a null character
        return False


def _keep_name(match: re.Match[str]) -> str:
    keep = match[match.lastgroup] if match.lastgroup else ""
    value = match[0][len(keep) :]
    quote = next((mark for mark in ('\\"', '"', "'") if value.startswith(mark) and value.endswith(mark)), "")
    return f"{keep}{quote}{REDACTED}{quote}"


def same_but_for_secrets(redacted: Any, value: Any) -> bool:
    """Whether `value` may be what a record was made of: `[redacted]` in the record stands for any text.

    The environment of a later run may tell other secrets than that of the run that wrote the record.
    """
    if isinstance(redacted, str) and isinstance(value, str):
        parts = [re.escape(part) for part in redacted.split(REDACTED)]
        return re.fullmatch(".*".join(parts), value, re.DOTALL) is not None
    if isinstance(redacted, dict) and isinstance(value, dict):
        # In the order of the entries, too.
        return same_but_for_secrets([[*item] for item in redacted.items()], [[*item] for item in value.items()])
    if isinstance(redacted, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(redacted) == len(value) and all(map(same_but_for_secrets, redacted, value))
    return bool(redacted == value)


class RedactedStream:
    """A stream of text that passes on whole lines, without secrets; all else is the stream's own.

    The last, unfinished line waits for its end or for `flush`, as in a stream that is buffered by lines: a secret that is
    written in two pieces is seen whole.

    Args:
      stream: the stream.
      redactor: what takes out secrets.
      steady: whether what cannot be written (a terminal that is gone, a full disk) is given up without an error.
    """

    def __init__(self, stream: TextIO, redactor: Redactor, steady: bool = False):
        self._stream, self._redactor, self._steady = stream, redactor, steady
        self._pending = ""
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        # A fork may happen while another thread, which the child does not have, holds it.
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Takes text; returns its length."""
        with self._lock:
            self._pending += text
            end = max(self._pending.rfind("\n"), self._pending.rfind("\r")) + 1
            if end:
                whole, self._pending = self._pending[:end], self._pending[end:]
                with self._tolerant():
                    self._stream.write(self._redactor.text(whole))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Takes several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on all that is there."""
        with self._lock:
            rest, self._pending = self._pending, ""
            with self._tolerant():
                if rest:
                    self._stream.write(self._redactor.text(rest))
                self._stream.flush()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self._steady:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install(steady: bool = False) -> None:
    """From now on what this process prints (`sys.stdout`, `sys.stderr`, tracebacks among it) has no secrets in it.

    What libraries in C++ write by themselves, past Python, is not changed. Called again, it does nothing.

    Args:
      steady: for a command whose work is worth more than what it prints: nothing is raised if it cannot be printed.
    """
    redactor = Redactor(os.environ)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # No stream: a process without a console.
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, cast(TextIO, RedactedStream(stream, redactor, steady)))


def redact_record(value: Any) -> Any:
    """A JSON-able value with `[redacted]` for each secret, those of the environment included."""
    return Redactor(os.environ).record(value)

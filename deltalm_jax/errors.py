"""The one base of all errors that are written for the user."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend: configuration, files, machines. The message says what, where and how.

    Commands print it after "error: " and exit with `exit_code`; any other exception is a defect and keeps its trace.
    """

    exit_code = 2

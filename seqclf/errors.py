"""Errors that the user can mend, and exit codes."""

from __future__ import annotations

import errno

FAILED = 1
USAGE_ERROR = 2
PREEMPTED = 143  # of a process that a signal stopped: 128 + SIGTERM
# EFBIG is the limit of `ulimit -f`; Python ignores its signal, SIGXFSZ.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UserError(ValueError):
    """Something the user can mend: printed without a traceback, exit code USAGE_ERROR."""

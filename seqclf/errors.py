"""Errors that the user can mend, exit codes, and text that is safe to print."""

from __future__ import annotations

import errno
import sys

FAILED = 1
USAGE_ERROR = 2
PREEMPTED = 143  # of a process that a signal stopped: 128 + SIGTERM
# EFBIG is the limit of `ulimit -f`; Python ignores its signal, SIGXFSZ.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What a disk or a file system says of itself: the user can mend it, and no line of code can.
DISK_ERRORS = DISK_FULL | {
    *(errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENODEV, errno.ENXIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}


class UserError(ValueError):
    """Something the user can mend: printed without a traceback, exit code USAGE_ERROR."""


def not_installed(missing: ModuleNotFoundError) -> str:
    """Say what to do about a package that seqclf needs and this Python does not have."""
    return (
        f"{missing}; {sys.executable} lacks what seqclf needs: install seqclf there with pip, or "
        "start it with the Python that has it"
    )


def printable(text: str) -> str:
    """Return a text with escapes for all letters that cannot be printed.

    Names in data may hold escape sequences, which would steer the terminal.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, with its line ends left in."""
    return "\n".join(map(printable, text.split("\n")))


def library_missing(name: str) -> ModuleNotFoundError:
    """Return the error of a module that needs a library of an extra."""
    text = f"seqclf.{name} needs the library {name}: pip install 'seqclf[{name}]'"
    return ModuleNotFoundError(text, name=name)

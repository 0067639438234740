"""A process that no signal and no timeout of Python can end."""

from __future__ import annotations

import ctypes


def stay_in_c(library: ctypes.CDLL) -> None:
    """Wait for a lock that this thread holds: no signal ends that."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)

"""What a process looks like from outside: all that a library call may leave changed."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def take_snapshot() -> dict[str, object]:
    """Return what a training could have changed, in values that == compares."""
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return {
        "random": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads of a new thread": _in_new_thread(torch.get_num_threads),
        "dtype": torch.get_default_dtype(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "matmul": torch.get_float32_matmul_precision(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "denormals": float(torch.full((2**20,), 1e-40).mul(1.0).view(torch.int32).min()),
        "errors": np.geterr(),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in numbers},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "warnings": list(warnings.filters),
        "accelerate": [
            dict(cls._shared_state) for cls in (AcceleratorState, PartialState, GradientState)
        ],
        "threads alive": {thread.name for thread in threading.enumerate()},
        "folder": os.getcwd(),
        "path": list(sys.path),
        "files": sorted(map(os.readlink, _descriptors())),
        "temporary": sorted(Path(tempfile.gettempdir()).glob("seqclf-*")),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr),
    }


def _in_new_thread(function: Callable[[], int]) -> list[int]:
    """Return what a function returns in a thread that begins now: some settings are a thread's."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found


def _descriptors() -> list[str]:
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [path for path in paths if os.path.lexists(path)]

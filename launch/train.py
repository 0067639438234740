"""The entry of `accelerate launch`, `torchrun` and `python`: the same as `seqclf train`."""

import ctypes
import os
import signal
import sys

from seqclf.cli import main

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        # `accelerate launch` with one process dies of a SIGTERM without passing it on, and would
        # leave this process training: ask the kernel to be told. (Not for a plain shell, whose
        # logout must not stop a nohup.)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    sys.exit(main(["train", *sys.argv[1:]]))

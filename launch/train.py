"""The entry of `accelerate launch`, `torchrun` and `python`: the same as `seqclf train`."""

import sys

from seqclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

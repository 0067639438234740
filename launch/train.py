"""The entry of `accelerate launch`, `torchrun` and `python`: the same as `seqclf train`."""

import sys

try:
    from seqclf.cli.main import main
except ModuleNotFoundError as error:
    print(
        f"error: no module {error.name}; install seqclf where this Python runs "
        f"({sys.executable}): pip install PATH_OF_THE_CLONE",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

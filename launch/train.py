"""The entry of `accelerate launch`, `torchrun` and `python`: the same as `seqclf train`."""

import sys
from pathlib import Path

try:
    from seqclf.cli.main import main
except ModuleNotFoundError as missing:  # seqclf itself, or what it needs
    folder = Path(__file__).resolve().parents[1]
    remedy = f"install seqclf for this Python: {sys.executable} -m pip install -e {folder}"
    print(f"error: {missing}; {remedy}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

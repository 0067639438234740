"""python -m seqclf"""

import sys

from seqclf.errors import USAGE_ERROR, not_installed

try:
    from seqclf.cli.main import main
except ModuleNotFoundError as missing:
    print(f"error: {not_installed(missing)}", file=sys.stderr)
    sys.exit(USAGE_ERROR)

sys.exit(main())

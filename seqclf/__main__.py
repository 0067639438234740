"""python -m seqclf"""

from seqclf.cli import main

raise SystemExit(main())

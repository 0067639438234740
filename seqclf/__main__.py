"""python -m seqclf"""

from seqclf.cli.main import main

raise SystemExit(main())

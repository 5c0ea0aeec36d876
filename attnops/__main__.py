"""`python -m attnops` is the console script `attnops`."""

from .cli import main

raise SystemExit(main())

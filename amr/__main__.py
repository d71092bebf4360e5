"""`python -m amr` is the command `amr`."""

import sys

from amr.cli import main

sys.exit(main())

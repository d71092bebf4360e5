"""The command line, for those who run it from a checkout; `amr` is the same."""

import sys

from amr.cli import main

if __name__ == "__main__":
    sys.exit(main())

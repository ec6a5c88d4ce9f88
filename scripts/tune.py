"""Command line: see `python scripts/tune.py --help`."""

import sys

from phenoscape_tune.cli.tune import main

if __name__ == "__main__":
    sys.exit(main())

"""Command line: see `python scripts/check_data.py --help`."""

import sys

from phenoscape_tune.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())

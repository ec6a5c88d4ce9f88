"""Command line: see `python scripts/train.py --help`."""

import sys

from phenoscape_tune.cli.train import main

if __name__ == "__main__":
    sys.exit(main())

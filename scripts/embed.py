"""Command line: see `python scripts/embed.py --help`."""

import sys

from phenoscape_tune.cli.embed import main

if __name__ == "__main__":
    sys.exit(main())

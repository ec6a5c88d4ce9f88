"""`train.py`: train one SimCLR encoder from a configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from phenoscape_tune.cli.common import DONE, run_command
from phenoscape_tune.cli.request import RunRequest, request_of
from phenoscape_tune.cli.whole_run import preview, train


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a SimCLR encoder. Without --config and data_dir it runs on generated sample specimens.",
    )
    parser.add_argument("--config", metavar="FILE", help="configuration: a path, or a name in configs/")
    parser.add_argument("--resume", metavar="CKPT", help="go on from a checkpoint, in its run's folder")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the same folder")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and start nothing")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print the result only")
    loud.add_argument(
        "-v", "--verbose", action="store_true", help="also tell cache, seconds, checkpoints, all of an epoch"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, e.g. data_dir=birds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_train, argv)


def _train(argv: Sequence[str]) -> int:
    asked = request_of(RunRequest, build_parser().parse_intermixed_args(argv))
    if asked.dry_run:
        preview(asked)
    else:
        print("\n".join(["", *train(asked).describe()]))
    return DONE


if __name__ == "__main__":
    sys.exit(main())

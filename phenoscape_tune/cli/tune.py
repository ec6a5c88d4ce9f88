"""`tune.py`: search for the learning rate, batch size, temperature and augmentation strength to train with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from phenoscape_tune.cli.common import DONE, OTHER_FAULT, run_command
from phenoscape_tune.cli.doctor import examine
from phenoscape_tune.cli.request import SearchRequest, request_of
from phenoscape_tune.cli.whole_search import preview, search
from phenoscape_tune.search.space import Order
from phenoscape_tune.terminal import show_lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description="Search for the learning rate, batch size, temperature and augmentation strength with which to "
        "train a SimCLR encoder on your images. Without --config and data_dir it runs on generated sample specimens.",
    )
    parser.add_argument("--space", metavar="FILE", help="search space: a path, or a name in search_spaces/")
    parser.add_argument("--config", metavar="FILE", help="base configuration: a path, or a name in configs/")
    parser.add_argument("--name", help="name of the search (default: the space file's)")
    parser.add_argument("--out", metavar="DIR", help="folder of the search (default: outputs/<name>)")
    parser.add_argument("--order", choices=get_args(Order), help="stage by stage as documented, or all keys at once")
    parser.add_argument("--trials", type=int, metavar="N", help="trials to start, confirmations not counted")
    parser.add_argument("--max-epochs", type=int, metavar="N", help="length of a trial")
    parser.add_argument("--hours", type=float, metavar="H", help="wall time, confirmation included")
    parser.add_argument("--gpu-hours", type=float, metavar="H", help="time of all GPUs together")
    parser.add_argument("--concurrent", type=int, metavar="N", help="trials side by side")
    parser.add_argument("--no-confirm", action="store_true", help="do not repeat the best trials with fresh seeds")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search and of training")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    again.add_argument(
        "--resume-or-start", action="store_true", help="go on where the search was begun, else start it (for jobs)"
    )
    again.add_argument("--overwrite", action="store_true", help="delete an earlier search of the same name")
    parser.add_argument("--warm-start", metavar="DIR", help="learn from the trials of an earlier search")
    parser.add_argument(
        "--address", metavar="auto|HOST:PORT", help="run on a Ray cluster that runs already (default: RAY_ADDRESS)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--doctor", action="store_true", help="check installation, devices, storage, data and cluster")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print the result only")
    loud.add_argument("-v", "--verbose", action="store_true", help="also tell each epoch, and what Ray says")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, e.g. data_dir=birds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    asked = request_of(SearchRequest, args)
    if args.doctor:
        return examine(asked)
    if asked.dry_run:
        preview(asked)
        return DONE
    found = search(asked)
    # Commands and paths are copied from there: they stay whole.
    show_lines(["", *found.describe()], whole=("train it", "look", " "))
    return DONE if found.outcome else OTHER_FAULT


if __name__ == "__main__":
    sys.exit(main())

"""The figure of docs/benchmarks.md on replayed searches: regret against cost, from the recorded results alone.

python benchmarks/replay_figure.py      # reads results/replay.json, writes docs/pictures/replay.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from replay_ratios import GRID

RESULTS = Path(__file__).parent / "results" / "replay.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "replay.png"
STUDY = "cifar-long, noise: seeds"
TITLES = {
    "knn_accuracy": "With labels: trials are compared by kNN accuracy",
    "reference_contrast": "Without labels: trials are compared by reference contrast",
}
OTHERS = {  # searches of others: colour, and what the legend says
    "random": ("tab:gray", "random search, every trial to its end"),
    "random + ASHA": ("tab:olive", "random search with ASHA"),
    "TPE": ("tab:brown", "TPE, every trial to its end"),
    "TPE + ASHA": ("tab:red", "TPE with ASHA, our grace and factor"),
    "TPE + ASHA, Ray's defaults": ("tab:pink", "TPE with ASHA, Ray's defaults"),
}
OURS = {  # colour, what the legend says, and where the number of trials stands beside a point (points, x and y)
    "staged": ("tab:blue", "order: staged (the default)", (5, 4)),
    "staged, refine, drop": ("darkcyan", "order: staged, refine: true, confirm: {drop: true}", (3, -13)),
    "joint": ("tab:green", "order: joint", (5, 5)),
    "joint, PASHA, drop": ("purple", "joint.yaml: order: joint, pasha: true, drop: true", (-16, -2)),
}


def draw(objectives: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Regret against cost: the searches of others at any time, the project's where they end.

    `objectives` is what `replay_table.compare` found by each objective; those of TITLES are drawn, side by side.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = [name for name in TITLES if name in objectives]
    figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), 6.2), sharey=True, squeeze=False)
    others: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for axis, name in zip(axes[0], shown, strict=True):
        found = objectives[name]
        for strategy, (colour, meaning) in OTHERS.items():
            for row in rows_of(found, strategy):
                (others[meaning],) = axis.plot(GRID, paid(found, row), color=colour, lw=1.4)
        for strategy, (colour, meaning, place) in OURS.items():
            if not (rows := rows_of(found, strategy)):
                continue
            at, regrets, errors = ([row[key] for row in rows] for key in ("cost", "regret", "regret_se"))
            look = {"marker": "o", "ms": 6, "ls": ":", "lw": 1, "capsize": 2, "zorder": 3}
            ours[meaning] = axis.errorbar(at, regrets, errors, color=colour, **look)
            for row in rows:
                beside = {"xy": (row["cost"], row["regret"]), "xytext": place, "textcoords": "offset points"}
                axis.annotate(str(row["budget"]), **beside, color=colour, fontsize=8, fontweight="bold", zorder=4)
        axis.set(xscale="log", title=TITLES[name], xlabel="cost: device time, in whole trainings (log scale)")
        axis.set_xticks([2, 5, 10, 20, 50, 100, 200])
        axis.xaxis.set_major_formatter(FuncFormatter("{:g}".format))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(
        "regret: how far the linear-probe accuracy of\nwhat was found lies below the best of the space"
    )
    seeds = objectives[shown[0]]["searches"][0]["seeds"]
    question = "How good is what a search finds, and what does finding it cost?"
    figure.suptitle(f"{question} Mean of {seeds} replays; lower and further left is better")
    figure.tight_layout(rect=(0, 0.19, 1, 1))
    price = "baseline and confirmation paid; bars: ± standard error"
    for title, handles, centre in (
        ("Searches of others, at any time (no baseline, no confirmation)", others, 0.25),
        (f"This project's, at their end; the number is that of the trials ({price})", ours, 0.72),
    ):
        where: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (centre, 0.2),
            "frameon": False,
            "fontsize": 8,
        }
        legend = figure.legend(list(handles.values()), list(handles), title=title, title_fontsize=8, **where)
        legend.get_title().set_fontweight("bold")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rows_of(found: Mapping[str, Any], strategy: str) -> list[dict[str, Any]]:
    """What was found of a strategy, a row for each budget."""
    return [row for row in found["searches"] if row["strategy"] == strategy]


def paid(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[float]:
    """A search's mean regret at the costs of GRID.

    NaN before there is one, and beyond the search's mean cost, where its curve is a level line that nobody paid for.
    """
    curve = found["anytime"][f"{row['strategy']} ({row['budget']})"]
    return [
        np.nan if regret is None or cost > row["cost"] else regret for cost, regret in zip(GRID, curve, strict=True)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw(json.loads(RESULTS.read_text(encoding="utf-8"))[STUDY]["objectives"], PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()

"""What follows from replayed searches: regret and cost of each, who reaches whose quality for how much, one figure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import describe
from replay import SCORES, STRATEGIES, identity, surrogate_of
from surrogate import BATCH_SIZES, KEYS, Surrogate, read_rows

RESULTS = Path(__file__).parent / "results" / "replay.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "replay.png"
GRID = np.geomspace(1, 256, 49)  # costs of the anytime curves, in whole trainings
YARDSTICK, STOCK = "random", "TPE + ASHA"
SHOWN = {  # of the figure
    "random": "tab:gray",
    "random + ASHA": "tab:olive",
    "TPE": "tab:brown",
    "TPE + ASHA": "tab:red",
    "staged": "tab:blue",
    "staged, refine": "tab:cyan",
    "joint": "tab:green",
}
Lines = Sequence[dict[str, Any]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    found = np.asarray(values, dtype=float)
    return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")


def anytime(lines: Lines, best: float, unit: float) -> list[float | None]:
    """Mean regret at each cost of the grid; None where some search has nothing to give yet.

    A search that is over keeps what it gave.
    """
    curves = []
    for line in lines:
        costs = np.array([cost for cost, _ in line["moments"]]) / unit
        given = np.array([probe for _, probe in line["moments"]])
        # What the confirmation chose is known when it is over.
        given[-1] = line["probe"]
        place = np.searchsorted(costs, GRID, side="right") - 1
        curves.append(np.where(place >= 0, best - given[place], np.nan))
    mean = np.mean(curves, axis=0)
    return [None if np.isnan(value) else round(float(value), 4) for value in mean]


def summary(lines: Lines, best: float, unit: float) -> dict[str, Any]:
    """One strategy at one budget."""
    regret, error = mean_and_error([best - line["probe"] for line in lines])
    cost, cost_error = mean_and_error([line["seconds"] / unit for line in lines])
    row = {
        "strategy": lines[0]["strategy"],
        "budget": lines[0]["budget"],
        "seeds": len(lines),
        "regret": round(regret, 4),
        "regret_se": round(error, 4),
        "cost": round(cost, 2),
        "cost_se": round(cost_error, 2),
    }
    if "clear" in lines[0]:
        row["clear_share"] = round(float(np.mean([line["clear"] for line in lines])), 2)
        row["gain_over_defaults"] = round(float(np.mean([line["probe"] - line["defaults"] for line in lines])), 4)
    return row


def lost_by_key(lines: Lines, surrogate: Surrogate) -> dict[str, float]:
    """How much better the pick would be, in the mean, with the best value of one key and the others as they are."""
    shares = np.linspace(0, 1, 49)
    lost = {}
    for place, key in enumerate(KEYS):
        values = np.linspace(0, 1, len(BATCH_SIZES)) if key == "batch_size" else shares
        gains = []
        for line in lines:
            around = np.tile(line["point"], (len(values), 1))
            around[:, place] = values
            gains.append(float(surrogate.probe(around).max()) - line["probe"])
        lost[key] = round(max(0.0, float(np.mean(gains))), 4)
    return lost


def cost_of_quality(curve: Sequence[float | None], regret: float) -> float | None:
    """The cost on the grid from which a mean anytime curve stays at or below a regret; None where it does not."""
    held = None
    for cost, value in zip(GRID, curve, strict=True):
        if value is None or value > regret:
            held = None
        elif held is None:
            held = float(cost)
    return None if held is None else round(held, 2)


def compare(lines: Lines, surrogate: Surrogate) -> dict[str, Any]:
    """All strategies under one objective."""
    best, unit = surrogate.best(), surrogate.training_seconds
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["strategy"], line["budget"]].append(line)
    order = list(STRATEGIES)
    rows, curves = [], {}
    for (name, budget), own in sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])):
        rows.append(summary(own, best, unit) | {"lost_by_key": lost_by_key(own, surrogate)})
        curves[f"{name} ({budget})"] = anytime(own, best, unit)
    found: dict[str, Any] = {"best_probe": round(best, 4), "training_seconds": round(unit, 1), "searches": rows}
    whole = next((row for row in rows if row["strategy"] == YARDSTICK), None)
    if whole is not None:
        peers = {row["strategy"]: row["budget"] for row in rows if "clear_share" not in row}
        found["as_good_as_random"] = {"regret": whole["regret"], "cost": whole["cost"]} | {
            "costs": {
                name: cost_of_quality(curves[f"{name} ({budget})"], whole["regret"]) for name, budget in peers.items()
            }
            | cheapest(rows, whole["regret"])
        }
        # For each of the project's searches: what the stock search pays for the same quality.
        if STOCK in peers:
            stock = curves[f"{STOCK} ({peers[STOCK]})"]
            for row in rows:
                if "clear_share" in row:
                    row["stock_pays"] = cost_of_quality(stock, row["regret"])
    found["anytime"] = {"cost": [round(float(cost), 2) for cost in GRID], **curves}
    return found


def cheapest(rows: Lines, regret: float) -> dict[str, float | None]:
    """For each of the project's strategies the cost of the smallest budget whose mean regret is not above `regret`."""
    found: dict[str, float | None] = {}
    for row in rows:
        if "clear_share" in row:
            known = found.setdefault(row["strategy"], None)
            if row["regret"] <= regret and (known is None or row["cost"] < known):
                found[row["strategy"]] = row["cost"]
    return found


def draw(objectives: dict[str, dict[str, Any]], path: Path) -> None:
    """Regret against cost: the searches of others at any time, the project's where they end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(objectives), figsize=(6.5 * len(objectives), 4.6), sharey=True, squeeze=False)
    for axis, (name, found) in zip(axes[0], objectives.items(), strict=True):
        for strategy, colour in SHOWN.items():
            rows = [row for row in found["searches"] if row["strategy"] == strategy]
            if rows and "clear_share" in rows[0]:
                at, regrets, errors = ([row[key] for row in rows] for key in ("cost", "regret", "regret_se"))
                axis.errorbar(
                    at, regrets, errors, marker="o", ms=4, capsize=2, color=colour, label=f"{strategy} (ours)"
                )
            elif rows:
                curve = found["anytime"][f"{strategy} ({rows[0]['budget']})"]
                axis.plot(GRID, [np.nan if value is None else value for value in curve], color=colour, label=strategy)
        axis.set(xscale="log", xlabel="device time, in whole trainings", title=SCORES[name][0].title)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("regret (linear-probe accuracy below the best)")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_table(study: str, lines: Lines) -> None:
    """Write and print the results of one study's replays."""
    unique = {identity(line): line for line in lines if line["study"] == study}
    names = [name for name in SCORES if any(key[1] == name for key in unique)]
    objectives = {}
    for name in names:
        surrogate = surrogate_of(study, name)
        objectives[name] = compare([line for line in unique.values() if line["objective"] == name], surrogate)
        print(f"## {study}, {name}: best {objectives[name]['best_probe']}\n")
        print("| search | budget | cost | regret | stock pays |\n| --- | --- | --- | --- | --- |")
        for row in objectives[name]["searches"]:
            print(f"| {row['strategy']} | {row['budget']} | {row['cost']:.1f} | {row['regret']:.4f} ± "
                  f"{row['regret_se']:.4f} | {row.get('stock_pays') or ''} |")  # fmt: skip
        print(f"\nas good as random search: {json.dumps(objectives[name].get('as_good_as_random'))}\n")
    r2, rho = surrogate_of(study, names[0]).held_out()
    found = {**describe(), "configurations": len(read_rows(study)),
             "surrogate": {"r2": round(r2, 3), "spearman": round(rho, 3)}, "objectives": objectives}  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, study: found}, indent=1) + "\n")
    draw({name: objectives[name] for name in list(objectives)[:2]}, PICTURE)

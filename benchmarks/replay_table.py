"""What follows from replayed searches: regret and cost of each, who reaches whose quality for how much."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from confirmations import RULES
from record import describe
from replay import SCORES, STRATEGIES, identity, surrogate_of
from replay_figure import PICTURE, RESULTS, draw
from replay_ratios import (
    GRID,
    Lines,
    difference,
    ratio_of_anytime_to_whole,
    ratio_to_anytime,
    ratio_to_whole,
    regrets_at,
)
from surrogate import BATCH_SIZES, KEYS, NOISES, Surrogate, read_rows

PASHA = "PASHA"
YARDSTICK, STOCK = "random", ("TPE + ASHA", "TPE + ASHA, Ray's defaults")
AGAINST = {"staged": ("joint",), "staged, refine": ("staged", "joint")}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    found = np.asarray(values, dtype=float)
    return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")


def anytime(lines: Lines, best: float, unit: float) -> list[float | None]:
    """Mean regret at each cost of the grid; None where some search has nothing to give yet."""
    mean = np.mean(regrets_at(lines, best, unit), axis=0)
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
        held, held_error = mean_and_error([best - line["held"] for line in lines])
        row |= {"held_regret": round(held, 4), "held_regret_se": round(held_error, 4)}
        row["confirming"] = round(float(np.mean([line["confirming"] for line in lines])) / unit, 2)
        row["clear_share"], row["covered_share"] = (
            round(float(np.mean([line[key] for line in lines])), 2) for key in ("clear", "covered")
        )
        row["overstated"] = [round(value, 4) for value in mean_and_error([line["overstated"] for line in lines])]
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


def compare(lines: Lines, surrogate: Surrogate) -> dict[str, Any]:
    """All strategies under one objective, ours also with shorter confirmations."""
    lines = [each for line in lines for each in with_confirmations(line)]
    best, unit = surrogate.best(), surrogate.training_seconds
    groups: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    order = {name: place for place, name in enumerate(STRATEGIES)}
    for line in sorted(lines, key=lambda line: (order[line["searched"]], line["budget"])):
        groups[line["strategy"]][line["budget"]].append(line)
    # Of the searches of others the longest: what it gives at any time is what a shorter one gives.
    peers = {name: budgets[max(budgets)] for name, budgets in groups.items() if "clear" not in lines_of(budgets)[0]}
    rows, curves = [], {}
    for name, budgets in groups.items():
        for budget, own in budgets.items():
            row = summary(own, best, unit)
            if name in STRATEGIES:
                row["lost_by_key"] = lost_by_key(own, surrogate)
                curves[f"{name} ({budget})"] = anytime(own, best, unit)
            if name not in peers:
                row["of_stock"] = {s: ratio_to_anytime(own, peers[s], best, unit) for s in STOCK if s in peers}
            if name not in peers and YARDSTICK in peers:
                row["regret_minus_random"] = [
                    round(value, 4) for value in difference(own, peers[YARDSTICK], lambda line: -line["probe"])
                ]
            rows.append(row)
    found: dict[str, Any] = {"best_probe": round(best, 4), "training_seconds": round(unit, 1), "searches": rows}
    if YARDSTICK in peers:
        found["as_good_as_random"] = {
            name: ratio_of_anytime_to_whole(peers[name], peers[YARDSTICK], best, unit)
            if name in peers
            else ratio_to_whole(budgets, peers[YARDSTICK], best)
            for name, budgets in groups.items()
            if name != YARDSTICK
        }
    found["pairs"] = paired(groups)
    found["anytime"] = {"cost": [round(float(cost), 2) for cost in GRID], **curves}
    return found


def with_confirmations(line: dict[str, Any]) -> list[dict[str, Any]]:
    """A replayed search as it ended, then as it would have with each of the shorter confirmations."""
    if "confirmed" not in line:
        return [{**line, "searched": line["strategy"]}]
    whole, found = line["confirmed"]["whole"], []
    for name, told in line["confirmed"].items():
        if PASHA in line["strategy"] and name not in ("whole", "drop"):
            continue
        seconds = line["seconds"] - whole["seconds"] + told["seconds"]
        own = {key: told[key] for key in ("point", "probe", "held", "clear", "covered")}
        own |= {"confirming": told["seconds"], "overstated": (told["gain"] or 0.0) - told["true_gain"]}
        before = [moment for moment in line["moments"] if moment[0] < seconds]
        strategy = line["strategy"] if name == "whole" else f"{line['strategy']}, {name}"
        found.append({**line, **own, "searched": line["strategy"], "strategy": strategy, "seconds": seconds,
                      "moments": [*before, [seconds, told["probe"]]]})  # fmt: skip
    return found


def lines_of(budgets: Mapping[int, Lines]) -> Lines:
    return next(iter(budgets.values()))


def paired(groups: Mapping[str, Mapping[int, Lines]]) -> list[dict[str, Any]]:
    """What an option of ours changes in regret (of the candidate, and of what best.yaml holds) and in cost, seed by
    seed; the orders against each other as well."""
    found = []
    for name, budgets in groups.items():
        plain, _, option = name.rpartition(", ")
        others = [*([plain] if option in (PASHA, *RULES) else []), *AGAINST.get(name, ())]
        for other in (other for other in others if other in groups):
            for budget in sorted(set(budgets) & set(groups[other])):
                one, two = budgets[budget], groups[other][budget]
                measured = {
                    "regret": difference(one, two, lambda line: -line["probe"]),
                    "held_regret": difference(one, two, lambda line: -line["held"]),
                    "cost_share": difference(one, two, lambda line: math.log(line["seconds"])),
                }
                told = {key: [round(value, 4) for value in values] for key, values in measured.items()}
                found.append({"strategy": name, "minus": other, "budget": budget, **told})
    return found


def told(found: Mapping[str, Any]) -> str:
    """A ratio and its interval; what it is not, where there is none."""
    ends = [f"{found[key]:.2f}" if found[key] is not None else "never" for key in ("ratio", "low", "high")]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"


def print_tables(found: Mapping[str, Any]) -> None:
    """The results under one objective, as Markdown."""
    print("| search | budget | cost (confirming) | regret | of best.yaml | of TPE + ASHA's cost | of Ray's defaults' |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in found["searches"]:
        own = "held_regret" in row
        held = f"{row['held_regret']:.4f} ± {row['held_regret_se']:.4f}" if own else ""
        cost = f"{row['cost']:.1f}" + (f" ({row['confirming']:.1f})" if own else "")
        ratios = [told(row["of_stock"][name]) if name in row.get("of_stock", {}) else "" for name in STOCK]
        cells = [row["strategy"], str(row["budget"]), cost, f"{row['regret']:.4f} ± {row['regret_se']:.4f}", held]
        print("| " + " | ".join([*cells, *ratios]) + " |")
    print("\n| as good as random search, whole | of its cost | in so many draws |\n| --- | --- | --- |")
    for name, ratio in found.get("as_good_as_random", {}).items():
        print(f"| {name} | {told(ratio)} | {ratio['finite']:.0%} |")
    print("\n| minus | budget | regret | regret of best.yaml | cost, log |\n| --- | --- | --- | --- | --- |")
    for pair in found["pairs"]:
        cells = [f"{value:+.4f} ± {error:.4f}" for value, error in
                 (pair["regret"], pair["held_regret"], pair["cost_share"])]  # fmt: skip
        print(f"| {pair['strategy']} − {pair['minus']} | {pair['budget']} | " + " | ".join(cells) + " |")
    print()


def write_table(study: str, noise: str, lines: Lines) -> None:
    """Write and print the results of one study's replays."""
    unique = {identity(line): line for line in lines if (line["study"], line["noise"]) == (study, noise)}
    names = [name for name in SCORES if any(line["objective"] == name for line in unique.values())]
    objectives, errors = {}, {}
    for name in names:
        surrogate = surrogate_of(study, noise, name)
        errors[name] = {key: round(value, 4) for key, value in surrogate.noise_errors().items()}
        objectives[name] = compare([line for line in unique.values() if line["objective"] == name], surrogate)
        print(f"## {study}, noise {noise}, {name}: best {objectives[name]['best_probe']}, {errors[name]}\n")
        print_tables(objectives[name])
    r2, rho = surrogate_of(study, noise, names[0]).held_out()
    found = {**describe(), "configurations": len(read_rows(study)),
             "surrogate": {"r2": round(r2, 3), "spearman": round(rho, 3)}, "noise": errors,
             "objectives": objectives}  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, f"{study}, noise: {noise}": found}, indent=1) + "\n")
    if noise == NOISES[0]:
        draw(objectives, PICTURE)

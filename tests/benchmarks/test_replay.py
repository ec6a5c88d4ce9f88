"""The replay in a short form: that it counts and compares rightly, whatever comes out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import replay
from replay import SCORES, STRATEGIES, own_search, peer_search
from surrogate import Surrogate

METRIC = SCORES["knn_accuracy"][0]


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.space is not None])
def test_the_cost_of_our_search_includes_baseline_and_confirmation(known: Surrogate, name: str) -> None:
    found = own_search(known, METRIC, STRATEGIES[name], trials=9, seed=1)
    assert found["trials"] <= 9
    # The search's own account in its journal is the clock's.
    assert found["moments"][-1].seconds == pytest.approx(found["seconds"])
    # The baseline, and it and three more with three fresh seeds: thirteen whole trainings, at least of the cheapest.
    points = known.random_points(500, np.random.default_rng(0))
    least = known.epochs * min(known.seconds(x) for x in points)
    assert found["seconds"] > 13 * 0.9 * least
    whole = found["confirmed"]["whole"]
    assert found["seconds"] > whole["seconds"] > 12 * 0.9 * least
    assert found["confirmed"]["seeds 2"]["seconds"] < whole["seconds"]
    for told in found["confirmed"].values():
        assert told["seconds"] <= whole["seconds"]
        assert told["probe"] <= known.best()
        # best.yaml holds the candidate, or the defaults.
        assert told["held"] in (told["probe"], pytest.approx(found["defaults"], abs=1e-5))


def test_the_same_seed_is_the_same_search_and_another_is_not(known: Surrogate) -> None:
    joint = STRATEGIES["joint"]
    one, again, other = (own_search(known, METRIC, joint, trials=8, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one["moments"] != other["moments"]


def test_searches_of_others_have_neither(known: Surrogate) -> None:
    found = peer_search(known, METRIC, STRATEGIES["random"], trials=4, seed=0)
    assert found["seconds"] < 5 * known.training_seconds
    assert len(found["moments"]) == 4


def test_replays_are_added_to_the_file_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         known: Surrogate) -> None:  # fmt: skip
    monkeypatch.setattr(replay, "surrogate_of", lambda study, noise, objective: known)
    monkeypatch.setattr(replay, "ProcessPoolExecutor", InThisProcess)
    command = ["replay.py", "run", "--scratch", str(tmp_path), "--budgets", "8", "--long-budget", "6"]
    command += ["--strategies", "staged", "random", "--objectives", "knn_accuracy"]
    for seeds in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", seeds])
        replay.main()
    lines = [json.loads(line) for line in (tmp_path / "cifar-long.jsonl").read_text().splitlines()]
    assert [(line["strategy"], line["seed"]) for line in lines] == [
        ("staged", 0), ("random", 0), ("staged", 1), ("random", 1)
    ]  # fmt: skip


class InThisProcess:
    """The pool's interface without its processes, which would fit the surrogate anew."""

    def __init__(self, processes: int, initializer: object) -> None: ...  # which would hold for all tests after

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *problem: object) -> None: ...

    map = staticmethod(map)

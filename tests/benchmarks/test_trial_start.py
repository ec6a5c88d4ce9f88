"""The comparison of trial starts, in a short form: that every contestant does what it is timed for, not how fast.

Ray's nesting is left out: measured beside other work it took 107 s to its first report, and one trial of four reported
within 240 s (benchmarks/results/rank_start.json), so that a test would fail for reasons of Ray's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trial_start
from ray.cloudpickle import register_pickle_by_value

# Ray's workers cannot import a benchmark.
register_pickle_by_value(sys.modules["trial_start"])

TRIALS = 4


def check(found: trial_start.Measured) -> None:
    """Every trial has started, reported all its epochs, and is complete in the journal."""
    assert found["trials"] == TRIALS
    assert found["reports"] == [trial_start.EPOCHS] * TRIALS
    assert found["states"] == ["COMPLETE"] * TRIALS
    assert len(found["starts_s"]) == TRIALS - 1 and len(found["turns_s"]) == TRIALS - 2
    assert all(0 < start < found["wall_s"] for start in [found["first_start_s"], *found["starts_s"]])
    # The next trial is asked for after this one has reported.
    assert all(turn > start for turn, start in zip(found["turns_s"], found["starts_s"], strict=False))


@pytest.mark.slow
def test_every_trial_of_ours_reports_all_epochs_and_is_complete(ray_session: None) -> None:
    check(trial_start.measure_ours(TRIALS))


def test_every_trial_of_the_floor_reports_all_epochs_and_is_complete() -> None:
    check(trial_start.measure_floor(TRIALS))


def test_ratios_and_differences_are_of_the_same_turn() -> None:
    def turn(ours: float, floor: float, nested: list[float]) -> dict[str, trial_start.Measured]:
        return {"ours": {"starts_s": [ours]}, "floor": {"starts_s": [floor]}, "nested": {"starts_s": nested}}

    turns = [turn(0.1, 0.05, [10.0]), turn(0.2, 0.05, [8.0]), turn(0.1, 0.08, [])]
    nested, floor = trial_start.compare(turns)["results"]
    assert nested["nested_over_ours"] == {"median": 70.0, "least": 40.0, "most": 100.0}
    assert floor["ours_minus_floor_s"] == {"median": 0.05, "least": 0.02, "most": 0.15}
    assert nested["reached"] and floor["reached"]


def test_a_nesting_that_never_reported_is_no_ratio() -> None:
    measured = {"ours": {"starts_s": [0.1]}, "floor": {"starts_s": [0.05]}, "nested": {"starts_s": []}}
    nested, _ = trial_start.compare([measured])["results"]
    assert nested["nested_over_ours"] is None and not nested["reached"]


def test_too_few_trials_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["trial_start.py", "--trials", "2", "--results", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit) as ended:
        trial_start.main()
    assert ended.value.code == 2 and not (tmp_path / "r.json").exists()

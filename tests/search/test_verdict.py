import math
from pathlib import Path

import numpy as np
import pytest
from driver import Driver, learn, make_plan, open_conductor, search
from outcomes import DROPPING, Conduct, is_baseline, leaderboard, outcome_of, summary_of

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.layers import load_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, FAILED
from phenoscape_tune.search.report import (
    write_best,
)
from phenoscape_tune.search.verdict import decide


def test_a_clear_gain_makes_the_candidate_the_best(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(winner=72, baseline=36))
    assert outcome.gain is not None
    assert outcome.gain.value == pytest.approx(0.4)
    assert outcome.gain.low > 0
    assert outcome.best is outcome.candidate
    assert outcome.difference == outcome.gain.value
    assert outcome.verdict.startswith("clear gain over the defaults: +0.400 (95 % interval +0.")


def test_mean_and_standard_deviation_are_those_of_the_repeats(finished: Conductor) -> None:
    outcome = outcome_of(finished)
    for standing in (outcome.baseline, outcome.candidate):
        assert standing is not None
        repeats = [r.objective or 0 for r in finished.records() if r.of == standing.record.name]
        assert len(repeats) == 2
        assert standing.objective == pytest.approx(np.mean(repeats))
        assert standing.sd == pytest.approx(np.std(repeats, ddof=1))


def test_the_candidate_is_the_best_as_repeated_not_as_searched(tmp_path: Path) -> None:
    """The luckiest trial of the search is often not the best one."""

    def lucky(config: TrainConfig, epoch: int) -> float:
        if config.seed == 5:
            return learn(config, epoch)
        return 0.9 - learn(config, epoch)  # repeated, the order turns round

    conductor = Driver(open_conductor(make_plan(tmp_path)), lucky).run()
    candidate = outcome_of(conductor).candidate
    first, second = [record for record in conductor.ranked() if record.stage != "defaults"][:2]
    assert first.objective is not None and second.objective is not None
    assert first.objective > second.objective
    assert candidate is not None
    assert candidate.record == second


def test_the_candidate_that_was_not_dropped_has_a_pair_with_each_seed(tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path, confirm=DROPPING)), learn).run()
    repeats = [record for record in conductor.records() if record.of]
    outcome = outcome_of(conductor)
    assert outcome.candidate is not None and outcome.baseline is not None
    own = [r.objective for r in repeats if r.of == outcome.candidate.record.name and r.objective is not None]
    assert len(own) == 3
    assert outcome.candidate.objective == pytest.approx(np.mean(own))
    assert [r.of for r in repeats if r.seed == 8] == [outcome.baseline.record.name, outcome.candidate.record.name]


def test_a_candidate_that_fails_at_last_does_not_win_over_one_that_was_dropped_and_did_not(tmp_path: Path) -> None:
    def objective(config: TrainConfig, epoch: int) -> float:
        fails = config.seed == 8 and config.lr != 0.001 and epoch == 2
        return math.nan if fails else learn(config, epoch)

    conductor = Driver(open_conductor(make_plan(tmp_path, confirm=DROPPING)), objective).run()
    repeats = [record for record in conductor.records() if record.of]
    last = next(record for record in repeats if record.status == FAILED)
    candidate = outcome_of(conductor).candidate
    assert candidate is not None
    assert candidate.record.name != last.of
    assert sum(r.of == candidate.record.name for r in repeats) == 2


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_dropping_confirmation_cut_off_decides_by_the_seeds_that_all_who_were_left_had(
    seeds: int, tmp_path: Path
) -> None:
    conductor = open_conductor(make_plan(tmp_path, confirm=DROPPING))
    driver = Driver(conductor, learn, concurrent=1)
    # Until the defaults have begun with the seed after.
    for _ in driver.reports():
        if any(record.seed == 6 + seeds for record in conductor.live.values()):
            break
    done = [r for r in conductor.records() if r.of and r.status == COMPLETED]
    assert len(done) == {1: 4, 2: 7}[seeds]
    candidate = outcome_of(conductor).candidate
    means = {
        name: np.mean([r.objective or 0.0 for r in done if r.of == name])
        for name in {r.of for r in done if r.seed == 5 + seeds} - {conductor.records()[0].name}
    }
    assert candidate is not None
    assert candidate.record.name == max(means, key=lambda name: means[name])


@pytest.mark.parametrize(
    ("winner", "baseline", "takes"), [(47, 45, "winner"), (45, 45, "defaults"), (43, 45, "defaults")]
)
def test_without_a_clear_gain_at_equal_cost_the_better_one_is_taken(
    winner: int, baseline: int, takes: str, confirmed: Conduct
) -> None:
    outcome = outcome_of(confirmed(winner, baseline))
    assert outcome.gain is not None
    assert not outcome.gain.low > 0
    assert outcome.best is (outcome.candidate if takes == "winner" else outcome.baseline)
    assert outcome.verdict.startswith("no clear gain over the defaults: ")
    assert "both cost the same" in outcome.verdict


def test_a_difference_in_seconds_is_noise_where_no_key_changes_the_cost(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(47, 45, slower=3.0))
    assert outcome.best is outcome.candidate
    assert "both cost the same" in outcome.verdict


def test_without_a_clear_gain_the_cheaper_baseline_is_taken(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(47, 45, key="batch_size", slower=3.0))
    assert outcome.best is outcome.baseline
    assert outcome.verdict.startswith("no clear gain")
    assert "defaults, which are cheaper" in outcome.verdict
    assert outcome.difference == pytest.approx(0.0222, abs=1e-3)


def test_without_a_clear_gain_the_cheaper_winner_is_taken(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(44, 45, key="batch_size", slower=0.3))
    assert outcome.best is outcome.candidate
    assert "winner, which is cheaper" in outcome.verdict


def test_a_clear_gain_is_worth_its_cost(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(80, 30, key="batch_size", slower=3.0))
    assert outcome.best is outcome.candidate
    assert outcome.verdict.startswith("clear gain")


def test_a_winner_that_is_worse_on_the_test_part_is_not_taken(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed(36, 72, key="batch_size", slower=0.3))
    assert outcome.best is outcome.baseline
    assert outcome.verdict.startswith("no gain: the best of the search is worse than the defaults, -0.400")


def test_without_a_test_part_the_gain_is_told_as_not_confirmed(confirmed: Conduct) -> None:
    outcome = outcome_of(confirmed())
    assert outcome.gain is None
    assert outcome.best is outcome.candidate
    assert outcome.difference == pytest.approx(0.1)
    assert outcome.verdict == "+0.100 against the defaults in kNN balanced accuracy, not confirmed on a test part"


@pytest.mark.parametrize("better", [True, False])
def test_without_confirmation_the_search_decides(better: bool, tmp_path: Path) -> None:
    def objective(config: TrainConfig, epoch: int) -> float:
        return 0.5 if is_baseline(config) else 0.6 if better else 0.4

    conductor = Driver(open_conductor(make_plan(tmp_path, confirm=None)), objective).run()
    outcome = outcome_of(conductor)
    assert outcome.gain is None
    assert outcome.best is (outcome.candidate if better else outcome.baseline)
    assert outcome.difference == pytest.approx(0.1 if better else -0.1)
    assert ("keeps the defaults" in outcome.verdict) == (not better)


def test_a_baseline_that_failed_leaves_no_gain_to_tell(tmp_path: Path) -> None:
    conductor = Driver(
        open_conductor(make_plan(tmp_path)), lambda config, epoch: math.nan if is_baseline(config) else 0.6
    ).run()
    outcome = decide(conductor)
    assert outcome is not None
    assert (outcome.baseline, outcome.gain, outcome.difference) == (None, None, None)
    assert outcome.best is outcome.candidate
    assert "the defaults did not train" in outcome.verdict


def test_a_baseline_whose_repeats_failed_is_still_the_baseline(tmp_path: Path) -> None:
    def objective(config: TrainConfig, epoch: int) -> float:
        return math.nan if is_baseline(config) and config.seed != 5 else learn(config, epoch)

    outcome = decide(Driver(open_conductor(make_plan(tmp_path)), objective).run())
    assert outcome is not None
    assert "the defaults did not train" not in outcome.verdict
    assert outcome.baseline is not None
    assert outcome.baseline.record.stage == "defaults"


def test_where_only_the_defaults_trained_they_are_the_best(tmp_path: Path) -> None:
    conductor = Driver(
        open_conductor(make_plan(tmp_path)), lambda config, epoch: 0.5 if is_baseline(config) else math.nan
    ).run()
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.candidate is None
    assert outcome.best is outcome.baseline
    assert "best.yaml keeps the defaults" in outcome.verdict
    assert load_config(str(write_best(conductor.plan, outcome))).lr == 0.001


def test_where_nothing_trained_there_is_no_outcome(tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path)), lambda config, epoch: math.nan).run()
    assert decide(conductor) is None
    assert {row["status"] for row in leaderboard(conductor)[1]} == {FAILED}
    summary = summary_of(conductor, None)
    assert (summary["baseline"], summary["winner"], summary["gain"], summary["gain_ci95"]) == (None, None, None, None)
    assert summary["verdict"] == "no valid trial"


# An objective of which less is better


def test_the_lowest_loss_wins_and_less_is_a_gain(minimised: Conductor) -> None:
    outcome = outcome_of(minimised)
    assert outcome.baseline is not None and outcome.candidate is not None and outcome.gain is not None
    repeats = {r.of: [] for r in minimised.records() if r.of}  # type: ignore[var-annotated]
    for record in minimised.records():
        if record.of:
            repeats[record.of].append(record.objective)
    means = {name: np.mean(values) for name, values in repeats.items()}
    assert outcome.candidate.record.name == min(means, key=lambda name: means[name])
    assert outcome.candidate.objective < outcome.baseline.objective
    assert outcome.gain.value == pytest.approx(outcome.baseline.objective - outcome.candidate.objective, abs=0.05)
    assert outcome.gain.low > 0
    assert outcome.difference == outcome.gain.value
    assert outcome.best is outcome.candidate
    assert outcome.verdict.startswith("clear gain over the defaults: +")
    assert "in reference contrast on the test part (lower is better there; + is a gain)" in outcome.verdict


def test_where_the_defaults_have_the_lowest_loss_they_are_kept(tmp_path: Path) -> None:
    conductor = search(
        tmp_path,
        lambda config, epoch: 4.0 if is_baseline(config) else 4.5,
        metric_name="reference_contrast",
        confirm=None,
    )
    outcome = outcome_of(conductor)
    assert outcome.best is outcome.baseline
    assert outcome.difference == pytest.approx(-0.5)
    assert outcome.verdict.startswith("-0.500 against the defaults in reference contrast")


# A score without parts


def with_test_score(config: TrainConfig, epoch: int) -> dict[str, float]:
    """RankMe: the test part's value is told with the last epoch, and there is nothing to draw a bootstrap from."""
    value = 40 * learn(config, epoch)
    return {"objective": value, "test_objective": value + 0.1 * (config.seed % 3)}


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_gain_of_a_score_without_parts_is_that_of_the_seeds(seeds: int, tmp_path: Path) -> None:
    confirm = {"top_k": 2, "seeds": seeds}
    conductor = search(tmp_path, with_test_score, metric_name="rankme", confirm=confirm)
    outcome = outcome_of(conductor)
    assert outcome.gain is not None and outcome.baseline is not None and outcome.candidate is not None
    assert outcome.gain.seeds == seeds
    assert outcome.gain.value == pytest.approx(outcome.candidate.objective - outcome.baseline.objective, rel=0.2)
    summary = summary_of(conductor, outcome)
    assert summary["gain"] == outcome.gain.value
    if seeds == 1:
        # JSON has no infinity, and one seed tells of no interval.
        assert summary["gain_ci95"] is None
        assert "interval" not in outcome.verdict
        assert "of one fresh seed, which tells nothing of the noise of training" in outcome.verdict
        assert outcome.verdict.startswith("no clear gain")
    else:
        assert summary["gain_ci95"] == [outcome.gain.low, outcome.gain.high]

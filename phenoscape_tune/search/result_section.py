"""The report's first section: baseline, winner, gain and cost, what to know beside them, and the confirmation."""

from __future__ import annotations

import math
import shlex

from phenoscape_tune.search import story
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.confirm import Gain
from phenoscape_tune.search.figures import Table, direction
from phenoscape_tune.search.marks import stage_winner, status_of, tell_values
from phenoscape_tune.search.markup import Page, bullets, number, paragraphs, table, text
from phenoscape_tune.search.priority import CONFIRM
from phenoscape_tune.search.record import COMPLETED, PRUNED
from phenoscape_tune.search.report import grid_cost, used_budget
from phenoscape_tune.search.result_figures import confirmation_figures
from phenoscape_tune.search.verdict import Outcome


def train_command(conductor: Conductor) -> str:
    """The command that trains the winner."""
    return f"python scripts/train.py --config {shlex.quote(str(conductor.plan.folder / 'best.yaml'))}"


def result_section(page: Page, conductor: Conductor, outcome: Outcome | None) -> str:
    """The section's HTML; its figures are added to the page."""
    parts = [f'<p class="headline">{text(story.headline(conductor, outcome))}</p>']
    parts.append(f'<div class="tiles">{"".join([*_score_tiles(conductor, outcome), _cost_tile(conductor)])}</div>')
    if outcome is not None:
        parts.append(f'<p class="quiet">{text(story.tell_error(conductor, outcome))}.</p>')
        parts.append(f"<pre>{text(train_command(conductor))}</pre>")
    else:
        keys = ", ".join(conductor.plan.space.parameters)
        parts.append(paragraphs([f"Try smaller values, above all of lr. Searched: {keys}."] if conductor.done else []))
    if known := story.cautions(conductor, outcome):
        parts.append(f'<div class="know"><h3>Worth knowing</h3>{bullets([f"{line}." for line in known])}</div>')
    parts += [_steps(conductor), _confirmation(page, conductor, outcome)]
    return "".join(parts)


def _score_tiles(conductor: Conductor, outcome: Outcome | None) -> list[str]:
    if outcome is None:
        return []
    tiles = []
    if outcome.baseline is not None:
        shown = _score(outcome.baseline.objective, outcome.baseline.sd)
        tiles.append(_tile("Baseline: the defaults", shown, "the configuration as it was given", "baseline"))
    values = outcome.best.record.values
    told = tell_values(values) if values else "the defaults: they are kept"
    tiles.append(_tile("Winner", _score(outcome.best.objective, outcome.best.sd), told, "winner"))
    candidate = outcome.candidate
    if candidate is not None and candidate is not outcome.best:
        told = f"{tell_values(candidate.record.values)}; not taken"
        tiles.append(_tile("Best of the search", _score(candidate.objective, candidate.sd), told, "candidate"))
    if outcome.difference is not None:
        tiles.append(_gain_tile(outcome))
    return tiles


def _tile(title: str, big: str, small: str, name: str, more: str = "") -> str:
    return (
        f'<div class="tile" id="tile-{name}"><h3>{text(title)}</h3><div class="big">{big}</div>'
        f"<p>{text(small)}</p>{more}</div>"
    )


def _score(objective: float, sd: float | None) -> str:
    spread = "" if sd is None else f' <span class="spread">± {number(sd)}</span>'
    return f"{number(objective)}{spread}"


def _gain_tile(outcome: Outcome) -> str:
    gain, unit = outcome.gain, "" if outcome.metric.higher_is_better else "; positive is better, that is lower"
    shown = number(outcome.difference, sign=True)
    who = "the winner" if outcome.candidate is outcome.best else "the best of the search"
    if gain is None:
        return _tile("Gain over the baseline", shown, f"of {who}; not confirmed on a test part{unit}", "gain")
    seeds = story.count(gain.seeds, "fresh seed")
    if not math.isfinite(gain.low):
        return _tile("Gain over the baseline", shown, f"of {who}, on the test part, with {seeds}{unit}", "gain")
    interval = f"95 % interval {gain.low:+.3f} to {gain.high:+.3f} on the test part, {seeds}{unit}"
    return _tile("Gain over the baseline", shown, interval, "gain", _whisker(gain))


def _whisker(gain: Gain) -> str:
    """The gain and its interval on a line with zero marked; drawn without a script."""
    low, high = min(gain.low, 0.0), max(gain.high, 0.0)
    span = (high - low) or 1.0
    zero, at, left, right = (12 + 176 * (value - low) / span for value in (0.0, gain.value, gain.low, gain.high))
    alt = f"gain {gain.value:+.3f}, interval from {gain.low:+.3f} to {gain.high:+.3f}, against zero"
    return (
        f'<svg viewBox="0 0 200 46" preserveAspectRatio="xMidYMid meet" role="img" aria-label="{alt}">'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="2" y2="30" stroke="#68707a" stroke-dasharray="3 3"/>'
        f'<text x="{zero:.1f}" y="43" font-size="11" text-anchor="middle" fill="#4d5560">0</text>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="16" y2="16" stroke="#0072b2" stroke-width="3"/>'
        f'<circle cx="{at:.1f}" cy="16" r="6" fill="#0072b2"/></svg>'
    )


def _cost_tile(conductor: Conductor) -> str:
    used = used_budget(conductor).device_hours or 0.0
    grid = grid_cost(conductor)
    trials = f"{grid['trials']:,.0f} trials, each to its end"
    shown = f'<data value="{used!r}">{story.tell_hours(used)}</data>'
    if not grid["device_hours"] or not used:
        return _tile("Cost in device time", shown, f"an exhaustive grid: {trials}", "cost")
    times = f" ({grid['device_hours'] / used:.1f} times as much)" if grid["device_hours"] > used else ""
    told = f"confirmation included; an exhaustive grid of {trials}: {story.tell_hours(grid['device_hours'])}{times}"
    return _tile("Cost in device time", shown, told, "cost")


def _steps(conductor: Conductor) -> str:
    """How the objective rose from stage to stage."""
    metric, rows = conductor.plan.objective, []
    for stage in conductor.stages:
        winner, before = stage_winner(conductor, stage), conductor.before(stage)
        if winner is None or stage.name == CONFIRM:
            continue
        step, won = None, conductor.score(winner, stage)
        if before is not None and before.name != winner.name:
            stood = conductor.score(before, stage)
            assert won is not None and stood is not None
            step = metric.sign * (won - stood)
        told = tell_values(winner.values) or "the defaults"
        rows.append((story.stage_title(stage), won, step, told, len(conductor.records(stage))))
    if not rows:
        return ""
    header = ("stage", f"{metric.title} ({direction(metric)})", "better by", "best so far", "trials")
    note = (
        "Each value is of one trial. The best of several is partly luck, so the steps tend to add up to more than the "
        "gain that fresh seeds confirm."
    )
    if conductor.plan.space.scheduler.pasha:
        note += " It is the value at the epoch at which the stage's trials were compared; of the defaults, at the end."
    return f"<h3>From the defaults to the winner</h3>{table(Table(header, rows))}<p class='quiet'>{text(note)}</p>"


def _confirmation(page: Page, conductor: Conductor, outcome: Outcome | None) -> str:
    repeats = [record for record in conductor.records() if record.of]
    title = '<h3 id="confirmation">Was it confirmed?</h3>'
    if not repeats:
        why = "was not asked for" if not conductor.plan.repeats else "did not take place"
        return f"{title}{paragraphs([f'A confirmation (the best trials and the defaults, repeated) {why}.'])}"
    figures = confirmation_figures(conductor, outcome.best.record.name if outcome else None)
    lines = [
        f"The best trials and the defaults were trained again with fresh seeds ({story.tell_ends(repeats)}). Dots are "
        "repeats, thin lines join those with the same seed, the bar is the mean ± standard deviation; the winner's "
        "name is in bold."
    ]
    if any(len(names) < len(conductor.rounds[0]) for names in conductor.rounds):
        lines.append("After each seed the worst of the candidates was left out; the defaults never.")
    if len(figures) > 1:
        lines.append(
            "The gain is told on the test part: the validation part helped to choose the best trials, and favours them."
        )
    failed = [record for record in repeats if record.status not in (COMPLETED, PRUNED)]
    rows = [(r.name, r.of, r.seed, status_of(r), r.reason) for r in failed]
    bad = table(Table(("trial", "repeats", "seed", "how it ended", "reason"), rows)) if rows else ""
    return f"{title}{paragraphs(lines)}{page.figures(figures)}{bad}"

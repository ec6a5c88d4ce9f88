"""A journal that is damaged, or is a stranger's, is usable or refused with a message; never anything else."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import COMPLETED, FAILED, PRUNED
from phenoscape_tune.search.study import Study, read_trials

PARAMETERS = {
    "lr": Parameter(type="loguniform", low=1e-5, high=1e-1),
    "batch_size": Parameter(type="choice", values=[16, 32, 64]),
}
LR, BATCH = Stage(1, "lr", ("lr",), 6), Stage(2, "batch_size", ("batch_size",), 4)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a search in the middle: trials of every state in two stages, one of them running."""
    path = tmp_path_factory.mktemp("journal") / "study.journal"
    study = Study(path, PARAMETERS, 0)
    study.open_stage(LR, None)
    winner = None
    for values, status in (([0.1, 0.2, 0.3], COMPLETED), ([0.1], PRUNED), ([0.1, 0.2], FAILED), ([0.2], None)):
        record = study.ask(LR, {"weight_decay": 1e-4})
        for epoch, value in enumerate(values, start=1):
            row = {"epoch": epoch, "objective": value, "objective_error": 0.01, "seconds": 2.0, "elapsed": 1.0}
            record = study.report(record, row)
        ended = study.tell(record, status, "because" * (status == FAILED)) if status else record
        winner = winner or ended
    study.open_stage(BATCH, winner, {"batch_size": 32})
    study.report(study.ask(BATCH, {"lr": 0.01}), {"epoch": 1, "objective": 0.3})
    return path.read_bytes()


def use(path: Path) -> int:
    """Read a journal, open it, and go on with it as a resumed search does; the number of its trials."""
    known = len(read_trials(path))
    study = Study(path, PARAMETERS, 0)
    study.open_stage(LR, None)
    first = study.trials(LR)
    study.open_stage(BATCH, next((record for record in first if record.status == COMPLETED), None), {"batch_size": 32})
    records = [*first, *study.trials(BATCH)]
    for record in records:
        assert record.objective is None or isinstance(record.objective, float)
        if not record.ended:
            study.report(record, {"epoch": len(record.curve) + 1, "objective": 0.5})
    study.tell(study.ask(LR, {}), PRUNED)
    return known


def attempt(content: bytes) -> bool:
    """Whether a journal of this content is used; False where it is refused. Anything else fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.journal"
        path.write_bytes(content)
        begun = time.monotonic()
        refusal = ""
        try:
            use(path)
        except UserError as error:
            refusal = str(error)
        assert time.monotonic() - begun < 20
        assert not refusal or (str(path) in refusal and "\n" not in refusal)
    return not refusal


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside of a line."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


JUNK = st.sampled_from([None, True, -1, 0, 1e308, 10**30, "", "x", "../x", [], {}, ["a"], {"a": 1}, float("nan"), 99])
WHOLE_LINES = [b"\n", b"[]\n", b"3\n", b"null\n", b"{}\n", b'"x"\n', b"\xff\xfe\n", b"[" * 3000 + b"\n"]


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """A journal with a few lines changed, lost, repeated, exchanged, or with values of other types in them."""
    lines = good.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        kind = draw(st.sampled_from(["byte", "lose", "repeat", "exchange", "value", "key", "line"]))
        if kind == "byte":
            line = bytearray(lines[at])
            line[draw(st.integers(0, len(line) - 1))] = draw(st.integers(0, 255))
            lines[at] = bytes(line)
        elif kind == "lose" and len(lines) > 1:
            del lines[at]
        elif kind == "repeat":
            lines.insert(at, lines[other])
        elif kind == "exchange":
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "line":
            lines[at] = draw(st.sampled_from(WHOLE_LINES))
        else:
            try:
                content = json.loads(lines[at])
            except ValueError:
                continue
            ways = list(places(content))
            if not ways:
                continue
            *way, last = draw(st.sampled_from(ways))
            holder = content
            for key in way:
                holder = holder[key]
            if kind == "value":
                holder[last] = draw(JUNK)
            else:
                del holder[last]
            lines[at] = json.dumps(content).encode() + b"\n"
    return b"".join(lines)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_journal_is_used_or_refused(data: st.DataObject, good: bytes) -> None:
    attempt(data.draw(mutated(good)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_journal_cut_anywhere_is_used(data: st.DataObject, good: bytes) -> None:
    # A crash leaves a part of what was written in order, and nothing after it.
    assert attempt(good[: data.draw(st.integers(0, len(good)))])


@pytest.mark.parametrize(
    "tail", [b"\n", b"\0\0\0\0", b'{"op_code": 8, "worker\n', b"\xff\xff\n\n", b"[" * 3000 + b"\n"]
)
def test_rubbish_at_the_end_is_dropped_and_the_rest_is_used(tail: bytes, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(good + tail)
    Study(path, PARAMETERS, 0)  # as a resume does
    assert use(path) == 5
    assert path.read_bytes().startswith(good)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"number": 0', b'"number": "a"', "number"),
        (b'"status": "completed"', b'"status": "pruned"', "status"),
        (b'"name": "lr-00', b'"name": "../../lr-00', "name"),
    ],
)
def test_what_no_search_writes_is_named(old: bytes, new: bytes, told: str, good: bytes, tmp_path: Path) -> None:
    compact = old.replace(b": ", b":")
    assert compact in good or old in good
    path = tmp_path / "study.journal"
    path.write_bytes(good.replace(compact, new).replace(old, new))
    with pytest.raises(UserError, match=f"study.journal: a line of it is damaged.*{told}.*not what a search writes"):
        read_trials(path)
    with pytest.raises(UserError, match="--overwrite"):
        Study(path, PARAMETERS, 0)


def test_a_journal_that_a_search_wrote_is_sound(good: bytes) -> None:
    assert attempt(good)

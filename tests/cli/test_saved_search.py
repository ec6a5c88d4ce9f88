from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.cli.saved_search import open_conductor, read_search, saved_plan, write_search
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import WITH_LABELS
from phenoscape_tune.search.plan import Plan, make_plan
from phenoscape_tune.search.space import build_space
from phenoscape_tune.yaml_file import dump_mapping, load_mapping

SPACE: dict[str, Any] = {
    "parameters": {"batch_size": {"type": "choice", "values": [16, 32, 64, 128, 256]}},
    "budget": {"trials": 5},
    "confirm": None,
}


class Images:
    """Stands for a search's images, of which their fingerprint is saved."""

    fingerprint = "images"


def make(folder: Path, batch_range: tuple[int, int] | None) -> Plan:
    from dataclasses import replace

    base = build_config({"batch_size": 512, "seed": 1})
    return replace(make_plan(build_space(SPACE), base, 3, folder, WITH_LABELS), batch_range=batch_range)


def first_batches(plan: Plan) -> list[int]:
    """The batch sizes that a search tries after its baseline."""
    conductor = open_conductor(plan)
    tried = []
    while (task := conductor.next_task()) is not None:
        tried.append(task.config.batch_size)
        for epoch in range(1, 4):
            conductor.report(task.record.name, {"epoch": epoch, "objective": 0.5, "seconds": 1.0})
    return tried[1:]


@pytest.mark.parametrize("batch_range", [(64, 128), None])
def test_a_resumed_search_keeps_the_recommendation_that_it_was_started_with(
    batch_range: tuple[int, int] | None, tmp_path: Path
) -> None:
    write_search(make(tmp_path, batch_range), Images())  # type: ignore[arg-type]
    assert saved_plan(tmp_path, read_search(tmp_path)).batch_range == batch_range


def test_the_batch_stage_starts_within_what_is_recommended(tmp_path: Path) -> None:
    for number, batch_range in enumerate([(16, 32), (64, 128)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        tried = first_batches(make(folder, batch_range))
        assert len(set(tried)) == len(tried) == 4
        low, high = batch_range
        assert low <= tried[0] <= high


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_epochs", "foo"), ("max_epochs", -1), ("metric", ["a"]), ("batch_sizes", 7), ("batch_sizes", {"a": 1}),
        ("batch_range", 7), ("config", "hello"), ("space", [1]), ("seed", [1, 2]),
    ],
)  # fmt: skip
def test_a_search_file_that_was_changed_by_hand_is_one_message_that_names_it(
    key: str, value: Any, tmp_path: Path
) -> None:
    write_search(make(tmp_path, None), Images())  # type: ignore[arg-type]
    path = tmp_path / "search.yaml"
    path.write_text(dump_mapping({**load_mapping(path), key: value}))
    with pytest.raises(UserError, match=f"search.yaml: {key}"):
        saved_plan(tmp_path, read_search(tmp_path))

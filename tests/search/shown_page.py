"""A report's page as a browser would find it, and a search with all that can happen to show there."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from driver import EPOCHS, DoesNotFit, learn, make_plan

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.report_page import build_report
from phenoscape_tune.search.verdict import Outcome, decide
from phenoscape_tune.training.capacity import Capacity

SECTIONS = ["result", "stages", "curves", "importances", "coordinates", "failures", "configuration", "train", "details"]
LR = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
NARROW = {"type": "uniform", "low": 0.3, "high": 0.5}
STRENGTH = {"type": "uniform", "low": 0, "high": 1}
BATCHES = {"type": "choice", "values": [16, 32, 64, 128]}
SCRIPT = "/* plotly */"
LABELS = ["crow", "finch", "robin"] * 20


@dataclass
class Seen(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        tags: every element with its attributes.
        words: the text of each section; "" is what stands outside of them.
        numbers: the exact values that each section shows, by the id of the nearest element that has one.
        tables: of each section its tables, as rows of cells' texts.
    """

    page: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    tables: dict[str, list[list[list[str]]]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._section, self._near, self._inside = "", "", ""
        self.feed(self.page)

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag == "section":
            self._section = known["id"]
        if "id" in known:
            self._near = known["id"]
        if tag == "data":
            self.numbers.setdefault(self._near, []).append(float(known["value"]))
        tables = self.tables.setdefault(self._section, [])
        if tag == "table":
            tables.append([])
        if tag == "tr":
            tables[-1].append([])
        if tag in ("td", "th"):
            tables[-1][-1].append("")
        if tag in ("script", "style", "td", "th", "svg"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words[self._section] = self.words.get(self._section, "") + data
        if self._inside in ("td", "th"):
            self.tables[self._section][-1][-1][-1] += data

    @property
    def figures(self) -> dict[str, Any]:
        given: dict[str, Any] = json.loads(next(script for script in self.scripts if script.startswith('{"figures"')))
        return given["figures"]

    def figure(self, title: str, number: int = 0) -> dict[str, Any]:
        """The figure under a caption."""
        captions = re.findall(
            r'<figcaption>([^<]*)</figcaption><div class="scroll"><div class="plot" id="(.*?)"', self.page
        )
        found: dict[str, Any] = self.figures[[name for caption, name in captions if caption == title][number]]
        return found

    def traces(self, title: str, symbol: str) -> list[dict[str, Any]]:
        return [t for t in self.figure(title)["data"] if t.get("marker", {}).get("symbol") == symbol]

    @property
    def everything(self) -> str:
        return " ".join(self.words.values())


def read(conductor: Conductor, outcome: Outcome | None = None) -> Seen:
    return Seen(build_report(conductor, outcome or decide(conductor), SCRIPT))


def rich_row(config: TrainConfig, epoch: int) -> dict[str, float]:
    """An objective with noise; large learning rates diverge, the largest batch does not fit."""
    if config.batch_size == 128 and epoch == 2:
        raise DoesNotFit("out of memory with 64 images at a time")
    noise = random.Random(f"{config.lr}{config.temperature}{config.batch_size}{config.transforms}{epoch}{config.seed}")
    value = learn(config, epoch) - 0.1 * abs(config.transforms.cj_strength - 0.7) + noise.gauss(0, 0.004)
    value = math.nan if config.lr > 0.05 and epoch == 2 else max(0.0, value)
    tested = {"test_objective": value - 0.02} if epoch == EPOCHS and config.seed != 5 else {}
    return {"objective": value, "objective_error": 0.011, **tested}


def write_scores(conductor: Conductor) -> None:
    """The specimens' scores of the confirmations, as the trials write them."""
    for record in conductor.records():
        if record.test_objective is not None:
            folder = conductor.plan.folder / "trials" / record.name
            folder.mkdir(parents=True)
            right = np.arange(len(LABELS)) < record.test_objective * len(LABELS)
            with (folder / "test_scores.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["filename", "group", "label", "score"])
                writer.writerows((f"{i}.jpg", i, label, float(right[i])) for i, label in enumerate(LABELS))


def rich_plan(folder: Path) -> Plan:
    parameters = {"lr": LR, "batch_size": BATCHES, "temperature": NARROW, "transforms.cj_strength": STRENGTH}
    confirm, budget = {"top_k": 2, "seeds": 3}, {"trials": 40}
    plan = make_plan(folder, parameters=parameters, extend=True, refine=True, budget=budget, confirm=confirm)
    return replace(plan, capacity=Capacity(32, {8: 40.0, 16: 70.5, 32: 90.0}, True))


def assert_asks_nothing_of_the_network(seen: Seen) -> None:
    beside = {"leaderboard.csv", "summary.json", "best.yaml"}
    for tag, known in seen.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "video", "audio", "source"), tag
        assert "src" not in known, (tag, known)
        assert not {name for name in known if name.startswith("on")}
        if "href" in known:
            assert known["href"] in beside or known["href"].startswith(("#", "data:,")), known
    style = seen.page[seen.page.index("<style>") : seen.page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?:", seen.page.replace("http-equiv", ""))

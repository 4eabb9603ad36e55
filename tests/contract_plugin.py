"""A pytest plugin that records which rows of docs/contract.md each test proves and how the test ended.

A run updates the record of the tests it ran and leaves the others, so a partial run does not forget the rest.
The record lies in the working tree's `.pytest_cache`, where `python -m tests.contract` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(__file__).parents[1] / ".pytest_cache" / "contract.json"
MARKS = RECORD.with_name("contract-marks.json")
PROPERTY = "contract"
# A test has three phases; the worst of them is its outcome.
WORST_FIRST = ("failed", "skipped", "passed")


def marks_of(item: pytest.Item) -> list[dict[str, Any]]:
    """The rows a test names: `{"row": "PD-03", "part": None}`, in the order of its marks."""
    return [
        {"row": row, "part": mark.kwargs.get("part")} for mark in item.iter_markers("contract") for row in mark.args
    ]


def worst(outcomes: Iterable[str]) -> str:
    found = set(outcomes)
    return next((outcome for outcome in WORST_FIRST if outcome in found), "failed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if marks := marks_of(item):
            item.user_properties.append((PROPERTY, marks))


def pytest_collection_finish(session: pytest.Session) -> None:
    """With `--collect-only`: write which test names which rows to `MARKS`, for `tests/contract.py`."""
    if session.config.option.collectonly:
        MARKS.parent.mkdir(exist_ok=True)
        MARKS.write_text(json.dumps({item.nodeid: marks_of(item) for item in session.items if marks_of(item)}))


class Recorder:
    """Collects outcomes where all reports arrive: in the only process, or in the one that leads the others."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self.outcomes: dict[str, list[str]] = {}
        self.runbook_blocks = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if report.when == "call":
            self.runbook_blocks += int(str(properties.get("runbook_blocks", 0)))
        if PROPERTY in properties:
            # xdist adds "@group" to the ids of grouped tests
            self.outcomes.setdefault(report.nodeid.partition("@")[0], []).append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.runbook_blocks:
            terminalreporter.write_line(f"{self.runbook_blocks} command blocks of the runbook executed")

    def pytest_sessionfinish(self) -> None:
        if not self.outcomes:
            return
        known = json.loads(self.record.read_text()) if self.record.exists() else {}
        known.update({nodeid: worst(outcomes) for nodeid, outcomes in self.outcomes.items()})
        self.record.parent.mkdir(exist_ok=True)
        self.record.write_text(json.dumps(known, indent=1, sort_keys=True))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(RECORD), "contract-recorder")

"""A pytest plugin that records which rows of docs/contract.md each test proves and how the test ended.

The record says which state of the working tree it is about, so that it ages: a run in the same state adds to it, and a
run in another state begins it anew. It lies in `.pytest_cache`, where `python -m tests.contract` reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORD = ROOT / ".pytest_cache" / "contract.json"
PAGE = "docs/contract.md"
MARKS = RECORD.with_name("contract-marks.json")
PROPERTY = "contract"
GROUP = re.compile(r"@[^@\]]*$")
"""What the distribution of tests adds to the id of one that stays with its group."""
# A test has three phases; the worst of them is its outcome.
WORST_FIRST = ("failed", "skipped", "passed")
WHOLE = {"", "not prove"}
"""The `-m` of a full run: `make test` leaves out nothing but the long proofs."""


@dataclass(frozen=True)
class Record:
    """How tests ended, in which state of the tree. `tree` is empty where it is not known or changed meanwhile."""

    commit: str
    tree: str
    is_full: bool
    outcomes: dict[str, str]

    def followed_by(self, newer: Record) -> Record:
        """What is known after another run: both where nothing changed between them, else the newer one alone."""
        if not self.tree or self.tree != newer.tree:
            return newer
        return replace(newer, is_full=self.is_full or newer.is_full, outcomes={**self.outcomes, **newer.outcomes})


def read_record(file: Path) -> Record | None:
    """None where no run has left one, or one of an older shape."""
    if not file.exists():
        return None
    held = json.loads(file.read_text())
    return Record(**held) if held.keys() == {"commit", "tree", "is_full", "outcomes"} else None


def tree_state(root: Path = ROOT) -> tuple[str, str]:
    """The commit (with a + for changes on top of it), and a hash of all files that git knows or would take.

    The page of the contract is left out: it says what is proved and proves nothing. Both are empty without git.
    """
    commit = _git(root, "rev-parse", "--short", "HEAD").strip()
    names = sorted(name for name in _git(root, "ls-files", "-coz", "--exclude-standard").split("\0") if name)
    if not commit or not names:
        return "", ""
    hashed = hashlib.sha256()
    for name in names:
        if name != PAGE and (root / name).is_file():
            hashed.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    changed = _git(root, "status", "--porcelain", "--", ".", f":!{PAGE}")
    return commit + ("+" if changed else ""), hashed.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def is_full_run(config: pytest.Config) -> bool:
    """Whether nothing was chosen on the command line: no path, no name, no marks but those of `make test`."""
    option = config.option
    chosen = (
        option.keyword,
        option.deselect,
        getattr(option, "lf", False),
        getattr(option, "fast", False),
        option.collectonly,
    )
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr in WHOLE and not any(chosen)


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

    def __init__(self, record: Path, *, is_full: bool) -> None:
        self.record = record
        self.is_full = is_full
        self.before = tree_state()
        self.outcomes: dict[str, list[str]] = {}
        self.runbook_blocks = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if report.when == "call":
            self.runbook_blocks += int(str(properties.get("runbook_blocks", 0)))
        if PROPERTY in properties:
            # xdist adds "@group" to the ids of grouped tests
            self.outcomes.setdefault(GROUP.sub("", report.nodeid), []).append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.runbook_blocks:
            terminalreporter.write_line(f"{self.runbook_blocks} command blocks of the runbook executed")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.outcomes:
            return
        commit, tree = tree_state()
        new = Record(
            commit=commit,
            tree=tree if (commit, tree) == self.before else "",
            is_full=self.is_full and not session.shouldstop and not session.shouldfail,
            outcomes={nodeid: worst(outcomes) for nodeid, outcomes in self.outcomes.items()},
        )
        known = read_record(self.record)
        self.record.parent.mkdir(exist_ok=True)
        self.record.write_text(json.dumps(asdict(known.followed_by(new) if known else new), indent=1, sort_keys=True))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(RECORD, is_full=is_full_run(config)), "contract-recorder")

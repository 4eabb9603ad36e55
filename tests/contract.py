"""`make contract`: which rows of docs/contract.md are proved, by group; fails where the page and the tests disagree.

The page says by hand what each row's state is; the tests say by mark which rows they prove; the record says how they
ended, and in which state of the files: one of another state, or of a run of some tests only, proves nothing. `--update`
writes the state of rows that still say `open` from the tests that passed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.contract_plugin import MARKS, RECORD, ROOT, Record, read_record, tree_state

PAGE = ROOT / "docs" / "contract.md"
GROUP = re.compile(r"^## (?P<title>.+) \((?P<group>[A-Z]{2})\)$")
ROW = re.compile(r"^\| (?P<id>[A-Z]{2}-\d{2}) \|.*\| (?P<state>[^|]+) \|$")
CONFLICT = re.compile(r"^\| (C-\d{2}) \|", re.MULTILINE)
"""How the five sources were reconciled: rows carry the outcome, so these have no state, but a test may name one."""
STATES = ("covered", "partly", "open")


@dataclass(frozen=True)
class Row:
    id: str
    group: str
    title: str
    state: str  # covered, partly or open
    rest: str  # what is missing from a partly covered row, or the parts that make a covered one, split by ;


@dataclass(frozen=True)
class Proof:
    """One test that names a row. `outcome` is passed, failed, skipped or `not run`."""

    test: str
    row: str
    part: str | None
    outcome: str


def read_rows(page: str) -> list[Row]:
    """The rows of the page in its order. Raises ValueError for a row with an unknown state or used twice."""
    rows: dict[str, Row] = {}
    title, group = "", ""
    for line in page.splitlines():
        if heading := GROUP.match(line):
            title, group = heading["title"], heading["group"]
        elif match := ROW.match(line):
            state, _, rest = match["state"].strip().partition(":")
            if state not in STATES or match["id"] in rows or not match["id"].startswith(group):
                msg = f"row {match['id']}: unknown state {state!r}, a second time, or in the wrong group"
                raise ValueError(msg)
            rows[match["id"]] = Row(match["id"], group, title, state, rest.strip())
    return list(rows.values())


def collect_marks() -> dict[str, list[tuple[str, str | None]]]:
    """All tests with their rows, without running them. Raises RuntimeError with pytest's words when that fails."""
    MARKS.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not MARKS.exists():
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    found = json.loads(MARKS.read_text())
    return {test: [(mark["row"], mark["part"]) for mark in marks] for test, marks in found.items()}


def join_outcomes(marks: Mapping[str, Iterable[tuple[str, str | None]]], outcomes: Mapping[str, str]) -> list[Proof]:
    return [Proof(test, row, part, outcomes.get(test, "not run")) for test, rows in marks.items() for row, part in rows]


def find_faults(rows: Iterable[Row], proofs: Iterable[Proof], *, conflicts: Iterable[str] = ()) -> list[str]:
    """Sentences about every place where page and tests disagree; empty when they agree."""
    by_row: dict[str, list[Proof]] = {}
    for proof in proofs:
        by_row.setdefault(proof.row, []).append(proof)
    known = {row.id for row in rows} | set(conflicts)
    faults = [
        f"{proof.test} names {row}, which is no row of docs/contract.md"
        for row, found in by_row.items()
        for proof in found
        if row not in known
    ]
    for row in rows:
        faults += _faults_of(row, by_row.get(row.id, []))
    return faults


def _faults_of(row: Row, proofs: list[Proof]) -> list[str]:
    faults = [f"{row.id}: {proof.test} failed" for proof in proofs if proof.outcome == "failed"]
    passed = [proof for proof in proofs if proof.outcome == "passed"]
    if row.state == "partly" and not row.rest:
        faults.append(f"{row.id} is partly covered and does not say what is missing")
    if row.state == "open" and passed:
        faults.append(f"{row.id} is open, yet {passed[0].test} proves some of it: say so on the page")
    if row.state in {"covered", "partly"} and not passed:
        seen = ", ".join(sorted({proof.outcome for proof in proofs})) or "no test names it"
        faults.append(f"{row.id} is {row.state}, but no test of it passed in the last run ({seen})")
    if row.state == "covered" and passed:
        faults += _faults_of_covered(row, proofs)
    return faults


def _faults_of_covered(row: Row, proofs: list[Proof]) -> list[str]:
    """A covered row needs a proof of the whole, or one of each part that the page names, and all its proofs passed."""
    proved = {proof.part for proof in proofs if proof.outcome == "passed"}
    needed = [part.strip() for part in row.rest.split(";")] if row.rest else []
    faults = [f"{row.id} is covered in parts, but no test proves “{part}”" for part in needed if part not in proved]
    if not needed and None not in proved:
        parts = "; ".join(sorted(str(part) for part in proved))
        faults.append(f"{row.id} is covered, but its tests prove a part each. Name the parts that make it: {parts}")
    left_out = [f"{proof.test} ({proof.outcome})" for proof in proofs if proof.outcome in {"skipped", "not run"}]
    if left_out:
        faults.append(f"{row.id} is covered, but of its tests did not run: {', '.join(left_out)}")
    return faults


def find_record_faults(record: Record | None, tree: str) -> list[str]:
    """Why the record says nothing about the tree as it is now; empty when it does."""
    if record is None:
        return ["no run is recorded. Run `make test`"]
    if not record.tree or record.tree != tree:
        return [f"the last run was of another state of the files (commit {record.commit or '?'}). Run `make test`"]
    return [] if record.is_full else ["only some tests were run in this state of the files. Run `make test`"]


def update_page(page: str, proofs: Iterable[Proof]) -> str:
    """The page with `open` replaced where passed tests prove a row, wholly or in the parts they name."""
    passed: dict[str, list[Proof]] = {}
    for proof in proofs:
        if proof.outcome == "passed":
            passed.setdefault(proof.row, []).append(proof)

    def state_of(row_id: str) -> str | None:
        found = passed.get(row_id)
        if not found:
            return None
        if any(proof.part is None for proof in found):
            return "covered"
        return "partly: only " + ", ".join(sorted({str(proof.part) for proof in found}))

    lines = []
    for line in page.splitlines():
        match = ROW.match(line)
        new = state_of(match["id"]) if match and match["state"].strip() == "open" else None
        lines.append(f"{line[: line.rindex('| open |')]}| {new} |" if new else line)
    return "\n".join(lines) + "\n"


def report(rows: list[Row]) -> str:
    """Covered, partly covered and all rows of each group, and of all together."""
    lines = ["group  covered  partly  rows"]
    for group in dict.fromkeys(row.group for row in rows):
        states = [row.state for row in rows if row.group == group]
        title = next(row.title for row in rows if row.group == group)
        lines.append(f"{group:5} {states.count('covered'):8} {states.count('partly'):7} {len(states):5}  {title}")
    states = [row.state for row in rows]
    lines.append(f"{'all':5} {states.count('covered'):8} {states.count('partly'):7} {len(states):5}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the state of open rows that tests prove")
    arguments = parser.parse_args()
    record = read_record(RECORD)
    proofs = join_outcomes(collect_marks(), record.outcomes if record else {})
    if arguments.update:
        PAGE.write_text(update_page(PAGE.read_text(), proofs))
    page = PAGE.read_text()
    rows = read_rows(page)
    disagreements = find_faults(rows, proofs, conflicts=CONFLICT.findall(page))
    faults = [*find_record_faults(record, tree_state()[1]), *disagreements]
    sys.stdout.write(report(rows) + "\n" + "".join(f"fault: {fault}\n" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

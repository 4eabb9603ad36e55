"""The contract check notices each way in which the page and the tests can disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import contract
from tests.contract import Proof, Row
from tests.contract_plugin import Recorder, worst


def row(state: str, rest: str = "") -> Row:
    return Row("PD-03", "PD", "Projects and documents", state, rest)


def proof(outcome: str, *, part: str | None = None, of: str = "PD-03") -> Proof:
    return Proof("tests/test_x.py::test_y", of, part, outcome)


@pytest.mark.parametrize(
    ("state", "proofs"),
    [
        (row("covered"), [proof("passed")]),
        (row("covered"), [proof("passed"), proof("skipped")]),
        (row("covered"), [proof("passed", part="upload"), proof("passed", part="retry")]),
        (row("partly", "groups come later"), [proof("passed", part="users")]),
        (row("open"), []),
        (row("open"), [proof("not run")]),
    ],
)
def test_a_page_that_agrees_with_its_tests_has_no_fault(state: Row, proofs: list[Proof]) -> None:
    assert contract.find_faults([state], proofs) == []


@pytest.mark.parametrize(
    ("state", "proofs", "said"),
    [
        (row("open"), [proof("passed", of="ZZ-99")], "no row"),
        (row("covered"), [], "no test names it"),
        (row("covered"), [proof("skipped")], "skipped"),
        (row("covered"), [proof("not run")], "not run"),
        (row("covered"), [proof("passed"), proof("failed")], "failed"),
        (row("covered"), [proof("passed", part="upload")], "proves a part"),
        (row("partly", "groups"), [proof("skipped", part="users")], "no test of it passed"),
        (row("partly"), [proof("passed", part="users")], "does not say what is missing"),
        (row("open"), [proof("passed")], "say so on the page"),
    ],
)
def test_each_disagreement_is_a_fault(state: Row, proofs: list[Proof], said: str) -> None:
    faults = contract.find_faults([state], proofs)
    assert len(faults) == 1
    assert said in faults[0]


def test_the_page_holds_all_rows_in_known_states() -> None:
    rows = contract.read_rows(contract.PAGE.read_text())
    assert len(rows) == 312
    assert all(found.rest for found in rows if found.state == "partly")


@pytest.mark.parametrize("line", ["| PD-03 | a | b | done |", "| XX-01 | a | b | open |"])
def test_a_row_with_an_unknown_state_or_group_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="row "):
        contract.read_rows(f"## Projects (PD)\n{line}\n")


def test_update_writes_only_open_rows_that_a_passed_test_proves() -> None:
    page = "## Projects (PD)\n| PD-01 | a | b | open |\n| PD-02 | a | b | open |\n| PD-03 | a | b | open |\n"
    proofs = [proof("passed", of="PD-01"), proof("passed", of="PD-02", part="tables"), proof("skipped")]
    states = [(found.id, found.state) for found in contract.read_rows(contract.update_page(page, proofs))]
    assert states == [("PD-01", "covered"), ("PD-02", "partly"), ("PD-03", "open")]


def test_a_run_of_a_few_tests_keeps_what_is_known_of_the_others(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "cache" / "contract.json")
    recorder.outcomes = {"a": ["passed", "passed", "passed"], "b": ["passed", "skipped", "passed"]}
    recorder.pytest_sessionfinish()
    recorder.outcomes = {"a": ["passed", "failed", "passed"]}
    recorder.pytest_sessionfinish()
    assert json.loads(recorder.record.read_text()) == {"a": "failed", "b": "skipped"}


def test_an_error_in_setup_or_teardown_counts_as_failed() -> None:
    assert worst(["passed", "passed", "failed"]) == "failed"
    assert worst(["skipped", "passed"]) == "skipped"
    assert worst([]) == "failed"

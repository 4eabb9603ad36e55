"""The contract check notices each way in which the page and the tests can disagree."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests import contract
from tests.contract import Proof, Row
from tests.contract_plugin import Record, is_full_run, tree_state, worst


def row(state: str, rest: str = "") -> Row:
    return Row("PD-03", "PD", "Projects and documents", state, rest)


def proof(outcome: str, *, part: str | None = None, of: str = "PD-03") -> Proof:
    return Proof("tests/test_x.py::test_y", of, part, outcome)


@pytest.mark.parametrize(
    ("state", "proofs"),
    [
        (row("covered"), [proof("passed")]),
        (row("covered"), [proof("passed"), proof("passed", part="upload")]),
        (row("covered", "upload; retry"), [proof("passed", part="upload"), proof("passed", part="retry")]),
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
        (row("covered"), [proof("passed"), proof("skipped")], "did not run: tests/test_x.py::test_y (skipped)"),
        (row("covered"), [proof("passed"), proof("not run", part="retry")], "did not run"),
        (row("covered"), [proof("passed", part="upload")], "prove a part each"),
        (row("covered"), [proof("passed", part="upload"), proof("passed", part="retry")], "retry; upload"),
        (row("covered", "upload; retry"), [proof("passed", part="upload")], "no test proves “retry”"),
        (row("partly", "groups"), [proof("skipped", part="users")], "no test of it passed"),
        (row("partly"), [proof("passed", part="users")], "does not say what is missing"),
        (row("open"), [proof("passed")], "say so on the page"),
    ],
)
def test_each_disagreement_is_a_fault(state: Row, proofs: list[Proof], said: str) -> None:
    faults = contract.find_faults([state], proofs)
    assert len(faults) == 1
    assert said in faults[0]


def test_a_test_may_name_a_conflict_that_the_page_settles() -> None:
    named = [proof("passed"), proof("passed", of="C-36")]
    assert contract.find_faults([row("covered")], named, conflicts=["C-36"]) == []


def test_the_page_holds_all_rows_in_known_states() -> None:
    page = contract.PAGE.read_text()
    rows = contract.read_rows(page)
    assert (len(rows), len(contract.CONFLICT.findall(page))) == (312, 39)
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


def record(tree: str = "t1", *, is_full: bool = True, **outcomes: str) -> Record:
    return Record("abc", tree, is_full, outcomes)


def test_a_run_adds_to_what_is_known_of_the_same_files_and_to_nothing_else() -> None:
    known = record(a="passed", b="skipped")
    again = record(is_full=False, a="failed")
    assert known.followed_by(again) == record(a="failed", b="skipped")
    assert known.followed_by(record("t2", is_full=False, a="passed")) == record("t2", is_full=False, a="passed")
    unknown = record("", a="passed")
    assert unknown.followed_by(record("", b="passed")) == record("", b="passed")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "no run is recorded"),
        (record("t0"), "another state of the files (commit abc)"),
        (record(""), "another state"),
        (record(is_full=False), "only some tests"),
    ],
)
def test_a_record_of_other_files_or_of_some_tests_is_a_fault(found: Record | None, said: str) -> None:
    assert contract.find_record_faults(record(), "t1") == []
    faults = contract.find_record_faults(found, "t1")
    assert len(faults) == 1
    assert said in faults[0]


def test_the_state_of_the_tree_changes_with_any_file_but_the_page(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.com", *words], cwd=tmp_path, check=True)

    assert tree_state(tmp_path) == ("", "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "contract.md").write_text("page")
    (tmp_path / "code.py").write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit, first = tree_state(tmp_path)
    (tmp_path / "docs" / "contract.md").write_text("page, updated")
    assert tree_state(tmp_path) == (commit, first)
    (tmp_path / "new.py").write_text("not added yet")
    assert tree_state(tmp_path)[0] == f"{commit}+"
    assert tree_state(tmp_path)[1] != first
    (tmp_path / "new.py").unlink()
    assert tree_state(tmp_path) == (commit, first)


def test_an_error_in_setup_or_teardown_counts_as_failed() -> None:
    assert worst(["passed", "passed", "failed"]) == "failed"
    assert worst(["skipped", "passed"]) == "skipped"
    assert worst([]) == "failed"


@pytest.mark.parametrize(
    ("chosen", "is_full"),
    [
        ({}, True),
        ({"markexpr": ""}, True),
        ({"markexpr": "not prove and not slow and not browser"}, False),
        ({"keyword": "kills"}, False),
        ({"deselect": ["tests/test_x.py"]}, False),
        ({"lf": True}, False),
    ],
)
def test_a_choice_on_the_command_line_is_no_full_run(chosen: dict[str, object], *, is_full: bool) -> None:
    option = {"markexpr": "not prove", "keyword": "", "deselect": None, "lf": False, "collectonly": False} | chosen
    sources = pytest.Config.ArgsSource
    for source, of_all in ((sources.TESTPATHS, is_full), (sources.ARGS, False)):
        config = SimpleNamespace(args_source=source, option=SimpleNamespace(**option))
        assert is_full_run(cast("pytest.Config", config)) == of_all

"""Every command block of the runbook and the guide runs against a real installation and ends as its page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from os import environ
from pathlib import Path
from typing import Any

import pytest
import typer.main
from _pytest.mark import ParameterSet
from tests import runbook
from tests.make import PASSWORD
from tests.runbook import BadPage, Block, Page

from pharos.cli import app
from pharos.infra.embedded_postgres import free_port
from pharos.infra.settings import Settings
from pharos.ops.running import read_state

DOCS = runbook.ROOT / "docs"
FILES = sorted([*DOCS.glob("runbook/*.md"), *DOCS.glob("guide/*.md")])


def read(file: Path) -> Page:
    return runbook.read_page(str(file.relative_to(DOCS)), file.read_text())


def known_commands() -> set[str]:
    """All commands a person may type, as `documents list`; hidden ones are for the processes themselves."""

    def walk(command: Any, name: str) -> Iterator[str]:
        if not hasattr(command, "list_commands"):
            yield name
            return
        if getattr(command, "invoke_without_command", False) and name:
            yield name
        for word in command.list_commands(None):
            below = command.get_command(None, word)
            if not below.hidden:
                yield from walk(below, f"{name} {word}".strip())

    return set(walk(typer.main.get_command(app), ""))


def clean_environment(data_dir: Path, home: Path, programs: Path) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if not name.startswith(("PHAROS_", "PYTEST_"))}
    return kept | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{environ['PATH']}",
        "PHAROS_DATA_DIR": str(data_dir),
        "PHAROS_PORT": str(free_port()),
        # A page's own backup would meet the one of the past night, which a started worker makes up for.
        "PHAROS_BACKUP_AT": "",
        "HOME": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }


def pharos(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["pharos", *words], env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def scratch(programs: Path) -> Iterator[Path]:
    # not pytest's own directory: below it a socket's path grows longer than the 107 characters Linux allows
    directory = Path(tempfile.mkdtemp(prefix="pharos-page-"))
    directory.chmod(0o755)
    yield directory
    # a page that failed half-way leaves running what a later block of it would have stopped
    for state in directory.rglob("run/supervisor.json"):
        pharos(clean_environment(state.parents[1], directory, programs), "down", "--delete-data", "--yes")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def installation(programs: Path) -> Iterator[dict[str, str]]:
    directory = Path(tempfile.mkdtemp(prefix="pharos-book-"))
    directory.chmod(0o755)
    environment = clean_environment(directory / "data", directory, programs)
    # Set up already, as a reader's is: no page may need one that was read before it.
    start(environment)
    made = pharos({**environment, "ADMIN_PASSWORD": PASSWORD}, "user", "create-admin", "--email", "head@example.org")
    assert made.returncode == 0, made.stdout + made.stderr
    yield environment
    pharos(environment, "down", "--delete-data", "--yes")
    shutil.rmtree(directory, ignore_errors=True)


def start(environment: dict[str, str]) -> None:
    started = pharos(environment, "up", "--detach")
    assert started.returncode == 0, started.stdout + started.stderr


@pytest.fixture
def environment(request: pytest.FixtureRequest, page: Page, scratch: Path, programs: Path) -> Iterator[dict[str, str]]:
    """The world of one page: its own data directory, or the shared installation, running."""
    if page.wants_fresh_installation:
        own = clean_environment(scratch / "data", scratch, programs)
        yield own
        pharos(own, "down", "--delete-data", "--yes")
        return
    shared: dict[str, str] = request.getfixturevalue("installation")
    # asked in this process: a command for each page would cost a minute in all
    if read_state(Settings(_env_file=None, data_dir=Path(shared["PHAROS_DATA_DIR"]))) is None:
        start(shared)
    yield shared


def proofs() -> list[ParameterSet]:
    """One test a page that has blocks, marked with the rows of the contract that the page names; those that share the
    installation in one process, or each process would start one."""
    pages = [page for page in map(read, FILES) if page.blocks]
    return [pytest.param(page, marks=marks(page)) for page in pages]


def marks(page: Page) -> list[pytest.MarkDecorator]:
    shares = [] if page.wants_fresh_installation else [pytest.mark.xdist_group("runbook")]
    return [*shares, *(pytest.mark.contract(row, part=part) for row, part in page.rows)]


@pytest.mark.slow
@pytest.mark.contract("WM-12", part="the pages written so far run as they stand")
@pytest.mark.parametrize("page", proofs(), ids=lambda page: page.name)
def test_every_block_of_the_page_ends_as_it_says(
    page: Page, environment: dict[str, str], scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    work = scratch / "work"
    work.mkdir()
    assert runbook.run_page(page, directory=work, environment=environment) == []
    record_property("runbook_blocks", len(page.blocks))


@pytest.mark.contract("WM-12", part="a command without a page or a page without a command fails")
def test_every_command_is_run_by_a_page_and_every_page_names_existing_commands() -> None:
    known = known_commands()
    pages = [read(file) for file in FILES]
    run = {command for page in pages for command in runbook.commands_run(page, known)}
    assert known - run == set(), "these commands have no page below docs/runbook"
    for page in [*pages, Page("README.md", (runbook.ROOT / "README.md").read_text(), ())]:
        runbook.commands_named(page, known)


def test_every_runbook_page_runs_something_and_the_index_lists_it() -> None:
    index = (DOCS / "runbook" / "README.md").read_text()
    for file in DOCS.glob("runbook/*.md"):
        if file.name != "README.md":
            assert read(file).blocks, f"{file.name} runs nothing"
            assert f"({file.name})" in index, f"{file.name} is not in the index"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert {name for name in linked if not (DOCS / "runbook" / name).exists()} == set()


@pytest.mark.contract("WM-12", part="the index maps every procedure of the five runbooks")
def test_the_index_has_all_procedures_of_the_five_runbooks() -> None:
    index = (DOCS / "runbook" / "README.md").read_text()
    counts = {"000": 10, "001": 27, "002": 28, "003": 33, "004": 19}
    expected = {f"P{book}-{number:02}" for book, count in counts.items() for number in range(1, count + 1)}
    assert set(re.findall(r"^\| (P\d{3}-\d{2}) \|", index, re.MULTILINE)) == expected
    promised = re.findall(r"\| later: ([\w-]+) \|$", index, re.MULTILINE)
    assert [name for name in promised if (DOCS / "runbook" / f"{name}.md").exists()] == [], "these pages are here"


# ---- planted pages that must be refused, planted blocks that must fail ----

EXPECT = "```expect\nnoon\n```\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"```sh\necho noon\n```\n{EXPECT}", "no id"),
        ("```sh id=a\necho noon\n```\n", "no postcondition"),
        ("```sh id=a\necho noon\n```\n```expect\n\n```\n", "no postcondition"),
        (f"```sh id=a\necho noon\n```\n{EXPECT}" * 2, "used twice"),
        ("```console\n$ pharos up\n```\n", "of kind 'console'"),
        ("```\npharos up\n```\n", "of kind ''"),
        (f"```sh id=a skip=yes\necho noon\n```\n{EXPECT}", "says"),
        (EXPECT, "follows no sh block"),
    ],
)
def test_a_page_that_cannot_be_proved_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadPage, match=said):
        runbook.read_page("planted.md", text)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Block("a", "echo noon; exit 3", ("noon",)), "ended with 3"),
        (Block("a", "echo midnight", ("noon",)), "did not print"),
        (Block("a", "echo midnight", ("/^no{2}n$/",)), "nothing like"),
        (Block("a", "echo noon", ("not: noon",)), "printed 'noon'"),
        (Block("a", "echo noon", ("noon", "$ test -e missing")), "ended with 1"),
        (Block("a", "false; echo noon", ("noon",)), "ended with 1"),
        (Block("a", "echo noon; sleep 30", ("noon",), seconds=1), "ended with 137"),
    ],
)
def test_a_block_that_ends_otherwise_than_it_says_fails_its_page(block: Block, said: str, tmp_path: Path) -> None:
    faults = runbook.run_page(Page("planted.md", "", (block,)), directory=tmp_path, environment=dict(environ))
    assert faults
    assert said in faults[0]


def test_a_block_that_ends_as_it_says_passes(tmp_path: Path) -> None:
    expect = ("noon", "/^no{2}n$/", "not: midnight", "$ test -e file")
    block = Block("a", "echo noon; touch file; exit 3", expect, exit_code=3)
    assert runbook.run_page(Page("planted.md", "", (block,)), directory=tmp_path, environment=dict(environ)) == []


def test_a_command_that_does_not_exist_is_noticed_in_blocks_and_in_prose() -> None:
    known = {"up", "documents list"}
    good = runbook.read_page(
        "planted.md", f"`pharos documents` and `pharos up`\n```sh id=a\npharos documents list --all\n```\n{EXPECT}"
    )
    assert runbook.commands_run(good, known) == {"documents list"}
    assert runbook.commands_named(good, known) == {"documents", "up"}
    with pytest.raises(BadPage, match="no command `pharos documents remove`"):
        runbook.commands_run(Page("planted.md", "", (Block("a", "pharos documents remove", ("x",)),)), known)
    with pytest.raises(BadPage, match="no command `pharos fly`"):
        runbook.commands_named(Page("planted.md", "Type `pharos fly --high`.", ()), known)

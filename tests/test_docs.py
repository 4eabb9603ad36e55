"""What the pages say about the code is so: settings, dependencies, decisions, commands of the README, links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from tests import settings_table

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def find_broken_links(page: Path, text: str) -> list[str]:
    links = [link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]
    return [link for link in links if not (page.parent / link).exists()]


@pytest.mark.contract("DE-18", part="every variable is documented")
def test_the_settings_page_is_what_the_code_reads() -> None:
    assert settings_table.table_of(settings_table.PAGE.read_text()) == settings_table.render_table(), (
        "run .venv/bin/python -m tests.settings_table"
    )


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["models"]]
    asked += project["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=~;! ]", line)[0] for line in asked}
    page = (ROOT / "docs" / "adr" / "0017-dependencies.md").read_text()
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| "))
    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", rows)} == set()


def test_every_decision_is_in_the_index_and_has_all_its_parts() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    parts = {"Context", "Decision", "Consequences", "Alternatives", "Enforced by"}
    for file in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        assert f"[{file.name[:4]}]({file.name})" in index, f"{file.name} is not in the index"
        assert parts <= set(re.findall(r"^## (.+)$", file.read_text(), re.MULTILINE)), f"{file.name} lacks a part"


def test_what_enforces_a_decision_exists() -> None:
    for file in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        enforced = file.read_text().partition("## Enforced by")[2]
        for path in re.findall(r"`((?:tests|docs)/[\w./-]+)`", enforced):
            assert (ROOT / path).exists(), f"{file.name} rests on {path}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    assert find_broken_links(page, page.read_text()) == []


def test_a_broken_link_is_noticed() -> None:
    text = "[a](nowhere.md) [b](README.md) [c](https://x.org/y)"
    assert find_broken_links(ROOT / "README.md", text) == ["nowhere.md"]


def test_the_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named <= targets, f"{page.name} names {sorted(named - targets)}"

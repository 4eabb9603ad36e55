"""The documents list in a real Chromium: kept up to date over `/ws`, and by asking where no socket comes through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import text
from tests.journeys.served import Served, serve
from tests.journeys.test_admin_browser import CHROME, browser, house, made_project
from tests.journeys.test_browser import DESK, pytestmark
from tests.make import MadeTenant

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port

__all__ = ["browser", "house", "pytestmark"]

LIST = "**/documents/list*"


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port()) as running:
        yield running


async def set_status(served: Served, house: MadeTenant, status: str) -> None:
    async with served.runtime.db.transaction(house.id) as session:
        await session.execute(text("update documents set status = :status"), {"status": status})


@pytest.mark.contract("RE-05")
@pytest.mark.parametrize("has_sockets", [True, False], ids=["socket", "no-socket"])
def test_the_list_follows_its_documents(served: Served, browser: Browser, house: MadeTenant, has_sockets: bool) -> None:
    project_id = served.run(made_project(served, house.admin))
    served.run(set_status(served, house, "processing"))
    window = served.signed_in(browser, house.admin, agent=CHROME, viewport=DESK)
    page = window.new_page()
    if not has_sockets:
        page.route_web_socket("**/ws*", lambda socket: socket.close())
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url) if "/documents/list" in request.url else None)
    page.goto(f"{served.origin}/projects/{project_id}")
    expect(page.locator(".pill--processing")).to_be_visible()
    page.wait_for_timeout(4500)  # a silence: in it a page without news asks twice
    asked = len(polls)
    served.run(set_status(served, house, "indexed"))
    expect(page.locator(".pill--indexed")).to_be_visible(timeout=8000)
    window.close()
    assert asked <= 1 if has_sockets else asked >= 2

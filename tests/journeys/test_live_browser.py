"""The documents list in a real Chromium: kept up to date over `/ws`, and by asking where no socket comes through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect
from sqlalchemy import text
from tests.journeys.served import Served, serve
from tests.journeys.test_admin_browser import CHROME, browser, house, made_project
from tests.journeys.test_browser import DESK, pytestmark
from tests.make import MadeTenant

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port

__all__ = ["browser", "house", "pytestmark"]


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port()) as running:
        yield running


async def set_status(served: Served, house: MadeTenant, status: str) -> None:
    async with served.runtime.db.transaction(house.id) as session:
        await session.execute(text("update documents set status = :status"), {"status": status})


class Polling:
    """A page, and how often it asked for the list."""

    def __init__(self, page: Page) -> None:
        self.page, self.asked = page, 0
        page.on("request", self._asked)

    def _asked(self, request: Request) -> None:
        self.asked += "/documents/list" in request.url


@pytest.mark.contract("RE-05")
def test_the_list_follows_its_documents_with_a_socket_and_without(
    served: Served, browser: Browser, house: MadeTenant
) -> None:
    project_id = served.run(made_project(served, house.admin))
    served.run(set_status(served, house, "processing"))
    window = served.signed_in(browser, house.admin, agent=CHROME, viewport=DESK)
    with_socket, without = Polling(window.new_page()), Polling(window.new_page())
    without.page.route_web_socket("**/ws*", lambda socket: socket.close())
    for each in (with_socket, without):
        each.page.goto(f"{served.origin}/projects/{project_id}")
        expect(each.page.locator(".pill--processing")).to_be_visible()
    without.page.wait_for_timeout(4500)  # a silence: in it a page without news asks twice
    assert with_socket.asked <= 1
    assert without.asked >= 2
    served.run(set_status(served, house, "indexed"))
    for each in (with_socket, without):
        expect(each.page.locator(".pill--indexed")).to_be_visible(timeout=8000)
    window.close()

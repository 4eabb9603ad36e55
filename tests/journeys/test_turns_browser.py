"""An answer in a real Chromium: over cut lines and a reload, stopped, made anew, rated; by a guest as it comes."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.journeys.served import Served, serve
from tests.journeys.test_admin_browser import (
    CHROME,
    OpenWindow,
    approved_link,
    browser,
    enter,
    house,
    made_project,
    member,
    window,
)
from tests.journeys.test_browser import DESK, PHONE, fits
from tests.journeys.test_browser import pytestmark as of_a_browser
from tests.make import MadeTenant

from pharos.identity.principal import Principal
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.providers.contract import ChatRequest

__all__ = ["browser", "house", "member", "window"]

pytestmark = [*of_a_browser, pytest.mark.xdist_group("turns_browser")]

QUESTION = "When are the pumps of building C serviced?"
# Each of the first lines is cut after so many pieces: what a phone does in a tunnel.
CUT_LINES = """
let cuts = 3;
const whole = window.fetch;
window.fetch = async (...words) => {
  const reply = await whole(...words);
  if (cuts <= 0 || !(reply.headers.get("content-type") ?? "").startsWith("text/event-stream")) return reply;
  cuts -= 1;
  const reader = reply.body.getReader();
  let given = 0;
  const body = new ReadableStream({
    async pull(line) {
      const { value, done } = await reader.read();
      if (done) return line.close();
      if (given++ < 2) return line.enqueue(value);
      reader.cancel();
      line.error(new TypeError("network error"));
    },
  }, { highWaterMark: 0 });
  return new Response(body, { status: reply.status, headers: reply.headers });
};
"""


class Speaker:
    """Counts aloud, and waits at "three" until it may go on."""

    name = "speaker"

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    async def stream(self, _request: ChatRequest) -> AsyncIterator[str]:
        import asyncio

        for word in ("one ", "two ", "three ", "four ", "in April [1], ", "six."):
            yield word
            await asyncio.sleep(0.03)
            if word == "three ":
                await asyncio.to_thread(self.may_go_on.wait, 30)

    async def list_models(self) -> list[str]:
        return [self.name]

    async def close(self) -> None:
        """Nothing is open."""


SPEAKER = Speaker()


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port(), model=SPEAKER) as running:
        yield running


def answer_of(page: Page) -> str:
    return page.locator("[data-answer]").last.inner_text().strip()


def test_an_answer_goes_on_over_cut_lines_and_a_reload(served: Served, browser: Browser, house: MadeTenant) -> None:
    project_id = served.run(made_project(served, house.admin))
    SPEAKER.may_go_on.clear()
    window = served.signed_in(browser, house.admin, agent=CHROME, viewport=DESK)
    window.add_init_script(CUT_LINES)
    page = window.new_page()
    page.goto(f"{served.origin}/projects/{project_id}")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("[data-answer]")).to_have_text("one two three")
    page.reload()
    expect(page.locator("[data-answer]")).to_have_text("one two three")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    window.set_offline(True)
    expect(page.locator("#turns").get_by_text("The connection is lost.")).to_be_visible(timeout=1000)
    window.set_offline(False)
    SPEAKER.may_go_on.set()
    expect(page.locator("[data-answer]")).to_contain_text("six.")
    assert answer_of(page).startswith("one two three four in April")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(page.get_by_role("article", name="Answer")).to_have_count(1)
    window.close()


def test_an_answer_is_stopped_made_anew_and_rated(
    served: Served, house: MadeTenant, window: OpenWindow, tmp_path: Path
) -> None:
    project_id = served.run(made_project(served, house.admin))
    SPEAKER.may_go_on.clear()
    page = window(house.admin, f"/projects/{project_id}", viewport=PHONE, dark=True)
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("[data-answer]")).to_have_text("one two three")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Answer anew")).to_be_visible()
    assert answer_of(page).startswith("one two three")
    assert "four" not in answer_of(page)
    expect(page.get_by_text("Stopped. This is what was written")).to_be_visible()
    expect(page.get_by_text("Not found in these documents")).to_be_hidden()
    SPEAKER.may_go_on.set()
    page.get_by_role("button", name="Answer anew").click()
    expect(page.locator("[data-answer]").last).to_contain_text("six.")
    expect(page.get_by_role("article", name="Answer")).to_have_count(1)
    page.get_by_role("button", name="This answer helps").click()
    expect(page.get_by_text("your feedback is stored")).to_be_visible()
    fits(page, tmp_path / "phone.png")
    page.reload()
    expect(page.get_by_role("button", name="This answer helps")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="This answer does not help")).to_have_attribute("aria-pressed", "false")
    assert "six." in answer_of(page)


@pytest.mark.contract("AC-12", part="a guest's answer comes as it is made, and goes on after a reload")
def test_a_guest_sees_their_answer_come(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow, tmp_path: Path
) -> None:
    project_id = served.run(made_project(served, house.admin))
    SPEAKER.may_go_on.set()
    page = window(member, f"/projects/{project_id}")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("[data-answer]")).to_contain_text("six.")
    page.locator("summary").filter(has_text="Share").click()
    page.get_by_label("For whom, and why?").fill("For our auditor")
    enter(page)
    link = approved_link(served, window(house.admin, "/"), member)
    SPEAKER.may_go_on.clear()
    guest = window(None, link.removeprefix(served.origin))
    asked = "In which months of the year are the pumps of building C serviced?"
    guest.get_by_role("textbox", name="Your question").fill(asked)
    guest.keyboard.press("Enter")
    expect(guest.locator("[data-answer]").last).to_have_text("one two three")
    guest.reload()
    expect(guest.locator("[data-answer]").last).to_have_text("one two three")
    fits(guest, tmp_path / "guest.png")
    SPEAKER.may_go_on.set()
    expect(guest.locator("[data-answer]").last).to_contain_text("six.")
    expect(guest.get_by_text("keep the address of this page")).to_be_visible()
    expect(guest.get_by_role("button", name="Answer anew")).to_have_count(0)

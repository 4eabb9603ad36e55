"""The doors that open by mail, in a real Chromium and through the file outbox: invited, in by link, a new password."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select
from tests.conftest import forget_waiting_jobs, run_waiting_jobs
from tests.journeys.served import Served, serve
from tests.journeys.test_admin_browser import browser, house
from tests.journeys.test_browser import DESK, PHONE, Watched, pytestmark
from tests.make import MadeTenant

from pharos.identity.invitations import Invited, invite
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.models import Mail
from pharos.infra.smtp import read_outbox

__all__ = ["browser", "house", "pytestmark"]

FIRST, SECOND = "four unrelated calm words", "five other words that rhyme"


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port()) as running:
        yield running


async def sent_link(served: Served, house: MadeTenant, recipient: str, subject: str) -> str:
    """The link in the newest mail to somebody, once the jobs that wait have sent it."""
    await run_waiting_jobs(served.runtime)
    to_them = select(Mail).where(Mail.recipient == recipient, Mail.subject.contains(subject), Mail.state == "sent")
    async with served.runtime.db.transaction(house.id) as session:
        mail = (await session.execute(to_them.order_by(Mail.id.desc()).limit(1))).scalar_one()
    found = re.search(r"^http\S+", read_outbox(served.runtime.settings, mail.id), re.MULTILINE)
    assert found is not None
    return found[0]


@dataclass(frozen=True)
class Ada:
    """Who comes by mail, and whose mail is read."""

    served: Served
    house: MadeTenant
    email: str

    def newest_link(self, subject: str, *, at: str | None = None) -> str:
        return self.served.run(sent_link(self.served, self.house, at or self.email, subject))


def join(watched: Watched, link: str) -> None:
    page = watched.page
    page.goto(link)
    expect(page.get_by_role("heading", name="You are invited")).to_be_visible()
    watched.fits("1-invitation")
    page.get_by_label("New password", exact=True).fill(FIRST)
    page.get_by_role("button", name="Join").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.goto(link)
    expect(page.get_by_role("heading", name="This link does not work")).to_be_visible()
    watched.fits("2-used-link")


def sign_out(page: Page, origin: str) -> None:
    page.goto(origin)
    page.locator("summary[aria-label^=Account]").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def ask_by_mail(watched: Watched, ada: Ada, door: str) -> None:
    page = watched.page
    watched.fits(f"3-sign-in-{door[:4]}")
    page.get_by_role("link", name=door).click()
    page.get_by_label("E-mail").fill(ada.email)
    watched.fits(f"4-{door[:4]}")
    page.get_by_role("button", name="Send me a link").click()
    expect(page.get_by_role("heading", name="Ask for your link")).to_be_visible()
    watched.fits("5-look-into-your-mail")


def change_address(watched: Watched, ada: Ada) -> None:
    page, origin, new = watched.page, watched.origin, f"new-{ada.email}"
    page.goto(f"{origin}/account/email")
    page.get_by_label("New e-mail address").fill(new)
    page.get_by_label("Your password").fill(SECOND)
    watched.fits("9-change-address")
    page.get_by_role("button", name="Send the link").click()
    expect(page.get_by_role("heading", name="Ask for your link")).to_be_visible()
    page.goto(ada.newest_link("Confirm", at=new))
    watched.fits("10-confirm-address")
    page.get_by_role("button", name="This is my address").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.goto(f"{origin}/account/email")
    expect(page.get_by_text(new)).to_be_visible()


def in_by_link(watched: Watched, ada: Ada) -> None:
    page = watched.page
    sign_out(page, watched.origin)
    ask_by_mail(watched, ada, "Sign in by mail instead")
    page.goto(ada.newest_link("sign-in link"))
    expect(page.get_by_text(f"You are about to sign in as {ada.email}.")).to_be_visible()
    watched.fits("6-confirm")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()


def in_with_a_new_password(watched: Watched, ada: Ada) -> None:
    page = watched.page
    page.goto(watched.origin)
    ask_by_mail(watched, ada, "Forgotten your password?")
    page.goto(ada.newest_link("A new password"))
    page.get_by_label("New password", exact=True).fill(SECOND)
    watched.fits("8-new-password")
    page.get_by_role("button", name="Change the password").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("E-mail").fill(ada.email)
    page.get_by_label("Password", exact=True).fill(SECOND)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()


@pytest.mark.contract("ID-11", part="in a browser, from the mail to the projects")
@pytest.mark.contract("ID-14", part="in a browser")
def test_invited_then_in_by_link_then_on_a_phone_with_a_new_password(
    served: Served, browser: Browser, house: MadeTenant, tmp_path: Path
) -> None:
    ada, origin = Ada(served, house, f"ada-{secrets.token_hex(6)}@example.org"), served.origin
    served.run(forget_waiting_jobs(served.runtime.db))
    served.run(invite(served.runtime, house.admin, Invited(email=ada.email, name="Ada Lovelace")))
    link = ada.newest_link("invited")
    desk = browser.new_context(viewport=DESK, color_scheme="light", locale="en-GB")
    at_desk = Watched(desk.new_page(), origin=origin, shots=tmp_path)
    join(at_desk, link)
    in_by_link(at_desk, ada)
    phone = browser.new_context(viewport=PHONE, color_scheme="dark", locale="en-GB", has_touch=True, is_mobile=True)
    on_phone = Watched(phone.new_page(), origin=origin, shots=tmp_path)
    in_with_a_new_password(on_phone, ada)
    change_address(on_phone, ada)
    at_desk.page.goto(origin)  # the new password has ended this sign-in
    expect(at_desk.page.get_by_role("heading", name="Sign in")).to_be_visible()
    desk.close()
    phone.close()
    assert at_desk.faults + on_phone.faults == []

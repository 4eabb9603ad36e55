"""The doors that open by mail, in a real Chromium and through the file outbox: invited, in by link, a new password."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.journeys.test_browser import DESK, PHONE, Watched, browser, installation, pharos, pytestmark

__all__ = ["browser", "installation", "pytestmark"]

FIRST, SECOND = "four unrelated calm words", "five other words that rhyme"


def newest_link(environment: dict[str, str], recipient: str, subject: str) -> str:
    """The link in the newest mail to somebody, as soon as the worker has sent it."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        mails = json.loads(pharos(environment, "mail", "list", "--state", "sent", "--json"))
        for mail in mails:
            if mail["recipient"] == recipient and subject in mail["subject"]:
                found = re.search(r"^http\S+$", pharos(environment, "mail", "show", mail["id"]), re.MULTILINE)
                assert found is not None
                return found[0]
        time.sleep(0.2)
    pytest.fail(f"no mail to {recipient} about “{subject}”")


def join(watched: Watched, link: str) -> None:
    page = watched.page
    page.goto(link)
    expect(page.get_by_role("heading", name="You are invited")).to_be_visible()
    watched.shoot("1-invitation")
    page.get_by_label("New password", exact=True).fill(FIRST)
    page.get_by_role("button", name="Join").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.goto(link)
    expect(page.get_by_role("heading", name="This link does not work")).to_be_visible()
    watched.shoot("2-used-link")


def sign_out(page: Page, origin: str) -> None:
    page.goto(origin)
    page.locator("summary[aria-label^=Account]").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def ask_by_mail(watched: Watched, door: str, button: str) -> None:
    page = watched.page
    watched.shoot(f"3-sign-in-{door[:4]}")
    page.get_by_role("link", name=door).click()
    page.get_by_label("E-mail").fill("ada@example.org")
    watched.shoot(f"4-{door[:4]}")
    page.get_by_role("button", name=button).click()
    expect(page.get_by_role("heading", name="Ask for your link")).to_be_visible()
    watched.shoot("5-look-into-your-mail")


def change_address(watched: Watched, environment: dict[str, str]) -> None:
    page, origin = watched.page, watched.origin
    page.goto(f"{origin}/account/email")
    page.get_by_label("New e-mail address").fill("ada@new.example.org")
    page.get_by_label("Your password").fill(SECOND)
    watched.shoot("9-change-address")
    page.get_by_role("button", name="Send the link").click()
    expect(page.get_by_role("heading", name="Ask for your link")).to_be_visible()
    page.goto(newest_link(environment, "ada@new.example.org", "Confirm"))
    watched.shoot("10-confirm-address")
    page.get_by_role("button", name="This is my address").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.goto(f"{origin}/account/email")
    expect(page.get_by_text("ada@new.example.org")).to_be_visible()


def in_by_link(watched: Watched, environment: dict[str, str]) -> None:
    page = watched.page
    sign_out(page, watched.origin)
    ask_by_mail(watched, "Sign in by mail instead", "Send me a link")
    page.goto(newest_link(environment, "ada@example.org", "sign-in link"))
    expect(page.get_by_text("You are about to sign in as ada@example.org.")).to_be_visible()
    watched.shoot("6-confirm")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()


def in_with_a_new_password(watched: Watched, environment: dict[str, str]) -> None:
    page = watched.page
    page.goto(watched.origin)
    ask_by_mail(watched, "Forgotten your password?", "Send me a link")
    page.goto(newest_link(environment, "ada@example.org", "A new password"))
    page.get_by_label("New password", exact=True).fill(SECOND)
    watched.shoot("8-new-password")
    page.get_by_role("button", name="Change the password").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("E-mail").fill("ada@example.org")
    page.get_by_label("Password", exact=True).fill(SECOND)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()


@pytest.mark.contract("ID-11", part="in a browser, from the mail to the projects")
@pytest.mark.contract("ID-14", part="in a browser")
def test_invited_then_in_by_link_then_on_a_phone_with_a_new_password(
    installation: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    pharos({**installation, "ADMIN_PASSWORD": FIRST}, "user", "create-admin", "--email", "chief@example.org")
    pharos(installation, "user", "invite", "ada@example.org", "--name", "Ada Lovelace")
    link = newest_link(installation, "ada@example.org", "invited")
    origin = link.partition("/invitation")[0]
    desk = browser.new_context(viewport=DESK, color_scheme="light", locale="en-GB")
    at_desk = Watched(desk.new_page(), origin=origin, shots=tmp_path)
    join(at_desk, link)
    in_by_link(at_desk, installation)
    phone = browser.new_context(viewport=PHONE, color_scheme="dark", locale="en-GB", has_touch=True, is_mobile=True)
    on_phone = Watched(phone.new_page(), origin=origin, shots=tmp_path)
    in_with_a_new_password(on_phone, installation)
    change_address(on_phone, installation)
    at_desk.page.goto(origin)  # the new password has ended this sign-in
    expect(at_desk.page.get_by_role("heading", name="Sign in")).to_be_visible()
    desk.close()
    phone.close()
    assert at_desk.faults + on_phone.faults == []

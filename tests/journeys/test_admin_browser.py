"""What administrators, members and guests do on the pages of administration, account and shares, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, ViewportSize, expect, sync_playwright
from sqlalchemy import update
from tests.journeys.served import Served, serve
from tests.journeys.test_browser import CHROMIUM, DESK, PHONE, QUIET, Watched, fits
from tests.journeys.test_browser import pytestmark as of_a_browser
from tests.mailbox import link_to
from tests.make import PASSWORD, MadeTenant, make_document, make_group, make_person, make_project, make_tenant
from tests.ops.backups import make_folder

from pharos.identity.audit import record_audit
from pharos.identity.invitations import Invited, invite
from pharos.identity.lockout import MAX_FAILURES, count_failure
from pharos.identity.models import Tenant, User
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db_system import system_transaction
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Conflict
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.ingest import ingest_documents
from pharos.ops.models import Drill

pytestmark = [*of_a_browser, pytest.mark.xdist_group("admin_browser")]

CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0"
OWN_PASSWORD = "five other words that rhyme"
SECRET = "sk-proj-0123456789-the-rest-is-nobodys-business"
NOTE = b"The pumps of building C are serviced twice a year, in April and in October."
QUESTION = "When are the pumps of building C serviced?"
SECTIONS = ("people", "organisation", "shares", "models", "keys", "secrets", "feedback", "audit", "security")


class OpenWindow(Protocol):
    def __call__(
        self, person: Principal | None, path: str, *, viewport: ViewportSize = ..., dark: bool = ...
    ) -> Page: ...


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port()) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def house(served: Served) -> MadeTenant:
    """An organisation of this test's own."""
    return served.run(make_tenant(served.runtime.db))


@pytest.fixture
def member(served: Served, house: MadeTenant) -> Principal:
    return served.run(make_person(served.runtime.db, house.id))


@pytest.fixture
def window(served: Served, browser: Browser, tmp_path: Path) -> Iterator[OpenWindow]:
    """Opens a page as somebody; at the end nothing went wrong in any of them unseen."""
    windows: list[BrowserContext] = []
    watched: list[Watched] = []

    def open_window(person: Principal | None, path: str, *, viewport: ViewportSize = DESK, dark: bool = False) -> Page:
        if person is None:
            windows.append(browser.new_context(viewport=viewport, locale="en-GB"))
        else:
            windows.append(served.signed_in(browser, person, agent=CHROME, viewport=viewport, dark=dark))
        page = windows[-1].new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        watched.append(Watched(page, origin=served.origin, shots=tmp_path))
        page.goto(served.origin + path)
        return page

    yield open_window
    for each in windows:
        each.close()
    assert [fault for each in watched for fault in each.faults] == []


def record(page: Page | Locator, words: str) -> Locator:
    """The row that says `words`."""
    return page.locator(".record").filter(has_text=words)


def leading_on(page: Page, act: Callable[[], None]) -> None:
    """Do something that ends with the page anew, and wait until that listens again."""
    with page.expect_navigation(wait_until="load"):
        act()


def press(page: Page, button: Locator) -> None:
    leading_on(page, button.click)


def enter(page: Page) -> None:
    leading_on(page, lambda: page.keyboard.press("Enter"))


def fits_both(page: Page, shot: Path) -> None:
    """At a desk, and on the phone where it is left: nothing runs out of either window."""
    for size, name in ((DESK, "desk"), (PHONE, "phone")):
        page.set_viewport_size(size)
        fits(page, shot.with_stem(f"{shot.stem}-{name}"))


def test_a_form_sent_before_the_modules_are_there_waits_for_them(house: MadeTenant, window: OpenWindow) -> None:
    page = window(house.admin, "/account")
    held: list[Route] = []
    page.route("**/forms.js*", lambda route: held.append(route))  # noqa: PLW0108 - a built-in cannot be wrapped
    page.goto(page.url.replace("/account", "/"), wait_until="commit")
    page.get_by_label("New project").fill("Facilities")
    page.keyboard.press("Enter")
    assert len(held) == 1
    held[0].continue_()
    expect(page.get_by_role("heading", name="First, add a document")).to_be_visible()


def test_an_administrator_invites_a_colleague_and_withdraws_the_invitation(
    house: MadeTenant, window: OpenWindow
) -> None:
    page = window(house.admin, "/admin/people")
    page.get_by_text("Invite somebody").click()
    page.get_by_label("E-mail", exact=True).fill("ada@example.org")
    page.get_by_label("Role").select_option("engineer")
    enter(page)
    invited = page.get_by_role("region", name="Invited")
    expect(record(invited, "ada@example.org")).to_be_visible()
    press(page, record(invited, "ada@example.org").get_by_role("button", name="Withdraw"))
    expect(invited).to_have_count(0)


def test_a_person_gets_another_place_is_shut_out_and_let_in_again(
    house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    theirs = window(member, "/")
    page = window(house.admin, "/admin/organisation")
    page.get_by_label("New department").fill("Works")
    enter(page)
    page.goto(page.url.replace("organisation", "people"))
    page.get_by_label("Name or e-mail").fill(member.name)
    enter(page)
    press(page, record(page, member.name).get_by_role("link"))
    page.get_by_label("Role").select_option("admin")
    page.get_by_label("Position").select_option("manager")
    page.get_by_label("Department").select_option(label="Works")
    press(page, page.get_by_role("button", name="Save"))
    expect(page.get_by_text("Saved.")).to_be_visible()
    expect(page.get_by_label("Role")).to_have_value("admin")
    expect(page.get_by_label("Department").locator("option:checked")).to_have_text("Works")
    press(page, page.get_by_role("button", name="Shut out"))
    theirs.reload()
    expect(theirs.get_by_role("heading", name="Sign in")).to_be_visible()
    press(page, page.get_by_role("button", name="Let in again"))
    expect(page.get_by_role("button", name="Shut out")).to_be_visible()


def test_nobody_is_offered_to_change_their_own_role_or_a_superadministrators(
    served: Served, house: MadeTenant, window: OpenWindow
) -> None:
    other = served.run(make_person(served.runtime.db, house.id, platform_role="admin"))
    for viewer, shown in ((house.admin, house.admin), (other, other), (other, house.admin)):
        page = window(viewer, f"/admin/people/{shown.user_id}")
        expect(page.get_by_label("Role")).to_have_count(0)
        expect(page.get_by_role("button", name="Shut out")).to_have_count(0)
        press(page, page.get_by_role("button", name="Save"))
        expect(page.get_by_text("Saved.")).to_be_visible()


@pytest.mark.contract("AC-08", part="in a browser")
def test_groups_are_made_and_get_members_by_an_administrator_and_by_a_departments_manager(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    page = window(house.admin, "/admin/organisation")
    expect(page.get_by_text("No departments yet. Add the first one below.")).to_be_visible()
    page.get_by_label("New department").fill("Works")
    enter(page)
    record(page, "Works").get_by_text("Rename").click()
    page.get_by_label("New name").fill("Plant")
    enter(page)
    expect(record(page, "Plant")).to_be_visible()
    page.get_by_text("Rename").first.click()
    page.get_by_label("New name").fill("Works")
    enter(page)
    page.get_by_label("New group").fill("Night shift")
    page.get_by_label("Of", exact=True).select_option(label="Works")
    enter(page)
    expect(page.get_by_role("heading", name="Night shift")).to_be_visible()
    press(page, record(page, member.name).get_by_role("button", name="Add"))
    members = page.get_by_role("region", name="Members")
    press(page, record(members, member.name).get_by_role("button", name="Remove"))
    expect(members.get_by_text("Nobody yet. Add people below.")).to_be_visible()
    page.goto(f"{served.origin}/admin/people/{member.user_id}")
    page.get_by_label("Position").select_option("manager")
    page.get_by_label("Department").select_option(label="Works")
    press(page, page.get_by_role("button", name="Save"))

    theirs = window(member, "/")
    theirs.locator("summary[aria-label^=Account]").click()
    theirs.get_by_role("link", name="Groups of my department").click()
    expect(theirs.get_by_role("heading", name="Departments", exact=True)).to_have_count(0)
    theirs.get_by_role("link", name="Night shift").click()
    press(theirs, record(theirs, member.name).get_by_role("button", name="Add"))
    expect(record(theirs, house.admin.name)).to_have_count(0)  # of another department
    expect(record(theirs.get_by_role("region", name="Members"), member.name)).to_be_visible()


def test_access_is_given_to_a_group_and_a_person_seen_and_taken_back(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    db = served.runtime.db
    friend = served.run(make_person(db, house.id))
    served.run(make_group(db, friend, tenant_id=house.id))
    project_id = served.run(make_project(db, house.admin, name="Facilities", is_private=True))
    last_day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    page = window(house.admin, f"/projects/{project_id}")
    press(page, page.get_by_role("link", name="Access"))
    who = page.get_by_role("region", name="Who can see it")
    expect(record(who, member.name)).to_have_count(0)
    page.get_by_label("A person, by e-mail").fill(member.name)
    person_form = page.locator("form").filter(has=page.get_by_label("A person, by e-mail"))
    person_form.get_by_label("They may").select_option("edit")
    person_form.get_by_label("Until (optional)").fill(last_day)
    press(page, person_form.get_by_role("button", name="Give"))
    group_form = page.locator("form").filter(has=page.get_by_label("A group"))
    press(page, group_form.get_by_role("button", name="Give"))
    expect(record(who, member.name)).to_contain_text("in person")
    expect(record(who, friend.name)).to_contain_text("by group")
    given = page.get_by_role("region", name="Given")
    expect(record(given, member.name)).to_contain_text(f"until {last_day}")
    press(page, record(given, member.name).get_by_role("button", name="Take back"))
    expect(record(who, member.name)).to_have_count(0)
    theirs = window(member, f"/projects/{project_id}")
    expect(theirs.get_by_role("heading", name="Not allowed")).to_be_visible()


def test_an_api_key_is_shown_once_works_and_is_revoked(served: Served, house: MadeTenant, window: OpenWindow) -> None:
    page = window(house.admin, "/admin/keys")
    expect(page.get_by_text("No API keys yet. Make the first one below.")).to_be_visible()
    page.get_by_label("What is it for?").fill("Nightly import")
    ticked = page.locator("fieldset :checked")
    for _ in range(ticked.count()):
        ticked.first.uncheck()
    page.get_by_label("What is it for?").press("Enter")
    expect(page.get_by_text("Tick at least one thing that the key may do.")).to_be_visible()
    page.get_by_label("search and read").check()
    page.get_by_label("What is it for?").press("Enter")
    expect(page.get_by_text("Copy this key now.")).to_be_visible()
    expect(page.get_by_text("No API keys yet.")).to_be_hidden()
    key = page.locator("output").inner_text()
    assert httpx.get(f"{served.origin}/projects", headers={"X-API-Key": key}).status_code == 200
    press(page, page.get_by_role("link", name="Done"))
    assert key not in page.content()
    expect(record(page, "Nightly import")).to_contain_text("never used")
    press(page, record(page, "Nightly import").get_by_role("button", name="Revoke"))
    assert httpx.get(f"{served.origin}/projects", headers={"X-API-Key": key}).status_code == 401


@pytest.mark.contract("LP-10", part="in a browser: entered, switched off and on, deleted, never shown")
@pytest.mark.contract("SE-05", part="in a browser: when entered and when used")
def test_a_secret_goes_in_and_never_comes_out(house: MadeTenant, window: OpenWindow) -> None:
    page = window(house.admin, "/admin/secrets")
    page.get_by_label("Key", exact=True).fill(SECRET)
    enter(page)
    entered = record(page, "github · default")
    expect(entered).to_contain_text(SECRET[:8])
    expect(entered).to_contain_text(re.compile(r"entered 20\d\d-.*never used"))
    assert SECRET[12:] not in page.content()
    press(page, entered.get_by_role("button", name="Switch off"))
    expect(entered).to_contain_text("Switched off")
    press(page, entered.get_by_role("button", name="Switch on"))
    expect(entered).not_to_contain_text("Switched off")
    press(page, entered.get_by_role("button", name="Delete"))
    expect(page.get_by_text("Nothing kept here yet.")).to_be_visible()


async def made_project(served: Served, owner: Principal, *, name: str = "Facilities") -> ProjectId:
    """A project with one indexed document, which every member may read."""
    project_id = await make_project(served.runtime.db, owner, name=name)
    document = await make_document(served.runtime, owner, project_id, name="building-c.txt", content=NOTE)
    await ingest_documents(served.runtime, owner.tenant_id, [DocumentId(document.id)])
    return project_id


def approved_link(served: Served, page: Page, asked_by: Principal) -> str:
    page.goto(f"{served.origin}/admin/shares")
    waiting = record(page, asked_by.name)
    expect(waiting).to_contain_text("For our auditor")
    waiting.get_by_role("button", name="Approve").click()
    expect(waiting.get_by_text("It is shown only now:")).to_be_visible()
    expect(waiting.get_by_role("button", name="Reject")).to_be_hidden()
    return waiting.locator("output").inner_text()


@pytest.mark.contract("AC-12", part="in a browser: asked, approved, read and asked on without an account, closed")
def test_a_conversation_is_shared_with_a_guest_until_the_link_is_closed(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    project_id = served.run(made_project(served, house.admin))
    page = window(member, f"/projects/{project_id}")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Answer").locator(".citation").first).to_be_visible()
    page.locator("summary").filter(has_text="Share").click()  # without loading the page again
    page.get_by_label("For whom, and why?").fill("For our auditor")
    enter(page)
    expect(page.get_by_text("Asked. An administrator decides")).to_be_visible()

    office = window(house.admin, "/")
    link = approved_link(served, office, member)
    guest = window(None, link.removeprefix(served.origin))
    expect(guest.get_by_text("in April and in October").first).to_be_visible()
    expect(guest.locator("a[href*='/projects/'], a[href*='/documents/']")).to_have_count(0)
    guest.get_by_role("article", name="Answer").locator(".citation").first.click()
    expect(guest.locator(".source__link:target")).to_contain_text("in April and in October")
    for count in (2, 3):  # the second one goes on in the branch that the first began
        guest.get_by_role("textbox", name="Your question").fill("In which months are the pumps serviced?")
        with guest.expect_event("load"):  # not `enter`: the address is made to name the branch before that
            guest.keyboard.press("Enter")
            guest.get_by_role("textbox", name="Your question").fill("And the lamps?")
        expect(guest.get_by_role("textbox", name="Your question")).to_have_value("And the lamps?")
        expect(guest.get_by_role("article", name="Answer")).to_have_count(count)
        expect(guest.get_by_role("article", name="Answer").last).to_be_in_viewport()
    expect(guest.get_by_text("keep the address of this page")).to_be_visible()
    press(office, office.get_by_role("link", name="Done"))
    expect(record(office, member.name)).to_contain_text("opened 3 times")
    press(office, office.get_by_role("button", name="Close the link"))
    guest.reload()
    expect(guest.get_by_role("heading", name="Not here")).to_be_visible()
    expect(guest.get_by_text("Ask whoever sent it for a new one.")).to_be_visible()


def test_another_device_is_named_in_short_and_signed_out(
    served: Served, browser: Browser, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    other = served.signed_in(browser, member, agent=FIREFOX, viewport=DESK)
    page = window(member, "/account")
    expect(record(page, "Chrome on Linux")).to_contain_text("This one")
    expect(page.get_by_text("Firefox on Windows")).to_have_attribute("title", FIREFOX)
    press(page, record(page, "Firefox on Windows").get_by_role("button", name="Sign out"))
    expect(record(page, "Firefox on Windows")).to_have_count(0)
    elsewhere = other.new_page()
    elsewhere.goto(served.origin)
    expect(elsewhere.get_by_role("heading", name="Sign in")).to_be_visible()
    other.close()


def test_a_password_that_was_handed_out_leads_to_choosing_ones_own(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    async def hand_out() -> None:
        async with served.runtime.db.transaction(house.id) as session:
            await session.execute(update(User).where(User.id == member.user_id).values(must_change_password=True))

    served.run(hand_out())
    page = window(None, "/sign-in")
    page.get_by_label("E-mail").fill(member.name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    enter(page)
    page.wait_for_url("**/password/change")
    page.goto(f"{served.origin}/account")
    expect(page.get_by_role("heading", name="Choose a password of your own")).to_be_visible()
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password").fill(OWN_PASSWORD)
    enter(page)
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    expect(page.get_by_text("The password is changed")).to_be_visible()


def test_the_audit_log_and_the_security_events_are_searched_and_leafed_through(
    served: Served, house: MadeTenant, window: OpenWindow
) -> None:
    async def fill() -> None:
        async with served.runtime.db.transaction(house.id) as session:
            for number in range(60):
                await record_audit(session, house.admin, action="test.done", subject=f"test:{number}")
                await record_security_event(session, house.id, event_type="login_failed", severity="high", subject="s")

    served.run(fill())
    page = window(house.admin, "/admin/audit?action=test.")
    expect(page.locator(".record")).to_have_count(50)
    press(page, page.get_by_role("link", name="Show more"))
    expect(page.locator(".record")).to_have_count(10)
    page.get_by_label("By whom").fill("nobody@example.org")
    enter(page)
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    press(page, page.get_by_role("link", name="Show all"))
    expect(record(page, "session.opened")).to_be_visible()
    page.goto(f"{served.origin}/admin/security")
    press(page, page.get_by_role("link", name="login failed · 60"))
    press(page, page.get_by_role("link", name="Show more"))
    expect(page.locator(".record")).to_have_count(10)
    page.get_by_label("At least").select_option("critical")
    press(page, page.get_by_role("button", name="Show"))
    expect(page.get_by_text("Nothing found.")).to_be_visible()


def test_a_member_is_neither_led_nor_let_into_the_administration(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    page = window(member, "/")
    page.locator("summary[aria-label^=Account]").click()
    expect(page.get_by_role("link", name="Your account")).to_be_visible()
    expect(page.locator("a[href^='/admin']")).to_have_count(0)
    for section in SECTIONS:
        page.goto(f"{served.origin}/admin/{section}")
        expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()


def test_everything_is_reached_in_order_and_done_with_the_keyboard_alone(house: MadeTenant, window: OpenWindow) -> None:
    page = window(house.admin, "/admin/people")

    def tab() -> str:
        page.keyboard.press("Tab")
        name = page.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText).trim()")
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        return str(name)

    order = [tab() for _ in range(13)]
    tabs = ["People", "Departments and groups", "Shares", "Models", "API keys", "Secrets", "Feedback", "Audit log"]
    tabs.append("Security events")
    assert order[:2] == ["Skip to the content", "Pharos"]
    assert order[2].startswith("Account")
    assert order[3:12] == tabs
    assert order[12] == "Invite somebody"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("grace@example.org")
    enter(page)
    withdraw = record(page, "grace@example.org").get_by_role("button", name="Withdraw")
    withdraw.focus()
    enter(page)
    expect(withdraw).to_have_count(0)


def test_no_page_runs_out_of_its_window_whatever_it_shows(
    served: Served, house: MadeTenant, window: OpenWindow, tmp_path: Path
) -> None:
    long_word = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenfabrik" * 2
    project_id, group_id = served.run(full_house(served, house, long_word))
    page = window(house.admin, "/account", viewport=PHONE, dark=True)
    paths = [f"/admin/{section}" for section in SECTIONS] + [f"/admin/groups/{group_id}"]
    paths += [
        "/account",
        f"/projects/{project_id}/people",
        f"/projects/{project_id}/instructions",
        f"/admin/people/{house.admin.user_id}",
    ]
    for path in paths:
        page.goto(served.origin + path)
        if path == "/admin/organisation":
            page.get_by_text("Rename").last.click()
            assert page.evaluate("document.querySelector('[open] .menu__sheet').getBoundingClientRect().left >= 0")
        fits_both(page, tmp_path / f"{path.strip('/').replace('/', '-')[:40]}.png")


def test_the_page_of_backups_fits_its_window_empty_and_full_and_shows_a_drills_log(
    served: Served, window: OpenWindow, tmp_path: Path
) -> None:
    operator = served.run(an_operator(served))
    page = window(operator, "/admin/people", viewport=PHONE, dark=True)
    page.get_by_role("link", name="Backups").click()
    expect(page.get_by_role("region", name="To be mended")).to_contain_text("PHAROS_OFFSITE")
    fits_both(page, tmp_path / "empty.png")
    at = datetime.now(UTC) - timedelta(hours=3)
    make_folder(served.runtime.settings, made_at=at, error=Conflict("One differs.", code="documents_" * 20))
    served.run(a_drill(served))
    page.reload()
    expect(record(page, "documents_documents_").first).to_contain_text("failed")
    drill = record(page, "restore-drill-1").first
    drill.get_by_text("Log", exact=True).click()
    expect(drill.get_by_role("cell", name="46 of 46")).to_be_visible()
    fits_both(page, tmp_path / "full.png")


async def an_operator(served: Served) -> Principal:
    tenant_id = await ensure_default_tenant(served.runtime)
    return await make_person(served.runtime.db, tenant_id, platform_role="admin")


async def a_drill(served: Served) -> None:
    report = "| check | result | seconds |\n|---|---|---|\n| tables | 46 of 46 | 9.0 |"
    async with system_transaction(served.runtime.db) as session:
        session.add(Drill(name="restore-drill-1", seconds=41.5, passed=True, by="worker", report=report))


async def full_house(served: Served, house: MadeTenant, name: str) -> tuple[ProjectId, object]:
    """An organisation in which everything has a long name."""
    db = served.runtime.db
    person = await make_person(db, house.id)
    async with db.transaction(house.id) as session:
        await session.execute(update(User).where(User.id == person.user_id).values(name=name))
        await record_audit(session, person, action="test.done", subject=name, detail=name)
        await record_security_event(
            session, house.id, event_type="login_failed", severity="high", subject=name, agent=name
        )
    group_id = await make_group(db, person, tenant_id=house.id)
    return await make_project(db, house.admin, name=name), group_id


def test_who_belongs_to_two_organisations_joins_with_a_word_and_goes_from_one_to_the_other(
    served: Served, house: MadeTenant, window: OpenWindow
) -> None:
    async def prepare() -> tuple[str, str]:
        other = await make_tenant(served.runtime.db)
        async with served.runtime.db.transaction(other.id) as session:
            await session.execute(update(User).where(User.id == other.admin.user_id).values(username=other.slug))
        await invite(served.runtime, house.admin, Invited(email=other.admin.name))
        async with served.runtime.db.transaction(house.id) as session:
            await session.execute(update(Tenant).where(Tenant.id == house.id).values(name="Harbour Office"))
        return other.slug, await link_to(served.runtime, house.id, other.admin.name)

    user_name, link = served.run(prepare())
    page = window(None, link)
    press(page, page.get_by_role("button", name="Join"))
    expect(page.get_by_text("You now belong to Harbour Office.")).to_be_visible()
    page.get_by_label("E-mail or user name").fill(user_name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    enter(page)
    here = page.locator(".bar__place")
    expect(here).to_have_text("Harbour Office")
    page.locator("summary[aria-label^=Account]").click()
    press(page, page.get_by_role("button", name="Go to A tenant"))
    expect(here).to_have_text("A tenant")
    page.goto(f"{served.origin}/nowhere")
    page.locator("summary[aria-label^=Account]").click()
    press(page, page.get_by_role("button", name="Go to Harbour Office"))
    expect(here).to_have_text("Harbour Office")


def test_an_administrator_without_a_shell_unlocks_a_person_and_signs_them_out(
    served: Served, house: MadeTenant, member: Principal, window: OpenWindow
) -> None:
    async def lock() -> None:
        assert member.user_id is not None
        async with served.runtime.db.transaction(house.id) as session:
            for _ in range(MAX_FAILURES):
                await count_failure(session, member.user_id)
            await record_security_event(
                session, house.id, event_type="account_locked", severity="high", user_id=member.user_id
            )

    served.run(lock())
    theirs = window(member, "/")
    page = window(house.admin, f"/admin/people/{member.user_id}")
    account = page.get_by_role("region", name="Account")
    expect(account).to_contain_text("Locked until")
    press(page, account.get_by_role("button", name="Unlock"))
    expect(account).not_to_contain_text("Locked until")
    expect(account).to_contain_text("Signed in on one device")
    press(page, account.get_by_role("button", name="Sign out everywhere"))
    expect(account).to_contain_text("Signed in on 0 devices")
    theirs.reload()
    expect(theirs.get_by_role("heading", name="Sign in")).to_be_visible()
    press(page, page.get_by_role("link", name="Their security events"))
    expect(page.get_by_label("Whom, by e-mail")).to_have_value(member.name)
    press(page, record(page, "account locked").get_by_role("link", name=member.name))
    expect(page.get_by_role("region", name="Account")).to_be_visible()

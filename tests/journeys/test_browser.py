"""The first hour of a person, in a real Chromium: setup link, project, upload, question, cited answer, passage."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from os import environ
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize, expect, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first that there is: the one without windows needs half the processor time."""
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
PASSWORD = "four unrelated calm words"
NOTES = """# Maintenance of building C

The pumps of building C are serviced twice a year, in April and in October.

The roof was renewed in 2019 by the firm Hansen and is under warranty until 2029.

Visitors sign in at the gate and get a badge that opens the ground floor only.
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium-headless-shell"),
]


def pharos(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(["pharos", *words], env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installation(free_port: int, programs: Path) -> Iterator[dict[str, str]]:
    # not pytest's own directory: below it a socket's path grows longer than the 107 characters Linux allows
    directory = Path(tempfile.mkdtemp(prefix="pharos-browser-"))
    directory.chmod(0o755)
    kept = {name: value for name, value in environ.items() if not name.startswith(("PHAROS_", "PYTEST_"))}
    environment = kept | {"PHAROS_DATA_DIR": str(directory / "data"), "PHAROS_PORT": str(free_port)}
    environment["PATH"] = f"{programs}:{environ['PATH']}"
    pharos(environment, "up", "--detach")
    yield environment
    show_logs(directory / "data")
    pharos(environment, "down", "--delete-data", "--yes")
    shutil.rmtree(directory, ignore_errors=True)


def show_logs(data_dir: Path) -> None:
    """The last lines of every part, which pytest prints beside a failure."""
    for file in sorted((data_dir / "logs").glob("*.log")):
        sys.stdout.write(f"---- {file.name}\n" + "".join(file.read_text(errors="replace").splitlines(True)[-60:]))


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Watched:
    """A page, and what went wrong in it without being seen: script errors, policy breaches, calls elsewhere."""

    def __init__(self, page: Page, *, origin: str, shots: Path) -> None:
        self.page, self.origin, self.shots = page, origin, shots
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        # A refused upload or a wrong password is an answer, which Chromium also writes to the console.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.faults.append(f"asked {request.url}")

    def fits(self, name: str) -> None:
        """Nothing runs out of the window sideways."""
        fits(self.page, self.shots / f"{name}.png")


def fits(page: Page, shot: Path) -> None:
    """Nothing runs out of the window sideways; of a page where something does there is a picture."""
    if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        page.screenshot(path=shot, full_page=True)
        pytest.fail(f"{shot.stem} runs out of its window: {shot}")


def set_up(watched: Watched, link: str) -> None:
    page = watched.page
    page.goto(watched.origin)
    assert "/onboarding/first-login" in page.url
    expect(page.get_by_text("pharos setup-link")).to_be_visible()
    page.goto(link)
    page.get_by_label("Your name").fill("Maria Keller")
    page.get_by_label("E-mail", exact=True).first.fill("maria@example.org")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    watched.fits("1-setup")
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.goto(link)
    expect(page.get_by_role("heading", name="Pharos is already set up")).to_be_visible()


def hide_and_show_the_handbook(watched: Watched) -> None:
    page = watched.page
    page.goto(watched.origin)
    watched.fits("2-projects")
    page.get_by_role("button", name="Hide the handbook").click()
    expect(page.get_by_role("link", name="Pharos handbook")).to_have_count(0)
    page.get_by_role("button", name="Show the handbook").click()
    expect(page.get_by_role("link", name="Pharos handbook")).to_be_visible()


def make_a_project_and_upload(watched: Watched) -> None:
    page = watched.page
    page.get_by_label("New project").fill("Facilities")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="First, add a document")).to_be_visible()
    watched.fits("3-empty-project")
    notes, nothing = watched.shots / "building-c.md", watched.shots / "nothing.txt"
    notes.write_text(NOTES)
    nothing.write_bytes(b"")
    page.set_input_files("#files", [notes, nothing])
    expect(page.locator(".upload--failed")).to_contain_text("nothing.txt")
    row = page.get_by_role("row").filter(has_text="building-c.md")
    expect(row.get_by_text("Indexed")).to_be_visible(timeout=60_000)
    watched.fits("4-indexed")


def ask_and_open_the_passage(watched: Watched) -> None:
    page = watched.page
    page.wait_for_load_state("load")  # the heading is there before the modules that listen to the form
    page.get_by_label("Your question").fill("When are the pumps serviced?")
    page.keyboard.press("Enter")
    answer = page.get_by_role("article", name="Answer").last
    expect(answer.locator(".citation").first).to_be_visible(timeout=30_000)
    expect(answer).to_contain_text("in April and in October")
    watched.fits("5-answer")
    conversation = page.url
    assert "conversation=" in conversation
    source = answer.locator(".source").filter(has_text="in April and in October")
    answer.locator(".citation").get_by_text(source.locator("[data-index]").inner_text(), exact=True).click()
    mark = page.locator("mark#passage")
    expect(mark).to_contain_text("in April and in October")
    expect(mark).to_be_in_viewport()
    watched.fits("6-passage")
    page.go_back()
    expect(page.get_by_role("article", name="Answer").locator(".citation").first).to_be_visible()
    assert page.url == conversation


def ask_what_is_not_there(watched: Watched) -> None:
    page = watched.page
    page.get_by_label("Your question").fill("Who won the chess championship of 1972 in Reykjavik?")
    page.get_by_role("button", name="Ask", exact=True).click()
    last = page.get_by_role("article", name="Answer").last
    expect(last.get_by_text("Not found in these documents")).to_be_visible(timeout=30_000)
    expect(last.locator(".source")).to_have_count(0)
    watched.fits("7-not-found")


def sign_in(page: Page, *, password: str = PASSWORD) -> None:
    page.get_by_label("E-mail").fill("maria@example.org")
    page.get_by_label("Password", exact=True).fill(password)
    page.keyboard.press("Enter")


def delete_and_sign_out_and_in(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Delete building-c.md").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("No documents yet.")).to_be_visible()
    address = page.url
    page.locator("summary[aria-label^=Account]").click()
    page.get_by_role("button", name="Sign out").click()
    page.goto(address)
    sign_in(page, password="not it at all, no")
    expect(page.get_by_role("alert")).to_be_visible()
    sign_in(page)
    expect(page.get_by_role("heading", name="Facilities")).to_be_visible()
    assert page.url == address


def ask_on_a_phone(browser: Browser, link: str, shots: Path, address: str) -> list[str]:
    """The same in the dark on a small screen; what went wrong unseen."""
    context = browser.new_context(viewport=PHONE, color_scheme="dark", locale="en-GB", has_touch=True, is_mobile=True)
    watched = Watched(context.new_page(), origin=origin_of(link), shots=shots)
    page = watched.page
    page.goto(address.partition("?")[0])
    sign_in(page)
    expect(page.get_by_role("heading", name="Facilities")).to_be_visible()
    ask_and_open_the_passage(watched)
    context.close()
    return watched.faults


def origin_of(link: str) -> str:
    return link.partition("/onboarding")[0]


@pytest.mark.contract("ID-02", part="in a browser: before and after setup")
def test_from_the_setup_link_to_the_passage_behind_an_answer(
    installation: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    found = re.search(r"http\S+", pharos(installation, "setup-link"))
    assert found is not None
    link = found[0]
    desk, phone = tmp_path / "desk", tmp_path / "phone"
    desk.mkdir()
    phone.mkdir()
    context = browser.new_context(viewport=DESK, color_scheme="light", locale="en-GB")
    watched = Watched(context.new_page(), origin=origin_of(link), shots=desk)
    set_up(watched, link)
    hide_and_show_the_handbook(watched)
    make_a_project_and_upload(watched)
    ask_and_open_the_passage(watched)
    ask_what_is_not_there(watched)
    assert ask_on_a_phone(browser, link, phone, watched.page.url) == []
    delete_and_sign_out_and_in(watched)
    context.close()
    assert watched.faults == []

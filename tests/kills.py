"""Kill -9 parts of a running installation while it works; nothing that was acknowledged may be lost.

    python -m tests.kills --documents 500 --kills 50 --seed 1

Documents come in, fail, are retried and are deleted over HTTP, in portions: each kill releases the next one and waits
until documents are unfinished, so that it hits an installation at work and never an idle one. An external ledger (this
process's memory) holds what was acknowledged. At the end each document of it must have ended as it should, exactly
once, with its passages, terms and vectors in step; deleted ones must be gone; and most kills must have hit work. Only
processes of the installation made here are killed, by id.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, Unavailable
from pharos.infra.settings import Settings

PASSWORD = "correct horse battery staple"
SETTLE_SECONDS, WORK_SECONDS, LIMIT_SECONDS = 300.0, 90.0, 3000.0
"""How long we wait for the end of all work, before a kill for its beginning, and for the whole proof.
Requests wait up to a minute where they are limited, and work waits for them."""
PARTS = ("postgres", "embedder", "web", "worker", "supervisor")
MIN_BUSY_SHARE = 0.8
"""The least share of kills that must have hit unfinished documents; the others hit an installation still starting."""
DAMAGED_EVERY, DELETED_EVERY = 9, 5
"""Each so many-th document is damaged, and fails until the end of time; after each so many one is deleted."""


@dataclass
class Ledger:
    """What was acknowledged, by document id, and what was done to the installation.

    `unfinished` has for each kill the number of pending and processing documents just before it.
    """

    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    retried: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    unfinished: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """Counts of documents but for `kills` and `unfinished_at_kill`; `compared` shows that we looked."""

    seed: int
    acknowledged: int
    deleted: int
    retried: int
    kills: dict[str, int]
    unfinished_at_kill: list[int]
    compared: int
    lost: int
    returned: int  # deleted, and there again
    duplicated: int
    stuck: int
    ended_otherwise: int  # a sound one not indexed or without passages, a damaged one not failed
    out_of_step: int
    settled_in_seconds: float

    def faults(self) -> list[str]:
        """What must not be, as sentences; empty when the proof holds."""
        wrong = ("lost", "returned", "duplicated", "stuck", "ended_otherwise", "out_of_step")
        faults = [f"{name}: {getattr(self, name)}" for name in wrong if getattr(self, name)]
        busy = sum(number > 0 for number in self.unfinished_at_kill)
        if busy < MIN_BUSY_SHARE * len(self.unfinished_at_kill):
            faults.append(f"only {busy} of {len(self.unfinished_at_kill)} kills hit unfinished documents")
        if self.compared < self.acknowledged - self.deleted:
            faults.append(f"compared only {self.compared} documents")
        return faults


class Installation:
    """One `pharos up` in a directory and on a port of its own; `python` is what runs `-m pharos`."""

    def __init__(self, data_dir: Path, port: int, python: str) -> None:
        self.data_dir, self.url, self.python = data_dir, f"http://127.0.0.1:{port}", python
        self.environment = {
            **os.environ,
            "PHAROS_DATA_DIR": str(data_dir),
            "PHAROS_PORT": str(port),
            "ADMIN_PASSWORD": PASSWORD,
        }

    def run(self, *arguments: str, accepted: tuple[int, ...] = (0,)) -> str:
        """A `pharos` command; its stdout. Raises when it fails, but for a part that is just coming back (exit 7)."""
        command = [self.python, "-m", "pharos", *arguments]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=180, check=False
            )
            if done.returncode != Unavailable.exit_code or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if done.returncode not in accepted:
            raise RuntimeError(f"pharos {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> dict[str, psutil.Process]:
        """The living parts by name, by the ids that the supervisor keeps in its state."""
        try:
            state = json.loads((self.data_dir / "run" / "supervisor.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        ids = {"supervisor": state["pid"], **{name: part["pid"] for name, part in state["parts"].items()}}
        found: dict[str, psutil.Process] = {}
        for name, pid in ids.items():
            try:
                process = psutil.Process(pid)
                if _is_ours(name, process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = process
            except psutil.Error:
                continue
        return found

    def kill(self, part: str) -> bool:
        """SIGKILL one part; False when it was not there (it was just being restarted)."""
        process = self.processes().get(part)
        if process is None:
            return False
        process.kill()
        return True

    def is_supervised(self) -> bool:
        return "supervisor" in self.processes()

    def unfinished(self) -> int:
        """Pending and processing documents; 0 as well while the database does not answer."""
        url = connection_urls(Settings(_env_file=None, data_dir=self.data_dir)).backup  # sees all tenants
        try:
            with psycopg.connect(url, connect_timeout=2) as connection:
                row = connection.execute("select count(*) from documents where status in ('pending', 'processing')")
                return int((row.fetchone() or (0,))[0])
        except psycopg.OperationalError:
            return 0


def _is_ours(name: str, line: list[str]) -> bool:
    """Whether the process with a known id is still that part, and not a stranger who got its number."""
    if name == "postgres":
        return bool(line) and Path(line[0]).name == "postgres"
    is_warm_fork = name == "supervisor" and any(word.endswith("warm.py") for word in line)  # not a program of its own
    return is_warm_fork or (any("pharos" in word for word in line) and ("up" if name == "supervisor" else name) in line)


def token_of(installation: Installation) -> str:
    """An access token of the administrator, asking until the web process answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            reply = httpx.post(
                f"{installation.url}/auth/login", json={"email": "admin@example.com", "password": PASSWORD}, timeout=10
            )
            if reply.status_code == 200:
                return str(reply.json()["accessToken"])
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError("no token within a minute")
        time.sleep(0.2)


class Caller:
    """Asks the installation over HTTP until it is answered, and writes into the ledger what was."""

    def __init__(self, client: httpx.AsyncClient, ledger: Ledger, chooser: random.Random) -> None:
        self.client, self.ledger, self.chooser = client, ledger, chooser

    async def ask(self, method: str, path: str, *, wanted: set[int], **body: Any) -> tuple[httpx.Response, bool]:
        """The first answer with a wanted code, and whether an earlier try may have had its effect unseen."""
        was_cut_off = False
        while True:
            try:
                reply = await self.client.request(method, path, **body)
            except httpx.HTTPError as error:
                self.ledger.refused[type(error).__name__] += 1
                was_cut_off = True
            else:
                if reply.status_code in wanted:
                    return reply, was_cut_off
                self.ledger.refused[str(reply.status_code)] += 1
                was_cut_off = was_cut_off or reply.status_code >= 500
                if reply.status_code == 429:
                    await asyncio.sleep(float(reply.headers["retry-after"]))
            await asyncio.sleep(0.2)

    async def upload(self, project_id: str, number: int) -> None:
        """A duplicate of an unacknowledged try counts as acknowledged."""
        name, body = _document(number)
        files = {"file": (name, body, "application/octet-stream")}
        reply, _ = await self.ask("POST", f"/projects/{project_id}/documents", wanted={201, 409}, files=files)
        document_id = reply.json()["id" if reply.status_code == 201 else "existing_id"]
        self.ledger.acknowledged[document_id] = name
        if _is_damaged(number):
            self.ledger.damaged.add(document_id)

    async def delete_one(self) -> None:
        """One of the newest sound documents, most likely unfinished. One that is gone already counts as lost."""
        sound = [key for key in self.ledger.acknowledged if key not in self.ledger.deleted | self.ledger.damaged]
        document_id = self.chooser.choice(sound[-6:])
        reply, was_cut_off = await self.ask("DELETE", f"/documents/{document_id}", wanted={204, 404})
        if reply.status_code == 204 or was_cut_off:
            self.ledger.deleted.add(document_id)

    async def retry_failed(self) -> None:
        """Each damaged document once, as soon as it has failed; it must fail again."""
        for document_id in self.ledger.damaged - self.ledger.retried:
            reply, _ = await self.ask("POST", f"/documents/{document_id}/retry", wanted={202, 409})
            if reply.status_code == 202:
                self.ledger.retried.add(document_id)


async def call_in_portions(caller: Caller, project_id: str, documents: int, permits: asyncio.Semaphore) -> None:
    """Upload, delete and retry; each upload takes a permit."""
    for number in range(documents):
        await permits.acquire()
        await caller.upload(project_id, number)
        if number % DELETED_EVERY == DELETED_EVERY - 1:
            await caller.delete_one()
            await caller.retry_failed()
    while caller.ledger.damaged - caller.ledger.retried:
        await asyncio.sleep(0.5)
        await caller.retry_failed()


def _is_damaged(number: int) -> bool:
    return number % DAMAGED_EVERY == DAMAGED_EVERY - 1


def _document(number: int) -> tuple[str, bytes]:
    """Name and bytes; a sound one has some five passages, so that it is unfinished for a while."""
    if _is_damaged(number):
        return f"note-{number}.pdf", f"%PDF-1.7\n% {number}, and here it was cut off".encode()
    words = random.Random(number).choices(["harbour", "lantern", "keeper", "signal", "storm", "reef", "tide"], k=700)
    return f"note-{number}.txt", f"Note {number}. The word of it is token{number:05d}. {' '.join(words)}.".encode()


async def kill_at_random(
    installation: Installation, ledger: Ledger, shares: list[int], permits: asyncio.Semaphore, chooser: random.Random
) -> None:
    """For each share of documents: let it in, wait until work is unfinished, and SIGKILL a part at a random moment.

    Each part is killed as often as the others; a dead supervisor is started again.
    """
    order: list[str] = []
    for share in shares:
        for _ in range(share):
            permits.release()
        order = order or chooser.sample(PARTS, len(PARTS))
        part = order.pop()
        while True:
            await _wait_for_work(installation)
            await asyncio.sleep(chooser.uniform(0.0, 0.6))
            unfinished = await asyncio.to_thread(installation.unfinished)
            if await asyncio.to_thread(installation.kill, part):
                break
        ledger.killed[part] += 1
        ledger.unfinished.append(unfinished)
        if part == "supervisor":
            await asyncio.sleep(1)
            await asyncio.to_thread(installation.run, "up", "--detach")


async def _wait_for_work(installation: Installation) -> None:
    deadline = time.monotonic() + WORK_SECONDS
    while time.monotonic() < deadline:
        if await asyncio.to_thread(installation.unfinished):
            return
        await asyncio.sleep(0.05)


def judge(installation: Installation, ledger: Ledger) -> Verdict:
    """Wait until nothing moves any more, then compare ledger, rows, passages, terms and vectors."""
    started = time.monotonic()
    while installation.unfinished() and time.monotonic() - started < SETTLE_SECONDS:
        time.sleep(0.2)
    settled_in_seconds = round(time.monotonic() - started, 1)
    rows = json.loads(installation.run("documents", "list", "--project", "Kills", "--json"))
    by_name = Counter(row["name"] for row in rows)
    found = {row["id"] for row in rows}
    # exit 5 says that something is out of step, and so does the count
    check = json.loads(installation.run("documents", "check", "--json", accepted=(0, Conflict.exit_code)))
    return Verdict(
        seed=ledger.seed,
        acknowledged=len(ledger.acknowledged),
        deleted=len(ledger.deleted),
        retried=len(ledger.retried),
        kills=dict(ledger.killed),
        unfinished_at_kill=ledger.unfinished,
        compared=len(rows),
        lost=len(ledger.acknowledged.keys() - ledger.deleted - found),
        returned=len(ledger.deleted & found),
        duplicated=sum(number - 1 for number in by_name.values()),
        stuck=sum(row["status"] in ("pending", "processing") for row in rows),
        ended_otherwise=sum(not _ended_as_it_should(row, is_damaged=row["id"] in ledger.damaged) for row in rows),
        out_of_step=check["out_of_step"],
        settled_in_seconds=settled_in_seconds,
    )


def _ended_as_it_should(row: dict[str, Any], *, is_damaged: bool) -> bool:
    if is_damaged:
        return row["status"] == "failed" and bool(row["reason"])
    return bool(row["status"] == "indexed" and row["passages"] > 0)


def _make_project(installation: Installation, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(f"{installation.url}/projects", json={"name": "Kills"}, headers=headers, timeout=20)
    return str(made.raise_for_status().json()["id"])


async def prove(*, documents: int, kills: int, seed: int, port: int, python: str = sys.executable) -> Verdict:
    """The whole proof in a directory of its own, which is removed."""
    data_dir = Path(tempfile.mkdtemp(prefix="pharos-kills-"))
    installation, ledger, permits = Installation(data_dir, port, python), Ledger(seed=seed), asyncio.Semaphore(0)
    shares = [documents * (kill + 1) // kills - documents * kill // kills for kill in range(kills)]
    try:
        installation.run("up", "--detach")
        installation.run("user", "create-admin")
        token = token_of(installation)
        project_id = await asyncio.to_thread(_make_project, installation, token)
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx.AsyncClient(base_url=installation.url, timeout=20, headers=headers) as client,
            asyncio.timeout(LIMIT_SECONDS),
            asyncio.TaskGroup() as tasks,
        ):
            caller = Caller(client, ledger, random.Random(seed))
            tasks.create_task(call_in_portions(caller, project_id, documents, permits))
            tasks.create_task(kill_at_random(installation, ledger, shares, permits, random.Random(seed)))
        if not installation.is_supervised():
            installation.run("up", "--detach")
        return judge(installation, ledger)
    finally:
        installation.run("down", "--delete-data", "--yes")
        shutil.rmtree(data_dir, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--port", type=int, default=8931)
    options = parser.parse_args()
    verdict = asyncio.run(prove(**vars(options)))
    sys.stdout.write(json.dumps(asdict(verdict) | {"faults": verdict.faults()}, indent=2) + "\n")
    sys.exit(1 if verdict.faults() else 0)


if __name__ == "__main__":
    main()

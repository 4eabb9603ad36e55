"""Kill -9 parts of a running installation at random moments while documents come in; nothing may be lost.

    python -m tests.kills --documents 500 --kills 50 --seed 1

An external ledger (this process's memory) holds what the API acknowledged. At the end each acknowledged document must
be indexed exactly once, with its passages, terms and vectors in step. Only processes of the installation made here
are killed, by id.
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

import httpx
import psutil

from pharos.infra.errors import Unavailable

PASSWORD = "correct horse battery staple"
SETTLE_SECONDS = 300.0
PARTS = ("postgres", "embedder", "web", "worker", "supervisor")


@dataclass
class Ledger:
    """What was acknowledged, by document id, and what was done to the installation."""

    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Verdict:
    """`lost`, `duplicated` and `stuck` are counts of documents; all must be 0. `compared` shows that we looked."""

    seed: int
    acknowledged: int
    kills: dict[str, int]
    compared: int
    lost: int
    duplicated: int
    stuck: int
    failed: int
    out_of_step: int
    settled_in_seconds: float


class Installation:
    """One `pharos up` in a directory and on a port of its own."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir, self.url = data_dir, f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "PHAROS_DATA_DIR": str(data_dir),
            "PHAROS_PORT": str(port),
            "ADMIN_PASSWORD": PASSWORD,
        }

    def run(self, *arguments: str) -> str:
        """A `pharos` command; its stdout. Raises when it fails, but for a part that is just coming back (exit 7)."""
        command = [sys.executable, "-m", "pharos", *arguments]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=180, check=False
            )
            if done.returncode != Unavailable.exit_code or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if done.returncode != 0:
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


def _is_ours(name: str, line: list[str]) -> bool:
    """Whether the process with a known id is still that part, and not a stranger who got its number."""
    if name == "postgres":
        return bool(line) and Path(line[0]).name == "postgres"
    return any("pharos" in word for word in line) and ("up" if name == "supervisor" else name) in line


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


async def upload_all(installation: Installation, ledger: Ledger, project_id: str, token: str, documents: int) -> None:
    """Send each document until it is acknowledged; a duplicate of an unacknowledged try counts as acknowledged."""
    async with httpx.AsyncClient(timeout=20, headers={"Authorization": f"Bearer {token}"}) as client:
        for number in range(documents):
            body = _document(number)
            while True:
                try:
                    reply = await client.post(
                        f"{installation.url}/projects/{project_id}/documents",
                        files={"file": (f"note-{number}.txt", body, "text/plain")},
                    )
                except httpx.HTTPError as error:
                    ledger.refused[type(error).__name__] += 1
                    await asyncio.sleep(0.2)
                    continue
                if reply.status_code in (200, 201, 202):
                    ledger.acknowledged[reply.json()["id"]] = f"note-{number}.txt"
                    break
                if reply.status_code == 409:
                    ledger.acknowledged[reply.json()["existing_id"]] = f"note-{number}.txt"
                    break
                ledger.refused[str(reply.status_code)] += 1
                await asyncio.sleep(0.2)


def _document(number: int) -> bytes:
    words = random.Random(number).choices(["harbour", "lantern", "keeper", "signal", "storm", "reef", "tide"], k=60)
    return f"Note {number}. The word of this note is token{number:05d}. {' '.join(words)}.".encode()


async def kill_at_random(installation: Installation, ledger: Ledger, kills: int, chooser: random.Random) -> None:
    """SIGKILL parts at random moments, each as often as the others; a dead supervisor is started again."""
    order: list[str] = []
    while sum(ledger.killed.values()) < kills:
        await asyncio.sleep(chooser.uniform(0.2, 2.0))
        order = order or chooser.sample(PARTS, len(PARTS))
        part = order[-1]
        if not await asyncio.to_thread(installation.kill, part):
            continue
        order.pop()
        ledger.killed[part] += 1
        if part == "supervisor":
            await asyncio.sleep(3)
            await asyncio.to_thread(installation.run, "up", "--detach")


def judge(installation: Installation, ledger: Ledger) -> Verdict:
    """Wait until nothing moves any more, then compare ledger, rows, passages, terms and vectors."""
    started = time.monotonic()
    while True:
        rows = json.loads(installation.run("documents", "list", "--project", "Kills", "--json"))
        unfinished = [row for row in rows if row["status"] in ("pending", "processing")]
        if not unfinished or time.monotonic() - started > SETTLE_SECONDS:
            break
        time.sleep(1)
    by_name = Counter(row["name"] for row in rows)
    status = {row["id"]: row["status"] for row in rows}
    check = json.loads(installation.run("documents", "check", "--json"))
    return Verdict(
        seed=ledger.seed,
        acknowledged=len(ledger.acknowledged),
        kills=dict(ledger.killed),
        compared=len(rows),
        lost=sum(document not in status for document in ledger.acknowledged),
        duplicated=sum(number - 1 for number in by_name.values()),
        stuck=len(unfinished),
        failed=sum(state == "failed" for state in status.values()),
        out_of_step=check["out_of_step"],
        settled_in_seconds=round(time.monotonic() - started, 1),
    )


def _make_project(installation: Installation, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(f"{installation.url}/projects", json={"name": "Kills"}, headers=headers, timeout=20)
    return str(made.raise_for_status().json()["id"])


async def prove(*, documents: int, kills: int, seed: int, port: int) -> Verdict:
    """The whole proof in a directory of its own, which is removed."""
    data_dir = Path(tempfile.mkdtemp(prefix="pharos-kills-"))
    installation, ledger = Installation(data_dir, port), Ledger(seed=seed)
    try:
        installation.run("up", "--detach")
        installation.run("user", "create-admin")
        token = token_of(installation)
        project_id = await asyncio.to_thread(_make_project, installation, token)
        await asyncio.gather(
            upload_all(installation, ledger, project_id, token, documents),
            kill_at_random(installation, ledger, kills, random.Random(seed)),
        )
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
    sys.stdout.write(json.dumps(asdict(verdict), indent=2) + "\n")
    sys.exit(0 if not (verdict.lost or verdict.duplicated or verdict.stuck or verdict.out_of_step) else 1)


if __name__ == "__main__":
    main()

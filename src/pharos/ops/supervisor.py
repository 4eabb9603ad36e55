"""One process that starts the others in order, starts them again when they die, and stops them in the other order.

Everything it starts dies with it, also when it is killed: the kernel sees to that (`infra/processes.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil

from pharos.identity.setup import is_initialised, issue_setup_link
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import embedded_postgres, processes
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.errors import Conflict, PharosError, Unavailable
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings, child_environment
from pharos.ops.listen import local_url
from pharos.ops.log_files import open_log, rotate_logs
from pharos.ops.running import PARTS, READY_SECONDS, State, forget_state, write_state
from pharos.ops.secrets_check import refuse_wrong_secrets
from pharos.ops.upgrade_schema import upgrade_schema
from pharos.providers.catalog import open_embedding
from pharos.runtime import open_runtime

log = get_logger(__name__)

STOP_SECONDS = {"web": 35.0, "worker": 35.0, "embedder": 5.0, "postgres": 45.0}
"""Requests and jobs in flight get 30 seconds; then the part is killed, which loses no acknowledged work."""
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.25, 30.0
STEADY_SECONDS = 60.0
"""A part that has run this long is healthy again: its next death starts the backoff anew."""
MODELS_SECONDS, MODELS_STARTS = 30.0, 3
"""How long, and how many restarts of the embedder, a start waits for the models. They take about a second."""
TIDY_SECONDS = 600.0
MENDED_BY_TIME = (PharosError, OSError, psutil.Error, subprocess.SubprocessError)
"""A full disk, no free port or process, a database still recovering: logged, and tried again."""

Say = Callable[[str], None]


@dataclass
class Part:
    """A running part; `restarts` counts deaths since the supervisor started."""

    name: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    restarts: int = 0


class Supervisor:
    """`shows_setup_link` is for a terminal only: the link is a secret, and what is said elsewhere is kept in logs."""

    def __init__(self, settings: Settings, *, names: tuple[str, ...], say: Say, shows_setup_link: bool) -> None:
        self.settings = settings
        self.shows_setup_link = shows_setup_link
        self.names = names
        self.say = say
        self.parts: dict[str, Part] = {}
        self.is_ready, self.says_more = False, True
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Start everything, keep it running until SIGTERM or SIGINT, stop everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        watchers: list[asyncio.Task[None]] = []
        try:
            self._write_state()
            await self._start_all()
            watchers = [asyncio.create_task(self._keep(name)) for name in self.parts]
            watchers.append(asyncio.create_task(self._tidy()))
            for watcher in watchers:
                watcher.add_done_callback(lambda _: self.stopping.set())  # unwatched parts are not to be relied on
            if "web" in self.names:
                await self._wait_until_ready()
                await self._wait_for_models()
            if not self.stopping.is_set():
                more = await self._what_is_missing()
                self.is_ready, self.says_more = True, bool(more)
                self._write_state()
                self._announce(more)
            await self.stopping.wait()
            for watcher in watchers:
                if watcher.done():
                    watcher.result()  # raises what ended it
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self._stop_all()
            forget_state(self.settings)

    async def _start_all(self) -> None:
        if "embedder" in self.names:
            self._spawn("embedder")  # loads its model while the database starts
        if "postgres" in self.names and self.settings.database_url is None:
            self.say("Starting Postgres")
            await self._start_postgres()
        if self.names != ("postgres",):
            await prepare_database(self.settings, say=self.say)
        for name in ("worker", "web"):
            if name in self.names:
                self._spawn(name)
        self._write_state()

    async def _start_postgres(self) -> None:
        cluster = await asyncio.to_thread(embedded_postgres.initialise, self.settings.data_dir)
        # A server left by a killed supervisor is shutting down by itself; we hold the lock, so nobody else's it can be.
        await asyncio.to_thread(embedded_postgres.stop, cluster)
        with open_log(self.settings.data_dir, "postgres") as output:
            process = embedded_postgres.start(cluster, output=output)
        self.parts["postgres"] = Part("postgres", process)
        await asyncio.to_thread(embedded_postgres.wait_until_ready, cluster, process)

    def _spawn(self, name: str) -> None:
        environment = child_environment(self.settings)
        with open_log(self.settings.data_dir, name) as output:
            process = processes.spawn(
                [sys.executable, "-m", "pharos", name], death_signal=signal.SIGKILL, output=output, env=environment
            )
        known = self.parts.get(name)
        self.parts[name] = Part(name, process, restarts=known.restarts + 1 if known else 0)

    async def _keep(self, name: str) -> None:
        """Start a part again whenever it ends, sooner at first and later and later if it keeps dying.

        Steadiness counts from the last try: a start that fails early leaves the old part, which once ran for long.
        """
        backoff, tried = FIRST_BACKOFF_SECONDS, self.parts[name].started
        while True:
            try:
                code = await processes.exited(self.parts[name].process)
                if time.monotonic() - tried > STEADY_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
                log.warning("part.ended", part=name, code=code, restart_in_seconds=backoff)
                await asyncio.sleep(backoff)
                backoff, tried = min(backoff * 2, MAX_BACKOFF_SECONDS), time.monotonic()
                await self._start_again(name)
                self._tell_state()
            except MENDED_BY_TIME as error:
                log.error("part.not_started", part=name, error=str(error))
                await asyncio.sleep(FIRST_BACKOFF_SECONDS)  # the waiting itself may have failed, for want of handles

    async def _start_again(self, name: str) -> None:
        if name == "postgres":
            restarts = self.parts[name].restarts + 1
            await self._start_postgres()
            self.parts[name].restarts = restarts
        else:
            self._spawn(name)

    async def _wait_until_ready(self) -> None:
        self.say("Waiting for the models and the web process")
        deadline = time.monotonic() + READY_SECONDS
        async with httpx.AsyncClient(trust_env=False) as client:
            while not await _is_ready(client, local_url(self.settings)):
                if self.stopping.is_set():
                    return
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"Pharos is not ready after {READY_SECONDS:.0f} s. `pharos logs web` and `pharos doctor` say "
                        "why.",
                        code="not_ready",
                    )
                await asyncio.sleep(0.05)

    async def _wait_for_models(self) -> None:
        """Not for ever: without them search goes by words alone, which is better than no start."""
        deadline = time.monotonic() + MODELS_SECONDS
        async with open_embedding(self.settings) as model:
            while await model.state() != "ready" and not self.stopping.is_set():
                embedder = self.parts.get("embedder")
                if time.monotonic() > deadline or (embedder and embedder.restarts >= MODELS_STARTS):
                    return
                await asyncio.sleep(0.05)

    async def _what_is_missing(self) -> list[str]:
        if "web" not in self.names:
            return []
        return [*await models_lines(self.settings), *await setup_lines(self.settings, link=self.shows_setup_link)]

    def _announce(self, more: list[str]) -> None:
        if "web" not in self.names:
            self.say("Postgres is ready.")
            return
        self.say(f"Listening on port {self.settings.port}")
        self.say(f"Pharos is ready at {self.settings.base_url}")
        for line in more:
            self.say(line)

    async def _tidy(self) -> None:
        while True:
            try:
                await asyncio.to_thread(rotate_logs, self.settings.data_dir)
            except OSError as error:
                log.error("logs.not_rotated", error=str(error))
            await asyncio.sleep(TIDY_SECONDS)
            self._tell_state()

    async def _stop_all(self) -> None:
        for name in reversed(PARTS):
            part = self.parts.get(name)
            if part is not None and part.process.poll() is None:
                with contextlib.suppress(OSError):  # a full disk or a closed pipe: it stops all the same
                    self.say(f"Stopping {name}")
                await _stop(part)

    def _tell_state(self) -> None:
        """Write the state if the disk takes it; a full one must not end the watching, and the next round tells it."""
        try:
            self._write_state()
        except OSError as error:
            log.error("state.not_written", error=str(error))

    def _write_state(self) -> None:
        parts = {name: {"pid": part.process.pid, "restarts": part.restarts} for name, part in self.parts.items()}
        url, port = self.settings.base_url, self.settings.port
        state = State(os.getpid(), port, url, self.is_ready, parts, says_more=self.says_more)
        write_state(self.settings, state)


async def models_lines(settings: Settings) -> list[str]:
    """What to say when the models are not there; nothing when they are."""
    async with open_embedding(settings) as model:
        state = await model.state()
    if state == "ready":
        return []
    what = "are still loading" if state == "loading" else "do not answer"
    return [
        f"The models {what}: until they do, search goes by words alone and new documents wait. `pharos logs embedder` "
        "says why."
    ]


async def setup_lines(settings: Settings, *, link: bool) -> list[str]:
    """What to tell a newcomer: the one-time setup link or where to get it; nothing once there is an account."""
    async with open_runtime(settings) as runtime:
        if await is_initialised(runtime):
            return []
        if not link:
            return ["There is no account yet. `pharos setup-link` prints the address where the first one is made."]
        try:
            return [f"Set it up (once): {await issue_setup_link(runtime)}"]
        except Conflict:
            return []


async def prepare_database(settings: Settings, *, say: Say) -> None:
    """Roles, schema and default tenant as this code expects them; refuses a database that could mix tenants."""
    if settings.database_url is None:
        await asyncio.to_thread(initialise_database, settings)
    urls = connection_urls(settings)
    state, backup = await asyncio.to_thread(upgrade_schema, settings)
    if backup is not None:
        say(f"Backup before migrating: {backup.name}")
    applied = ", ".join(state.pending) or "none pending"
    say(f"Migrations: {applied}; schema at {state.current}")
    await asyncio.to_thread(refuse_unsafe_role, urls.app)
    async with open_runtime(settings) as runtime:
        await ensure_default_tenant(runtime)
        await refuse_wrong_secrets(runtime)


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        reply = await client.get(f"{url}/health/ready", timeout=5)
    except httpx.HTTPError:
        return False
    return reply.status_code == 200


async def _stop(part: Part) -> None:
    part.process.send_signal(signal.SIGINT if part.name == "postgres" else signal.SIGTERM)
    try:
        await asyncio.wait_for(processes.exited(part.process), STOP_SECONDS[part.name])
    except TimeoutError:
        log.warning("part.killed", part=part.name, after_seconds=STOP_SECONDS[part.name])
        part.process.kill()
        await processes.exited(part.process)

"""A real Postgres, the world with fake models, and clients that ask over HTTP.

One server for the session, one clone of its migrated template for each test process. Tests commit for real, each in a
tenant of its own; what concerns the whole installation asks for `fresh_runtime` or `fresh_urls`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx
import psycopg
import pytest
from _pytest.nodeid import NodeId
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.pool import AsyncAdaptedQueuePool
from tests.fakes import FakeEmbedding
from tests.make import MadeTenant, make_person, make_tenant, make_token, password_hash
from tests.postgres import FreshDatabase, Server, shared_server
from tests.redis_server import RedisServer
from tests.warm import warm_programs

from pharos.app import create_app
from pharos.identity import passwords, same_time
from pharos.identity import tasks as identity_tasks
from pharos.identity.principal import Principal
from pharos.infra import job_queue
from pharos.infra.blobs import BlobStore
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import Database, create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.limits import Limits
from pharos.infra.settings import Settings
from pharos.infra.smtp import MailTransport
from pharos.infra.vault import Vault
from pharos.library import tasks
from pharos.providers.calls import Models
from pharos.runtime import Runtime

pytest_plugins = ["tests.contract_plugin"]


ENCRYPTION_KEY = hashlib.sha256(b"the tests' one").hexdigest()
"""The same in all tests of a process: they share a database, which knows its keys."""


PLAIN_SETTINGS = Settings(_env_file=None, encryption_key=ENCRYPTION_KEY)
"""Once: looking for all of them in the environment takes as long as a small test."""

QUICK_HASHING = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
REAL_HASHING = passwords.HASHING
REAL_ANSWER_SECONDS = same_time.ANSWER_SECONDS


FIRST_OF_A_FILE = 2
"""So many of its tests of the database are in `make test-fast`; what a file is about stands at its head."""
WORLD = {"database_server", "database_urls", "pools"}
FREE = {"quick_sign_in", "tmp_path_factory", "event_loop_policy"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out most tests of the database")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first, in whatever order they are: begun last, one of them would keep a single processor busy."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if getattr(config.option, "loadgroup", False):
        keep_groups_together(items)
    if config.getoption("fast"):
        fast = fast_ones(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in fast])
        items[:] = [item for item in items if item in fast]


def fast_ones(items: list[pytest.Item]) -> set[pytest.Item]:
    """What is shared by a module or more is shared because it is costly: all tests that need nothing of the kind, and
    of those that need no more of it than the database with its connections the first of each file."""
    free, of_the_world = set(), defaultdict[Path, list[pytest.Item]](list)
    for item in items:
        shared = shared_fixtures(item)
        if not shared:
            free.add(item)
        elif "pools" in shared <= WORLD:
            of_the_world[item.path].append(item)
    first = [sorted(found, key=lambda item: item.location[1] or 0)[:FIRST_OF_A_FILE] for found in of_the_world.values()]
    return free.union(*first)


def shared_fixtures(item: pytest.Item) -> set[str]:
    """Those that this test needs, without what every one has."""
    assert isinstance(item, pytest.Function)
    found = item._fixtureinfo.name2fixturedefs  # pytest says it nowhere else
    return {
        name
        for name, made in found.items()
        if made[-1].scope in {"session", "package", "module"} and not name.startswith("_") and name not in FREE
    }


def keep_groups_together(items: list[pytest.Item]) -> None:
    """Say the group where tests are given out by it, at the end of the id. pytest-xdist 3.8 means to, but since 9.2
    pytest no longer reads the attribute that it writes: each test process would make what a group shares."""
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            item._id = NodeId.parse(f"{item.nodeid}@{mark.args[0]}")


class RunJobs(Protocol):
    async def __call__(self, world: Runtime = ..., /) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def quick_sign_in() -> None:
    """Argon2id at its least cost and no answer that waits: neither would prove anything of what comes after it."""
    passwords.HASHING = QUICK_HASHING
    same_time.ANSWER_SECONDS = 0.0


@pytest.fixture
def real_hashing() -> Iterator[None]:
    """Passwords at the cost they have in an installation, for tests of that cost."""
    for hashing in (REAL_HASHING, QUICK_HASHING):
        passwords.HASHING = hashing
        passwords._nobodys_hash.cache_clear()
        password_hash.cache_clear()
        if hashing is REAL_HASHING:
            yield


@pytest.fixture
def real_answer_time(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds that an answer takes which must not tell of an address."""
    monkeypatch.setattr(same_time, "ANSWER_SECONDS", REAL_ANSWER_SECONDS)
    return REAL_ANSWER_SECONDS


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder for the head of PATH, whose `pharos` does not wait for its libraries."""
    with warm_programs() as folder:
        yield folder


@pytest.fixture(scope="session")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.getbasetemp()
    with shared_server((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def database_urls(database_server: Server) -> Iterator[DatabaseUrls]:
    """The clone of this test process; set up already, so that nobody is led to the setup page."""
    name = f"test_{secrets.token_hex(6)}"
    urls = database_server.clone(name)
    with psycopg.connect(urls.app) as connection:
        connection.execute("update bootstrap_state set is_initialized = true")
    yield urls
    database_server.drop(name)


@pytest.fixture
def settings(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(database_urls, tmp_path_factory.mktemp("data"))


def make_settings(urls: DatabaseUrls, data_dir: Path) -> Settings:
    changed = {"data_dir": data_dir, "database_url": urls.app, "secret_key": SecretStr(secrets.token_hex(32))}
    return PLAIN_SETTINGS.model_copy(update=changed)


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[str, Database]]:
    """By address, for all tests of this process: connections of its own are half of what a small test costs."""
    made: dict[str, Database] = {}
    yield made
    for database in made.values():
        asyncio.run(database.dispose())


@asynccontextmanager
async def lent_pool(pools: dict[str, Database], url: str) -> AsyncIterator[Database]:
    """Every test has an event loop of its own, and a connection that lies in the pool knows none.

    One that is still used, and a queue in which somebody waited because all were, know theirs and are left behind.
    """
    database = pools.get(url) or pools.setdefault(url, create_database(url, pool_size=5))
    yield database
    for engine in (database.engine, database.single):
        assert isinstance(engine.pool, AsyncAdaptedQueuePool)
        if engine.pool.checkedout() or engine.pool.checkedin() == engine.pool.size():
            await engine.dispose()


@pytest.fixture
async def db(settings: Settings, pools: dict[str, Database]) -> AsyncIterator[Database]:
    assert settings.database_url is not None
    async with lent_pool(pools, settings.database_url) as database:
        yield database


@pytest.fixture
def runtime(settings: Settings, db: Database) -> Runtime:
    return make_runtime(settings, db)


def make_runtime(settings: Settings, db: Database) -> Runtime:
    vault = Vault(settings)
    return Runtime(
        settings=settings,
        db=db,
        limits=Limits(settings, db),
        vault=vault,
        mail=MailTransport(settings),
        blobs=BlobStore(settings.blob_root),
        embedding=FakeEmbedding(),
        models=Models(settings, db, vault),
    )


@pytest.fixture(scope="session")
def fresh_database(database_server: Server) -> Iterator[FreshDatabase]:
    made = FreshDatabase(database_server)
    yield made
    made.drop()


@pytest.fixture
def fresh_urls(fresh_database: FreshDatabase) -> Iterator[DatabaseUrls]:
    """A database as it is right after the first migration; what is done to it is undone."""
    yield fresh_database.urls
    fresh_database.renew()


@pytest.fixture
async def fresh_runtime(fresh_urls: DatabaseUrls, pools: dict[str, Database], tmp_path: Path) -> AsyncIterator[Runtime]:
    """An installation of its own, as it is right after the first migration."""
    settings = make_settings(fresh_urls, tmp_path / "fresh")
    async with lent_pool(pools, fresh_urls.app) as database:
        yield make_runtime(settings, database)


@pytest.fixture
async def tenant(db: Database) -> MadeTenant:
    return await make_tenant(db)


@pytest.fixture
async def member(db: Database, tenant: MadeTenant) -> Principal:
    """Somebody without a role in `tenant`."""
    return await make_person(db, tenant.id)


@pytest.fixture
async def stranger(db: Database) -> Principal:
    """The superadmin of another tenant."""
    return (await make_tenant(db)).admin


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test alone; mark the test with `needs_redis`."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def open_client(runtime: Runtime, principal: Principal | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, signed in as `principal`; each has an address of its own, so tests share no limit."""
    address = str(ipaddress.IPv4Address(secrets.randbits(24) | 10 << 24))
    transport = httpx.ASGITransport(create_app(runtime.settings, runtime=runtime), client=(address, 40000))
    headers = {"Authorization": f"Bearer {await make_token(runtime, principal)}"} if principal else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
        yield client


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    """Nobody."""
    async with open_client(runtime) as nobody:
        yield nobody


@pytest.fixture
async def as_admin(runtime: Runtime, tenant: MadeTenant) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(runtime, tenant.admin) as signed_in:
        yield signed_in


@pytest.fixture
async def as_member(runtime: Runtime, member: Principal) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(runtime, member) as signed_in:
        yield signed_in


@pytest.fixture
async def as_stranger(runtime: Runtime, stranger: Principal) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(runtime, stranger) as signed_in:
        yield signed_in


@pytest.fixture
async def run_jobs(runtime: Runtime) -> RunJobs:
    """Runs what this test has queued until nothing waits any more, in `runtime` unless another one is named."""
    await forget_waiting_jobs(runtime.db)

    async def run(world: Runtime = runtime, /) -> None:
        await run_waiting_jobs(world)

    return run


async def forget_waiting_jobs(db: Database) -> None:
    """What earlier tests of this process left."""
    async with system_transaction(db) as session:
        await session.execute(text("delete from procrastinate_jobs"))


async def run_waiting_jobs(world: Runtime) -> None:
    """Until nothing waits any more."""
    assert tasks.ingest_documents  # registered by their import
    assert identity_tasks.send_mail
    assert world.settings.database_url is not None
    app = job_queue.create_queue(world.settings.database_url)
    async with app.open_async():
        await job_queue.run_worker(app, context={"runtime": world}, concurrency=2, wait=False, signals=False)

"""A real Postgres, the world with fake models, and clients that ask over HTTP.

One server for the session, one clone of its migrated template for each test process. Tests commit for real, each in a
tenant of its own; what concerns the whole installation asks for `fresh_database`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx
import psycopg
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import text
from tests.fakes import FakeEmbedding
from tests.make import MadeTenant, make_person, make_tenant, make_token, password_hash
from tests.postgres import Server, shared_server
from tests.redis_server import RedisServer
from tests.warm import warm_programs

from pharos.app import create_app
from pharos.identity import passwords
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


QUICK_HASHING = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
REAL_HASHING = passwords.HASHING


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, in whatever order they are: begun last, one of them would keep a single processor busy."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class RunJobs(Protocol):
    async def __call__(self, world: Runtime = ..., /) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def quick_hashing() -> None:
    """Argon2id at its least cost: a tenth of a second for each sign-in would prove nothing of what comes after it."""
    passwords.HASHING = QUICK_HASHING


@pytest.fixture
def real_hashing() -> Iterator[None]:
    """Passwords at the cost they have in an installation, for tests of that cost."""
    for hashing in (REAL_HASHING, QUICK_HASHING):
        passwords.HASHING = hashing
        passwords._nobodys_hash.cache_clear()
        password_hash.cache_clear()
        if hashing is REAL_HASHING:
            yield


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
    return Settings(
        _env_file=None,
        data_dir=data_dir,
        database_url=urls.app,
        secret_key=secrets.token_hex(32),
        encryption_key=ENCRYPTION_KEY,
    )


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    assert settings.database_url is not None
    database = create_database(settings.database_url, pool_size=5)
    yield database
    await database.dispose()


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


@pytest.fixture
async def fresh_runtime(database_server: Server, tmp_path: Path) -> AsyncIterator[Runtime]:
    """An installation of its own, as it is right after the first migration."""
    name = f"test_{secrets.token_hex(6)}"
    settings = make_settings(database_server.clone(name), tmp_path / "fresh")
    assert settings.database_url is not None
    database = create_database(settings.database_url, pool_size=5)
    yield make_runtime(settings, database)
    await database.dispose()
    database_server.drop(name)


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
    async with system_transaction(runtime.db) as session:
        await session.execute(text("delete from procrastinate_jobs"))  # what earlier tests of this process left

    async def run(world: Runtime = runtime, /) -> None:
        assert tasks.ingest_documents  # registered by their import
        assert identity_tasks.send_mail
        assert world.settings.database_url is not None
        app = job_queue.create_queue(world.settings.database_url)
        async with app.open_async():
            await job_queue.run_worker(app, context={"runtime": world}, concurrency=2, wait=False, signals=False)

    return run

"""An installation in a database and with roles of its own, as on its first day, for tests that restore it."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import make_runtime
from tests.make import MadeTenant, make_document, make_person, make_project
from tests.postgres import Server

from pharos.identity.sign_in import open_session
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

SECRET = "sk-kept-in-the-backup-0123456789"


@dataclass(frozen=True)
class Place:
    """An installation, its backup, and what was acknowledged before that: document ids with the hash of their bytes."""

    settings: Settings
    server: Server
    folder: Path
    tenant: MadeTenant
    ledger: dict[str, str]


def quiet(step: str, sentence: str) -> None:
    return


def make_installation(server: Server, data_dir: Path, *, revision: str = "head") -> Settings:
    name = f"restore_{secrets.token_hex(4)}"
    address = server.admin_url.rpartition("@")[2].partition("/")[0]
    settings = Settings(
        _env_file=None,
        data_dir=data_dir,
        database_url=f"postgresql://{name}_app:of-the-test@{address}/{name}",
        database_admin_url=server.admin_url,
    )
    urls = initialise_database(settings)
    migrate.upgrade(urls.migrator, owner=urls.owner_role, revision=revision)
    return settings


def database_of(settings: Settings) -> str:
    return str(settings.database_url).rpartition("/")[2]


def with_runtime(settings: Settings, work: Any) -> Any:
    """Run `work(runtime)` in a loop and with a pool of its own: the database is swapped between two of them."""

    async def run() -> Any:
        db = create_database(connection_urls(settings).app, pool_size=3)
        try:
            return await work(make_runtime(settings, db))
        finally:
            await db.dispose()

    return asyncio.run(run())


async def first_day(runtime: Runtime) -> tuple[MadeTenant, dict[str, str]]:
    tenant_id = await ensure_default_tenant(runtime)
    admin = await make_person(runtime.db, tenant_id, platform_role="superadmin")
    tenant = MadeTenant(tenant_id, "default", admin)
    async with system_transaction(runtime.db) as session:
        await runtime.vault.check(session)
    async with runtime.db.transaction(tenant_id) as session:
        await runtime.vault.seal(session, tenant_id=tenant_id, kind="llm", name="openai", text=SECRET)
    await open_session(runtime, admin)
    return tenant, await upload(runtime, tenant, 3, "before")


async def upload(runtime: Runtime, tenant: MadeTenant, count: int, word: str) -> dict[str, str]:
    project_id = await make_project(runtime.db, tenant.admin)
    made = {}
    for number in range(count):
        content = f"{word} {number} {secrets.token_hex(4)}".encode()
        document = await make_document(runtime, tenant.admin, project_id, name=f"{word}-{number}.txt", content=content)
        made[str(document.id)] = document.sha256
    return made

"""A second Pharos on what a drill has restored: web and embedder of their own, and people to ask it as.

It shares nothing with the live one but the models' files: an environment made anew, so that no setting of the live one
(its mail server, its Redis, its keys) reaches it, and no worker, so that nothing it holds is sent or changed.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import psycopg

from pharos.identity.principal import Principal
from pharos.identity.sign_in import open_session
from pharos.infra import processes
from pharos.infra.database_roles import role_name
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Conflict, Unavailable
from pharos.infra.ids import TenantId, UserId
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import Escrow, write_secrets
from pharos.ops.backup.scratch import Loaded, ScratchServer
from pharos.ops.log_files import log_file, open_log
from pharos.ops.smoke import CheckFailed, stream_answer
from pharos.runtime import open_runtime

READY_SECONDS = 120.0
MODELS_SECONDS = 60.0
"""Without its models it answers by words alone, which the log says."""
STOP_SECONDS = 20.0
CANARIES = 5
"""Passages tried for a tenant: a heading or a table makes a poor question, so one is not enough to judge by."""

PEOPLE = """
    select distinct on (m.tenant_id) m.tenant_id, t.slug, m.user_id, u.email, m.platform_role, m.org_position,
        m.department_id
    from memberships m join users u on u.id = m.user_id join tenants t on t.id = m.tenant_id
    where m.disabled_at is null and u.disabled_at is null
    order by m.tenant_id, u.must_change_password, m.platform_role = 'superadmin' desc, m.user_id
    limit %s
    """
PASSAGES = """
    select p.document_id, p.project_id, p.text
    from passages p join projects j on j.tenant_id = p.tenant_id and j.id = p.project_id
    where p.tenant_id = %s and p.project_id = any(%s) and length(p.text) > 40
    order by j.is_handbook, md5(p.id::text) limit %s
    """


@dataclass(frozen=True)
class TenantToAsk:
    """A tenant and a token of somebody in it, made for the drill."""

    tenant_id: UUID
    slug: str
    token: str


def drill_settings(home: Path, server: ScratchServer, loaded: Loaded, *, blobs: Path, models: Path) -> Settings:
    """Settings of the second Pharos, each its own whatever the environment says; writes its roles' passwords."""
    address = loaded.admin_url.rpartition("@")[2].partition("/")[0]
    role, password = role_name(loaded.database, "app"), server.passwords["app"]
    own = {
        "data_dir": home,
        "host": "127.0.0.1",
        "port": free_port(),
        "database_url": f"postgresql://{role}:{quote(password, safe='')}@{address}/{loaded.database}",
        "upload_root": blobs,
        "models_dir": models,
    }
    write_secret(home / "secrets" / "database-roles.json", json.dumps(server.passwords))
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    return Settings.model_construct(**{**defaults, **own})


@contextmanager
def second_pharos(settings: Settings, escrow: Escrow) -> Iterator[str]:
    """Web and embedder on the restored data; gives its address, ends both at the end.

    Raises `Conflict` (`drill_web_failed`) with its last words when it ends, `Unavailable` (`drill_not_ready`).
    """
    write_secrets(settings, escrow)
    started = [_spawn(settings, "embedder"), _spawn(settings, "web")]
    url = f"http://127.0.0.1:{settings.port}"
    try:
        _wait_until_ready(settings, started[1], url)
        yield url
    finally:
        for process in reversed(started):
            _stop(process)


async def tenants_to_ask(settings: Settings, backup_url: str, *, limit: int | None = None) -> list[TenantToAsk]:
    """Every tenant that has people, the oldest first, with a token of its superadmin, or of anybody where there is
    none; at most `limit` of them. `backup_url` leads to the database as the role that reads all."""
    with psycopg.connect(backup_url) as connection:
        people = connection.execute(PEOPLE, [limit]).fetchall()
    found = []
    async with open_runtime(settings) as runtime:
        for tenant_id, slug, user_id, email, platform_role, org_position, department_id in people:
            principal = Principal(
                tenant_id=TenantId(tenant_id),
                user_id=UserId(user_id),
                name=email,
                platform_role=platform_role,
                org_position=org_position,
                department_id=department_id,
            )
            issued = await open_session(runtime, principal, holder="brief")
            found.append(TenantToAsk(tenant_id, slug, issued.access_token))
    return found


async def ask_canary(url: str, backup_url: str, asked: TenantToAsk, *, kept_in: list[str] | None = None) -> str:
    """Ask what a known passage of the tenant says until an answer cites its document; names none. The conversations
    that the questions are kept in are added to `kept_in`.

    Raises `Conflict` (`canary_failed`) when none of several does, and `LookupError` for a tenant without passages that
    this person may read.
    """
    headers = {"Authorization": f"Bearer {asked.token}"}
    async with httpx.AsyncClient(base_url=url, timeout=60.0, trust_env=False) as client:
        projects = (await client.get("/projects", headers=headers)).raise_for_status().json()["projects"]
        known = _passages(backup_url, asked.tenant_id, [UUID(project["id"]) for project in projects])
        if not known:
            raise LookupError(asked.slug)
        said = ""
        for document_id, project_id, text in known:
            try:
                answer = await stream_answer(
                    client, project_id=str(project_id), question=_question(text), headers=headers
                )
            except CheckFailed as failed:
                said = failed.said
                continue
            if kept_in is not None:
                kept_in.append(answer.conversation_id)
            if any(source["document_id"] == str(document_id) for source in answer.sources):
                return f"{asked.slug}: cites its document"
            said = "a question about a document was answered without it"
    raise Conflict(f"{asked.slug}: {said} ({len(known)} passages tried).", code="canary_failed")


def _passages(backup_url: str, tenant_id: UUID, projects: list[UUID]) -> list[tuple[Any, ...]]:
    with psycopg.connect(backup_url) as connection:
        return connection.execute(PASSAGES, [tenant_id, projects, CANARIES]).fetchall()


def _question(text: str) -> str:
    """The longest line of a passage, up to 200 characters: whatever finds it must find the passage."""
    return max((line.strip(" #*|-") for line in text.splitlines()), key=len)[:200]


def _spawn(settings: Settings, name: str) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": pwd.getpwuid(os.geteuid()).pw_dir,
        "LC_ALL": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PHAROS_DATA_DIR": str(settings.data_dir),
        "PHAROS_HOST": settings.host,
        "PHAROS_PORT": str(settings.port),
        "PHAROS_DATABASE_URL": str(settings.database_url),
        "PHAROS_UPLOAD_ROOT": str(settings.upload_root),
        "PHAROS_MODELS_DIR": str(settings.models_dir),
    }
    with open_log(settings.data_dir, name) as output:
        return processes.spawn(
            [sys.executable, "-m", "pharos", name],
            death_signal=signal.SIGKILL,
            output=output,
            env=environment,
            cwd=settings.data_dir,  # no `pharos.env` of the live one is read here
        )


def _wait_until_ready(settings: Settings, web: subprocess.Popen[bytes], url: str) -> None:
    """Until it takes requests, and then for its models as long as they need, within reason."""
    started = time.monotonic()
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while not _says(client, f"{url}/health/ready", "status", "ready"):
            if web.poll() is not None:
                words = " ".join(log_file(settings.data_dir, "web").read_text(errors="replace").splitlines()[-3:])
                raise Conflict(f"The second Pharos ended: {words[-600:]}", code="drill_web_failed")
            if time.monotonic() - started > READY_SECONDS:
                raise Unavailable(
                    f"The second Pharos is not ready after {READY_SECONDS:.0f} s. `pharos doctor` says what is slow.",
                    code="drill_not_ready",
                )
            time.sleep(0.1)
        while time.monotonic() - started < MODELS_SECONDS and not _has_models(client, url):
            time.sleep(0.1)


def _says(client: httpx.Client, url: str, name: str, value: object) -> bool:
    try:
        return bool(client.get(url).json().get(name) == value)
    except (httpx.HTTPError, ValueError):
        return False


def _has_models(client: httpx.Client, url: str) -> bool:
    try:
        return bool(client.get(f"{url}/health/detailed").json()["components"]["embedder"]["status"] == "up")
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

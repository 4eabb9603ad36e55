"""`pharos queue` and `documents retry` from the machine: for the whole installation, and in the audit log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import select, update
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.models import AuditEntry
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import jobs
from pharos.infra.db import Database
from pharos.infra.errors import Conflict, Unavailable
from pharos.infra.ids import DocumentId, TenantId
from pharos.infra.mail import get_mail, queue_mail
from pharos.library import documents
from pharos.library.models import Document
from pharos.runtime import Runtime


@pytest.fixture
def runtime(fresh_runtime: Runtime) -> Runtime:
    """What is done for all tenants is done here for two, and not for those of every test before."""
    return fresh_runtime


@pytest.fixture
def db(fresh_runtime: Runtime) -> Database:
    return fresh_runtime.db


KIND = f"{jobs.NAMESPACE}:{documents.INGEST_TASK}"


async def pharos(runtime: Runtime, *words: str) -> Result:
    environment = {
        "PHAROS_DATABASE_URL": runtime.settings.database_url,
        "PHAROS_DATA_DIR": str(runtime.settings.data_dir),
    }
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), env=environment)


async def audited(runtime: Runtime, tenant_id: TenantId, action: str) -> list[AuditEntry]:
    async with runtime.db.transaction(tenant_id) as session:
        entries = select(AuditEntry).where(AuditEntry.action == action).order_by(AuditEntry.id)
        return list((await session.execute(entries)).scalars())


@pytest.mark.contract("IQ-03", part="clearing is the installation's, and audited there")
@pytest.mark.contract("IQ-04", part="by command, for all tenants, audited")
async def test_the_queue_is_cleared_and_recovered_for_all_tenants_and_audited_once(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    default = await ensure_default_tenant(runtime)
    before = (
        len(await audited(runtime, default, "queue.cleared")),
        len(await audited(runtime, default, "queue.recovered")),
    )
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project)
    assert (await pharos(runtime, "queue", "clear", "--kind", KIND, "--tenant", tenant.slug)).exit_code == 2
    cleared = await pharos(runtime, "queue", "clear", "--kind", KIND)
    assert cleared.output == f"Removed 1 waiting jobs of {KIND}.\n"
    recovered = await pharos(runtime, "queue", "recover", "--json")
    assert json.loads(recovered.output)["recovered"] >= 1
    assert json.loads((await pharos(runtime, "queue", "list", "--json")).output)[0]["jobs"] >= 1
    after = await audited(runtime, default, "queue.cleared"), await audited(runtime, default, "queue.recovered")
    assert [len(entries) - number for entries, number in zip(after, before, strict=True)] == [1, 1]
    assert (after[0][-1].subject, after[0][-1].actor, after[0][-1].detail) == (f"queue:{KIND}", "operator", {"jobs": 1})
    assert await audited(runtime, tenant.id, "queue.cleared") == []


@pytest.mark.contract("PD-03", part="a retry is audited")
async def test_a_retried_document_is_in_its_tenants_audit_log(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    async with runtime.db.transaction(tenant.id) as session:
        await documents.give_up(session, document_id=DocumentId(document.id), reason="It is broken.")
    done = await pharos(runtime, "documents", "retry", str(document.id), "--tenant", tenant.slug)
    assert done.output == "1 queued again.\n"
    (entry,) = await audited(runtime, tenant.id, "document.retried")
    assert (entry.subject, entry.actor) == (f"document:{document.id}", "operator")


@pytest.mark.contract(
    "IQ-03", part="every kind at once, put back to pending, recovered; refuses while uploads are open"
)
async def test_clearing_everything_loses_neither_document_nor_mail_and_waits_for_open_uploads(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    await ensure_default_tenant(runtime)
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    async with runtime.db.transaction(tenant.id) as session:
        # as a job leaves it whose worker was killed, and which was put back
        await session.execute(update(Document).where(Document.id == document.id).values(status="processing"))
        mail_id = await queue_mail(
            session, runtime.vault, tenant_id=tenant.id, recipient="a@example.org", subject="s", text="t"
        )
    half = runtime.settings.blob_root / "incoming" / "half"
    half.write_bytes(b"half a f")
    refused = await pharos(runtime, "queue", "clear")
    assert isinstance(refused.exception, Conflict)
    assert refused.exception.code == "uploads_open"
    counted = json.loads((await pharos(runtime, "queue", "clear", "--dry-run", "--json")).output)["removed"]
    assert counted == {KIND: 1, "pharos:mail:send": 1}
    assert json.loads((await pharos(runtime, "queue", "clear", "--force", "--json")).output)["removed"] == counted
    half.unlink()
    assert set(json.loads((await pharos(runtime, "queue", "clear", "--json")).output)["removed"].values()) == {0}
    async with runtime.db.transaction(tenant.id) as session:
        found = await session.get(Document, (tenant.id, document.id))
        assert found is not None
        assert found.status == "pending"
    recovered = json.loads((await pharos(runtime, "queue", "recover", "--json")).output)
    assert min(recovered["recovered"], recovered["mails"]) >= 1
    assert json.loads((await pharos(runtime, "queue", "recover", "--json")).output) == {"recovered": 0, "mails": 0}
    await run_jobs()
    async with runtime.db.transaction(tenant.id) as session:
        mail = await get_mail(session, tenant_id=tenant.id, mail_id=mail_id)
        indexed = await session.get(Document, (tenant.id, document.id))
        assert indexed is not None
        assert (mail.state, indexed.status) == ("sent", "indexed")


async def test_waiting_for_documents_ends_where_nobody_works_on_them(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.library.commands.WORKER_STARTS_SECONDS", 0.0)
    await ensure_default_tenant(runtime)
    (tmp_path / "note.txt").write_text("The keeper trims the lamp.")
    result = await pharos(runtime, "ingest", str(tmp_path), "--project", "Lamps", "--wait")
    assert isinstance(result.exception, Unavailable), result.output
    assert result.exception.code == "no_worker"
    assert "1 documents are stored and wait" in result.exception.message

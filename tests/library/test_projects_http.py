"""Projects and documents over HTTP: who reaches what, and what an upload promises."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text, update
from tests.conftest import RunJobs, open_client
from tests.make import MadeTenant, make_document, make_person, make_project, make_tenant

from pharos.access.models import ProjectGrant, ProjectMember
from pharos.identity.principal import Principal
from pharos.infra.ids import ProjectId
from pharos.library.models import Document, Passage
from pharos.runtime import Runtime

NOWHERE = "018f0000-0000-7000-8000-000000000000"
NOTE = b"The lighthouse of Alexandria was built on the island of Pharos."


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant) -> ProjectId:
    return await make_project(runtime.db, tenant.admin, name="Lighthouses")


def a_file(content: bytes = NOTE, name: str = "note.txt") -> dict[str, tuple[str, bytes]]:
    return {"file": (name, content)}


@pytest.mark.contract("PD-01")
async def test_projects_are_those_one_can_reach_with_the_reason(
    runtime: Runtime, tenant: MadeTenant, as_admin: httpx.AsyncClient, as_member: httpx.AsyncClient, member: Principal
) -> None:
    await make_project(runtime.db, tenant.admin, name="Open")
    private = await make_project(runtime.db, tenant.admin, name="Private", is_private=True)
    granted = await make_project(runtime.db, tenant.admin, name="Granted", is_private=True)
    await make_project(runtime.db, member, name="Mine", is_private=True)
    await make_project(runtime.db, (await make_tenant(runtime.db)).admin, name="Elsewhere")
    async with runtime.db.transaction(tenant.id) as session:
        session.add(
            ProjectGrant(
                tenant_id=tenant.id, project_id=granted, grantee_kind="user", grantee_id=member.user_id, tier="edit"
            )
        )
    listed = (await as_member.get("/projects")).json()
    assert list(listed) == ["projects"]
    reached = {project["name"]: (project["accessTier"], project["accessSource"]) for project in listed["projects"]}
    assert reached == {"Granted": ("edit", "direct"), "Mine": ("full", "owner"), "Open": ("use", "public")}
    everything = {project["name"]: project for project in (await as_admin.get("/projects")).json()["projects"]}
    assert everything.keys() == {"Granted", "Mine", "Open", "Private"}
    assert everything["Private"]["id"] == str(private)
    assert {project["accessSource"] for project in everything.values()} == {"platform"}


@pytest.mark.contract("PD-02", "AC-04", part="members, and grants to a person with their end")
async def test_members_and_unexpired_grants_open_a_private_project(
    runtime: Runtime, tenant: MadeTenant, as_member: httpx.AsyncClient, member: Principal
) -> None:
    project_id = await make_project(runtime.db, tenant.admin, name="Private", is_private=True)
    key = {"tenant_id": tenant.id, "project_id": project_id}

    async def tier() -> str | None:
        found = (await as_member.get("/projects")).json()["projects"]
        return found[0]["accessTier"] if found else None

    assert await tier() is None
    async with runtime.db.transaction(tenant.id) as session:
        session.add(ProjectGrant(**key, grantee_kind="user", grantee_id=member.user_id, tier="full"))
    assert await tier() == "full"
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(update(ProjectGrant).values(expires_at=func.now()))
    assert await tier() is None
    async with runtime.db.transaction(tenant.id) as session:
        session.add(ProjectMember(**key, user_id=member.user_id, tier="edit"))
    assert await tier() == "edit"


@pytest.mark.contract("AC-02", "AC-03", part="a head uses everything, and has all of what they own")
async def test_the_head_of_the_organisation_uses_everything(runtime: Runtime, tenant: MadeTenant) -> None:
    ceo = await make_person(runtime.db, tenant.id, org_position="ceo")
    await make_project(runtime.db, tenant.admin, name="Private", is_private=True)
    await make_project(runtime.db, ceo, name="Own", is_private=True)
    async with open_client(runtime, ceo) as as_ceo:
        listed = (await as_ceo.get("/projects")).json()["projects"]
    assert {p["name"]: (p["accessTier"], p["accessSource"]) for p in listed} == {
        "Private": ("use", "ceo"),
        "Own": ("full", "owner"),
    }


async def test_only_administrators_make_projects(as_admin: httpx.AsyncClient, as_member: httpx.AsyncClient) -> None:
    refused = await as_member.post("/projects", json={"name": "Mine"})
    assert (refused.status_code, refused.json()["error"]) == (403, "not_an_admin")
    made = await as_admin.post("/projects", json={"name": "New", "isPrivate": True})
    assert (made.status_code, made.json()["isPrivate"], made.json()["accessTier"]) == (201, True, "full")
    again = await as_admin.post("/projects", json={"name": "New"})
    assert (again.status_code, again.json()["error"]) == (409, "project_exists")
    assert (await as_admin.post("/projects", json={})).status_code == 422


async def test_the_handbook_is_hidden_by_one_call_and_back_by_another(
    runtime: Runtime, tenant: MadeTenant, as_admin: httpx.AsyncClient, as_member: httpx.AsyncClient
) -> None:
    handbook = await make_project(runtime.db, replace(tenant.admin, user_id=None), name="Handbook", is_handbook=True)

    async def is_hidden(client: httpx.AsyncClient) -> bool:
        (project,) = (await client.get("/projects")).json()["projects"]
        assert project["isHandbook"]
        return bool(project["isHidden"])

    assert (await as_member.put(f"/api/v1/projects/{handbook}/hidden")).status_code == 204
    assert (await is_hidden(as_member), await is_hidden(as_admin)) == (True, False)
    assert (await as_member.delete(f"/api/v1/projects/{handbook}/hidden")).status_code == 204
    assert await is_hidden(as_member) is False


@pytest.mark.contract("PD-03", "PD-04", part="pending, then indexed; its text in passages; its bytes kept")
async def test_an_upload_becomes_an_indexed_document(
    runtime: Runtime, project_id: ProjectId, as_admin: httpx.AsyncClient, run_jobs: RunJobs
) -> None:
    answer = await as_admin.post(f"/projects/{project_id}/documents", files=a_file())
    document = answer.json()
    assert (answer.status_code, document["status"], document["name"]) == (201, "pending", "note.txt")
    assert document["sha256"] == hashlib.sha256(NOTE).hexdigest()
    await run_jobs(runtime)
    document = (await as_admin.get(f"/documents/{document['id']}")).json()
    assert (document["status"], document["reason"], document["passages"]) == ("indexed", None, 1)
    body = (await as_admin.get(f"/documents/{document['id']}/text")).json()
    assert body["text"] == NOTE.decode()
    listed = (await as_admin.get(f"/projects/{project_id}/documents")).json()["documents"]
    assert [item["id"] for item in listed] == [document["id"]]


async def test_a_large_upload_is_never_gathered_in_memory(
    runtime: Runtime, project_id: ProjectId, as_admin: httpx.AsyncClient
) -> None:
    async def form() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n--x\r\n'
        yield 'Content-Disposition: form-data; name="file"; filename="größe.txt"\r\n\r\n'.encode()
        for _ in range(40):
            yield b"a line of text\r\n" * 4096
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await as_admin.post(f"/projects/{project_id}/documents", content=form(), headers=headers)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["sizeBytes"], answer.json()["name"]) == (40 * 4096 * 16, "größe.txt")


@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b"", "multipart/form-data; boundary=x", "no_file"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "no_file"),
        (b"{}", "application/json", "no_file"),
        (b"nonsense", "multipart/form-data; boundary=x", "bad_form"),
        (b"x" * 100, "multipart/form-data", "no_file"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
            "multipart/form-data; boundary=x",
            "upload_cut_off",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            "empty_file",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
async def test_a_form_without_a_whole_file_leaves_nothing(
    *,
    runtime: Runtime,
    project_id: ProjectId,
    as_admin: httpx.AsyncClient,
    content: bytes,
    content_type: str,
    code: str,
) -> None:
    path = f"/projects/{project_id}/documents"
    answer = await as_admin.post(path, content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error"]) == (422, code)
    assert (await as_admin.get(path)).json() == {"documents": []}
    incoming = runtime.blobs.root / "incoming"
    assert not incoming.exists() or list(incoming.iterdir()) == []


async def test_a_file_over_the_limit_leaves_nothing(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    small = replace(runtime, settings=runtime.settings.model_copy(update={"max_upload_bytes": 1000}))
    async with open_client(small, tenant.admin) as client:
        answer = await client.post(f"/projects/{project_id}/documents", files=a_file(b"x" * 1001))
        assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
        assert (await client.get(f"/projects/{project_id}/documents")).json() == {"documents": []}


async def test_the_same_bytes_again_are_recognised(project_id: ProjectId, as_admin: httpx.AsyncClient) -> None:
    first = await as_admin.post(f"/projects/{project_id}/documents", files=a_file())
    again = await as_admin.post(f"/projects/{project_id}/documents", files=a_file(name="other.txt"))
    assert (again.status_code, again.json()["error"]) == (409, "duplicate_document")
    assert again.json()["existing_id"] == first.json()["id"]


async def test_an_upload_leaves_one_audit_entry_and_one_that_stored_nothing_none(
    project_id: ProjectId, as_admin: httpx.AsyncClient
) -> None:
    first = await as_admin.post(f"/projects/{project_id}/documents", files=a_file())
    await as_admin.post(f"/projects/{project_id}/documents", files=a_file())
    (entry,) = (await as_admin.get("/audit-log", params={"action": "document.uploaded"})).json()["entries"]
    assert entry["subject"] == f"document:{first.json()['id']}"
    assert entry["detail"] == {"project": str(project_id)}


@pytest.mark.contract("FI-01")
async def test_an_upload_folder_that_cannot_be_used_is_named_not_a_crash(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("not a folder")
    broken = replace(runtime, blobs=type(runtime.blobs)(tmp_path / "a-file"))
    async with open_client(broken, tenant.admin) as client:
        answer = await client.post(f"/projects/{project_id}/documents", files=a_file())
    assert (answer.status_code, answer.json()["error"]) == (503, "server_misconfigured")


async def test_the_file_comes_back_as_a_download_only(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, as_admin: httpx.AsyncClient
) -> None:
    evil = b"<script>alert(1)</script>"
    document = await make_document(runtime, tenant.admin, project_id, name="dir/päge.html", content=evil)
    answer = await as_admin.get(f"/documents/{document.id}/file")
    assert answer.content == evil
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=utf-8''p%C3%A4ge.html")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.contract("PD-03", part="a failed document keeps its reason and its file; retry needs no new upload")
async def test_a_failed_document_is_retried_without_a_new_upload(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, as_admin: httpx.AsyncClient, run_jobs: RunJobs
) -> None:
    document = await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    path = f"/documents/{document.id}"
    refused = await as_admin.post(f"{path}/retry")
    assert (refused.status_code, refused.json()["error"]) == (409, "not_failed")
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(update(Document).values(status="failed", reason="It rained."))
    assert (await as_admin.get(path)).json()["reason"] == "It rained."
    assert (await as_admin.post(f"{path}/retry")).status_code == 202
    await run_jobs(runtime)
    assert (await as_admin.get(path)).json()["status"] == "indexed"


async def test_a_deleted_document_leaves_no_row(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, as_admin: httpx.AsyncClient, run_jobs: RunJobs
) -> None:
    document = await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    assert (await as_admin.delete(f"/documents/{document.id}")).status_code == 204
    assert (await as_admin.get(f"/documents/{document.id}")).status_code == 404
    async with runtime.db.transaction(tenant.id) as session:
        for table in ("document_texts", "passages", "passage_terms", "passage_vectors_minilm_l6_v2", "lexicon"):
            assert (await session.execute(text(f"select count(*) from {table}"))).scalar_one() == 0, table


def every_call(project_id: object, document_id: object) -> list[tuple[str, str, dict[str, Any]]]:
    """A call of each route that names a project or a document."""
    question = {"question": "Where was it built?"}
    return [
        ("GET", f"/projects/{project_id}/documents", {}),
        ("POST", f"/projects/{project_id}/documents", {"files": a_file()}),
        ("PUT", f"/api/v1/projects/{project_id}/hidden", {}),
        ("POST", f"/chat/projects/{project_id}", {"json": question}),
        ("POST", "/chat", {"json": question | {"projectId": str(project_id)}}),
        ("POST", "/api/v1/search", {"json": {"text": "lighthouse", "projectId": str(project_id)}}),
        ("GET", f"/documents/{document_id}", {}),
        ("GET", f"/documents/{document_id}/text", {}),
        ("GET", f"/documents/{document_id}/file", {}),
        ("POST", f"/documents/{document_id}/retry", {}),
        ("DELETE", f"/documents/{document_id}", {}),
    ]


@pytest.mark.contract("AC-06", "AC-09", part="foreign and missing objects give the same 404, on every route")
async def test_what_is_foreign_looks_like_what_is_missing(
    runtime: Runtime, tenant: MadeTenant, as_stranger: httpx.AsyncClient
) -> None:
    private = await make_project(runtime.db, tenant.admin, is_private=True)
    document = await make_document(runtime, tenant.admin, private)
    for calls in zip(every_call(private, document.id), every_call(NOWHERE, NOWHERE), strict=True):
        seen = []
        for method, path, body in calls:
            answer = await as_stranger.request(method, path, **body)
            seen.append((answer.status_code, answer.json()["error"], answer.json()["message"]))
        assert seen[0] == seen[1], path
        assert seen[0][0] == 404, path


@pytest.mark.contract("AC-06")
async def test_a_colleague_without_access_is_refused_a_project_and_finds_no_document_of_it(
    runtime: Runtime, tenant: MadeTenant, as_member: httpx.AsyncClient
) -> None:
    private = await make_project(runtime.db, tenant.admin, is_private=True)
    document = await make_document(runtime, tenant.admin, private)
    for method, path, body in every_call(private, document.id):
        answer = await as_member.request(method, path, **body)
        expected = (404, "no_such_document") if path.startswith("/documents") else (403, "no_access")
        assert (answer.status_code, answer.json()["error"]) == expected, path


async def test_a_reader_may_not_change_a_project(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, as_member: httpx.AsyncClient
) -> None:
    document = await make_document(runtime, tenant.admin, project_id)
    for answer in (
        await as_member.post(f"/projects/{project_id}/documents", files=a_file(b"mine")),
        await as_member.delete(f"/documents/{document.id}"),
        await as_member.post(f"/documents/{document.id}/retry"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (403, "tier_too_low")
    assert (await as_member.get(f"/documents/{document.id}")).status_code == 200


@pytest.mark.contract("IQ-01")
async def test_ingest_takes_the_configured_folders_only_and_skips_what_is_known(
    runtime: Runtime, tenant: MadeTenant, member: Principal, tmp_path: Path, run_jobs: RunJobs
) -> None:
    folder = tmp_path / "manuals"
    folder.mkdir()
    (folder / "a.txt").write_text("The first manual tells how to begin.")
    (folder / "b.md").write_text("# Second\n\nIt tells how to end.")
    configured = replace(runtime, settings=runtime.settings.model_copy(update={"ingest_paths": str(folder)}))
    async with open_client(configured, member) as client:
        assert (await client.post("/ingest")).status_code == 403
    async with open_client(configured) as client:
        assert (await client.post("/ingest")).status_code == 401
    async with open_client(configured, tenant.admin) as client:
        first = (await client.post("/ingest", json={"path": "/etc"})).json()
        assert (first["added"], first["unchanged"], len(first["documents"])) == (2, 0, 2)
        assert "ingested_chunks" in first
        await run_jobs(configured)
        again = (await client.post("/ingest")).json()
        assert (again["added"], again["unchanged"]) == (0, 2)
    async with runtime.db.transaction(tenant.id) as session:
        assert (await session.execute(select(func.count()).select_from(Passage))).scalar_one() >= 2


async def test_ingest_without_a_configured_folder_says_what_to_set(as_admin: httpx.AsyncClient) -> None:
    answer = await as_admin.post("/ingest")
    assert (answer.status_code, answer.json()["error"]) == (422, "no_ingest_paths")


@pytest.mark.contract("PD-06")
async def test_statistics_are_for_administrators(
    *,
    runtime: Runtime,
    tenant: MadeTenant,
    project_id: ProjectId,
    client: httpx.AsyncClient,
    as_admin: httpx.AsyncClient,
    as_member: httpx.AsyncClient,
    run_jobs: RunJobs,
) -> None:
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    assert (await client.get("/admin/stats")).status_code == 401
    assert (await as_member.get("/admin/stats")).status_code == 403
    stats = (await as_admin.get("/admin/stats")).json()
    assert (stats["documents"], stats["chunks"], stats["users"]) == ({"total": 1, "indexed": 1}, 1, 2)
    assert stats["sessions"] == 2

"""Projects and documents over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import ARRAY, Uuid, any_, func, literal, select

from pharos.identity.audit import record_audit
from pharos.identity.current import CurrentAdmin, CurrentIngester, CurrentPrincipal, CurrentRuntime
from pharos.infra.errors import NotFound
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library import delete, documents, projects, schemas, upload
from pharos.library.folder import ingest_configured
from pharos.library.models import Passage
from pharos.library.multipart import read_file_part
from pharos.library.project_settings import change_project_settings, read_project_settings

router = APIRouter(tags=["library"])

UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.get("/projects")
async def list_projects(principal: CurrentPrincipal, runtime: CurrentRuntime) -> schemas.Projects:
    """The projects the caller can reach."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await projects.list_projects(session, principal)
    return schemas.Projects(projects=[schemas.Project.model_validate(project) for project in found])


@router.post("/projects", status_code=201)
async def create_project(
    body: schemas.NewProject, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.Project:
    """A new project owned by the caller, who must be an administrator."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        made = await projects.create_project(session, principal, name=body.name, is_private=body.is_private)
        view = await projects.get_project(session, principal, project_id=ProjectId(made.id))
    return schemas.Project.model_validate(view)


@router.put("/api/v1/projects/{project_id}/hidden", status_code=204)
async def hide_project(project_id: ProjectId, principal: CurrentPrincipal, runtime: CurrentRuntime) -> None:
    """Put a project out of the caller's sight; access does not change."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await projects.set_hidden(session, principal, project_id=project_id, is_hidden=True)


@router.delete("/api/v1/projects/{project_id}/hidden", status_code=204)
async def unhide_project(project_id: ProjectId, principal: CurrentPrincipal, runtime: CurrentRuntime) -> None:
    """Bring a hidden project back into the caller's sight."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await projects.set_hidden(session, principal, project_id=project_id, is_hidden=False)


@router.get("/projects/{project_id}/settings")
async def read_settings(
    project_id: ProjectId, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.ProjectSettings:
    """What the project asks of every answer, for who manages it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await read_project_settings(session, principal, project_id=project_id)
    return schemas.ProjectSettings.model_validate(found)


@router.put("/projects/{project_id}/settings")
async def change_settings(
    project_id: ProjectId, body: schemas.NewProjectSettings, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.ProjectSettings:
    """Change what is named; it counts from the next question on."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        changed = await change_project_settings(session, principal, project_id=project_id, **body.model_dump())
    return schemas.ProjectSettings.model_validate(changed)


@router.get("/projects/{project_id}/documents")
async def list_documents(
    project_id: ProjectId, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.Documents:
    """The documents of a project by name."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await documents.list_documents(session, principal, project_id=project_id)
    return schemas.Documents(documents=[schemas.Document.model_validate(document) for document in found])


@router.post("/projects/{project_id}/documents", status_code=201, openapi_extra=UPLOAD_FORM)
async def upload_document(
    project_id: ProjectId, request: Request, principal: CurrentIngester, runtime: CurrentRuntime
) -> schemas.Document:
    """Store a file and queue it. Once this answers, no crash loses it; `status` tells how far it is."""
    sent = await read_file_part(request.stream(), request.headers.get("content-type", ""))
    document = await upload.receive(runtime, principal, project_id=project_id, name=sent.name, chunks=sent.chunks)
    return schemas.Document.model_validate(document)


@router.get("/documents/{document_id}")
async def get_document(
    document_id: DocumentId, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.Document:
    """One document and how far it is."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        document = await documents.get_document(session, principal, document_id=document_id)
    return schemas.Document.model_validate(document)


@router.delete("/documents/{document_id}", status_code=204)
async def delete_document(document_id: DocumentId, principal: CurrentIngester, runtime: CurrentRuntime) -> None:
    """Remove a document with everything that was made of it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await delete.delete_documents(session, principal, document_ids=[document_id])


@router.post("/documents/{document_id}/retry", status_code=202)
async def retry_document(
    document_id: DocumentId, principal: CurrentIngester, runtime: CurrentRuntime
) -> schemas.Document:
    """Queue a failed document again; its file is still here."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        document = await documents.retry(session, principal, document_id=document_id)
        await session.flush()
        await session.refresh(document)
    return schemas.Document.model_validate(document)


@router.get("/documents/{document_id}/text")
async def get_text(
    document_id: DocumentId, principal: CurrentPrincipal, runtime: CurrentRuntime
) -> schemas.DocumentText:
    """The extracted text that all citations count in."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        body = await documents.get_text(session, principal, document_id=document_id)
    return schemas.DocumentText.model_validate(body)


@router.get("/documents/{document_id}/file", response_class=FileResponse)
async def get_file(document_id: DocumentId, principal: CurrentPrincipal, runtime: CurrentRuntime) -> Response:
    """The original file, always as a download: what others uploaded must not run in this site's name."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        document = await documents.get_document(session, principal, document_id=document_id)
    path = runtime.blobs.path(principal.tenant_id, document.sha256)
    if not path.exists():
        raise NotFound("The file of this document is missing from the storage.", code="file_missing")
    return FileResponse(
        path,
        filename=document.name.rpartition("/")[2],
        media_type="application/octet-stream",
        content_disposition_type="attachment",
        headers={"Content-Security-Policy": "sandbox; default-src 'none'"},
    )


@router.post("/ingest", status_code=202)
async def ingest(principal: CurrentAdmin, runtime: CurrentRuntime) -> schemas.IngestAnswer:
    """Bring in the folders of PHAROS_INGEST_PATHS; unchanged files are skipped. No path comes from a request."""
    report = await ingest_configured(runtime, principal)
    indexed = select(func.count()).where(Passage.document_id == any_(literal(list(report.document_ids), ARRAY(Uuid))))
    async with runtime.db.transaction(principal.tenant_id) as session:
        passages = (await session.execute(indexed)).scalar_one()
        await record_audit(
            session, principal, action="folders.ingested", subject="folders:configured", files=len(report.document_ids)
        )
    return schemas.IngestAnswer(
        ingested_chunks=passages,
        added=report.added,
        replaced=report.replaced,
        unchanged=report.unchanged,
        refused=report.refused,
        documents=list(report.document_ids),
    )

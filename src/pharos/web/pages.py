"""The pages a person sees. Each asks the slices what to show; what a person does goes to the API."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from pharos.access.shares import find_last_request
from pharos.chat import history
from pharos.chat.feedback import list_ratings
from pharos.chat.turn_rows import list_open_turns
from pharos.identity.current import ADMIN_ROLES, CurrentRuntime
from pharos.identity.routes import clear_session_cookie
from pharos.identity.setup import SETUP_PATH, is_initialised, is_setup_token
from pharos.identity.sign_in import sign_out
from pharos.infra.errors import NotFound
from pharos.infra.http import safe_next
from pharos.infra.ids import ConversationId, DocumentId, ProjectId
from pharos.library import documents as library_documents
from pharos.library import projects as library_projects
from pharos.library.documents import FoundDocuments, find_documents
from pharos.web.account_pages import router as account_pages
from pharos.web.admin_pages import router as admin_pages
from pharos.web.html import HEADERS, STATIC, page, static_version
from pharos.web.mail_door_pages import router as mail_door_pages
from pharos.web.model_pages import models_lead
from pharos.web.model_pages import router as model_pages
from pharos.web.reader import document_view
from pharos.web.views import BLANKS, Turn, turns
from pharos.web.visit import CurrentVisit, Visit

router = APIRouter(include_in_schema=False)

Token = Annotated[str, Query(max_length=200)]
Slug = Annotated[str, Query(max_length=100)]
NextPath = Annotated[str | None, Query(alias="next", max_length=2000)]
EARLIER_CONVERSATIONS = 20
SHOWN_DOCUMENTS = 200
"""Rows of the documents panel: more make every poll of a page heavy; the rest is found by name."""
VERSION = re.compile(r"[0-9a-f]{12}")
CODE_TYPES = ("text/x-", "application/json", "application/xml", "application/x-")


class VersionedFiles(StaticFiles):
    """Static files that a browser keeps unasked for a day below our version of them all, which an upgrade changes.

    Below none, or that of another release that is stopped or started beside this one, it asks again by their ETag.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        version, _, below = path.partition("/")
        reply = await super().get_response(below if VERSION.fullmatch(version) else path, scope)
        reply.headers["Cache-Control"] = "max-age=86400" if version == static_version() else "no-cache"
        reply.headers["X-Content-Type-Options"] = "nosniff"
        return reply


def add_pages(routes: APIRouter) -> None:
    """Serve the pages and their static files."""
    routes.mount("/static", VersionedFiles(directory=STATIC), name="static")
    routes.include_router(router)
    routes.include_router(mail_door_pages)
    routes.include_router(account_pages)
    routes.include_router(admin_pages)
    routes.include_router(model_pages)


@router.get("/")
async def projects_page(request: Request, visit: CurrentVisit) -> Response:
    async with visit.runtime.db.transaction(visit.principal.tenant_id) as session:
        found = await library_projects.list_projects(session, visit.principal)
    handbooks = [project for project in found if project.is_handbook]
    return page(
        request,
        "projects.html",
        **visit.context,
        can_create=visit.principal.platform_role in ADMIN_ROLES,
        projects=[project for project in found if not project.is_handbook and not project.is_hidden],
        handbook=next((project for project in handbooks if not project.is_hidden), None),
        hidden_handbook=next((project for project in handbooks if project.is_hidden), None),
    )


@router.get(SETUP_PATH)
async def setup_page(request: Request, runtime: CurrentRuntime, token: Token = "") -> Response:
    """The first account's form, for whoever holds the one-time link."""
    initialized = await is_initialised(runtime)
    token_valid = not initialized and bool(token) and await is_setup_token(runtime, token)
    return page(request, "onboarding.html", initialized=initialized, token_valid=token_valid, token=token)


@router.get("/sign-in")
async def sign_in_page(
    request: Request, runtime: CurrentRuntime, next_path: NextPath = None, tenant: Slug = ""
) -> Response:
    """`tenant` is the slug of the one to enter; without it the person's first."""
    if not await is_initialised(runtime):
        return _see_other(SETUP_PATH)
    return page(request, "sign_in.html", next_path=safe_next(next_path), tenant=tenant)


@router.post("/sign-out")
async def sign_out_form(visit: CurrentVisit) -> Response:
    await sign_out(visit.runtime, visit.visitor.signed_in)
    reply = _see_other("/sign-in")
    clear_session_cookie(reply)
    return reply


@router.post("/projects/{project_id}/hide")
async def hide_project(project_id: ProjectId, visit: CurrentVisit) -> Response:
    return await _set_hidden(visit, project_id, is_hidden=True)


@router.post("/projects/{project_id}/show")
async def show_project(project_id: ProjectId, visit: CurrentVisit) -> Response:
    return await _set_hidden(visit, project_id, is_hidden=False)


async def _set_hidden(visit: Visit, project_id: ProjectId, *, is_hidden: bool) -> Response:
    async with visit.runtime.db.transaction(visit.principal.tenant_id) as session:
        await library_projects.set_hidden(session, visit.principal, project_id=project_id, is_hidden=is_hidden)
    return _see_other("/")


def _see_other(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers=HEADERS)


@router.get("/projects/{project_id}")
async def project_page(
    request: Request, project_id: ProjectId, visit: CurrentVisit, conversation: ConversationId | None = None
) -> Response:
    principal = visit.principal
    async with visit.runtime.db.transaction(principal.tenant_id) as session:
        project = await library_projects.get_project(session, principal, project_id=project_id)
        found = await find_documents(session, principal, project_id=project_id, name="", limit=SHOWN_DOCUMENTS)
        conversations = await history.list_conversations(
            session, principal, project_id=project_id, limit=EARLIER_CONVERSATIONS
        )
        said: list[Turn] = []
        shared = None
        if conversation is not None:
            opened = await history.get_conversation(session, principal, conversation_id=conversation)
            if opened.project_id != project_id:
                raise NotFound("There is no such conversation in this project.", code="no_such_conversation")
            shared = await find_last_request(session, conversation_id=conversation)
            messages = await history.list_messages(session, conversation_id=conversation)
            said = turns(
                project_id,
                messages,
                await history.list_sources(session, conversation_id=conversation),
                open_turns=await list_open_turns(session, conversation_id=conversation),
                ratings=await list_ratings(session, principal, conversation_id=conversation),
            )
    return page(
        request,
        "project.html",
        **visit.context,
        **_shelf(found, name=""),
        **BLANKS,
        project=project,
        can_edit=project.tier != "use",
        can_share=project.tier == "full",
        conversations=conversations,
        conversation_id=conversation,
        shared=shared,
        messages=said,
        models_page=await models_lead(visit),
        max_upload_bytes=visit.runtime.settings.max_upload_bytes,
    )


@router.get("/projects/{project_id}/documents/list")
async def document_list(
    request: Request, project_id: ProjectId, visit: CurrentVisit, name: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """The rows of the documents panel alone, which htmx puts in place of the old ones."""
    async with visit.runtime.db.transaction(visit.principal.tenant_id) as session:
        project = await library_projects.get_project(session, visit.principal, project_id=project_id)
        found = await find_documents(session, visit.principal, project_id=project_id, name=name, limit=SHOWN_DOCUMENTS)
    return page(request, "_documents.html", **_shelf(found, name=name), project=project, can_edit=project.tier != "use")


def _shelf(found: FoundDocuments, *, name: str) -> dict[str, Any]:
    """What the documents panel shows of what was found by `name`."""
    return {
        "documents": found.documents,
        "more_count": found.more_count,
        "busy": found.is_busy,
        "filtered": bool(name.strip()),
    }


@router.get("/projects/{project_id}/documents/{document_id}")
async def document_page(
    request: Request,
    *,
    project_id: ProjectId,
    document_id: DocumentId,
    visit: CurrentVisit,
    start: int | None = None,
    end: int | None = None,
    part: int | None = None,
) -> Response:
    """The text of a document with characters `start` to `end` marked."""
    principal = visit.principal
    async with visit.runtime.db.transaction(principal.tenant_id) as session:
        document = await library_documents.get_document(session, principal, document_id=document_id)
        if document.project_id != project_id:
            raise NotFound("There is no such document in this project.", code="no_such_document")
        project = await library_projects.get_project(session, principal, project_id=project_id)
        text = None
        if document.status == "indexed":
            text = await library_documents.get_text(session, principal, document_id=document_id)
    view = document_view(text.body, text.page_starts, start=start, end=end, part=part) if text else None
    return page(
        request,
        "document.html",
        **visit.context,
        project=project,
        document=document,
        view=view,
        is_code=document.media_type.startswith(CODE_TYPES),
    )

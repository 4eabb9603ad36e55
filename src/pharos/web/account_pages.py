"""A person's own account, who reaches a project, and the conversation a guest was given a link to."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pharos.access import explain, grants
from pharos.access.projects import TIERS
from pharos.chat.shared import read_shared
from pharos.identity import api_keys
from pharos.identity.current import AnyVisitor, CurrentRuntime
from pharos.identity.departments import list_departments
from pharos.identity.groups import list_groups
from pharos.identity.sessions import list_sessions
from pharos.infra.http import client_ip
from pharos.infra.ids import ConversationId, ProjectId
from pharos.library import projects as library_projects
from pharos.web.errors import CHANGE_PASSWORD_PATH
from pharos.web.html import page
from pharos.web.views import BLANKS, turns
from pharos.web.visit import CurrentVisit

router = APIRouter(include_in_schema=False)


@router.get("/account")
async def account_page(request: Request, visit: CurrentVisit) -> Response:
    """Where one is signed in, one's API keys, one's password and address."""
    me = visit.principal
    assert me.user_id is not None
    async with visit.transaction() as session:
        sessions = await list_sessions(session, user_id=me.user_id)
        keys = [key for key in await api_keys.list_keys(session, me) if key.user_id == me.user_id]
    return page(
        request,
        "account.html",
        **visit.context,
        email=me.name,
        sessions=sessions,
        current=visit.visitor.signed_in.session_id,
        keys=keys,
        scopes=api_keys.SCOPES,
        chosen=api_keys.DEFAULT_SCOPES,
        default_days=api_keys.DEFAULT_DAYS,
        for_program=False,
    )


@router.get(CHANGE_PASSWORD_PATH)
async def change_password_page(request: Request, visitor: AnyVisitor) -> Response:
    """Where a person is led whose password was only handed out."""
    return page(request, "change_password.html", csrf_token=visitor.csrf_token)


@router.get("/projects/{project_id}/people")
async def project_people_page(request: Request, project_id: ProjectId, visit: CurrentVisit) -> Response:
    """Who can see a project and why; who may change that can give and take access here."""
    async with visit.transaction() as session:
        project = await library_projects.get_project(session, visit.principal, project_id=project_id)
        given = await grants.list_grants(session, visit.principal, project_id=project_id)
        context: dict[str, Any] = {
            "who": await explain.list_who(session, project_id=project_id),
            "groups": await list_groups(session),
            "departments": await list_departments(session),
        }
    return page(request, "project_people.html", **visit.context, project=project, grants=given, tiers=TIERS, **context)


@router.get("/share/{token}")
async def shared_page(
    request: Request, token: str, runtime: CurrentRuntime, conversation: ConversationId | None = None
) -> Response:
    """A conversation for somebody without an account, and a place to ask on."""
    ip = client_ip(request, runtime.settings)
    shared = await read_shared(runtime, token, ip=ip, branch_id=conversation)
    return page(
        request,
        "shared.html",
        **BLANKS,
        token=token,
        shared=shared,
        conversation_id=conversation,
        messages=turns(None, shared.messages, shared.sources),
        branch=turns(None, shared.branch, shared.sources, open_turns=shared.open_turns),
    )

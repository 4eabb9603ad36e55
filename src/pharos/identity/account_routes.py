"""What a signed-in person does with their own account: password, sessions, API keys."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request

from pharos.identity import api_keys
from pharos.identity.change_password import change_password
from pharos.identity.current import AnyVisitor, CurrentPerson, CurrentRuntime, CurrentVisitor, origin_of
from pharos.identity.recognise import forget_person, forget_session
from pharos.identity.request_limits import count_try
from pharos.identity.schemas import (
    ApiKeyInfo,
    ApiKeys,
    MadeApiKey,
    NewApiKey,
    OpenSession,
    OpenSessions,
    PasswordChange,
)
from pharos.identity.sessions import end_session, end_sessions, list_sessions
from pharos.infra.errors import NotAllowed
from pharos.infra.limits import LOGIN

router = APIRouter(tags=["account"])


@router.post("/auth/password", status_code=204)
async def change_own_password(
    body: PasswordChange, request: Request, visitor: AnyVisitor, runtime: CurrentRuntime
) -> None:
    """Change the own password; all other sessions end."""
    await count_try(request, runtime, LOGIN, visitor.principal)
    await change_password(
        runtime, visitor.signed_in, old=body.old_password, new=body.new_password, origin=origin_of(request)
    )


@router.get("/auth/sessions")
async def own_sessions(visitor: CurrentVisitor, runtime: CurrentRuntime) -> OpenSessions:
    """Where the person is signed in, the session used last first."""
    me = visitor.principal
    assert me.user_id is not None
    async with runtime.db.transaction(me.tenant_id) as session:
        rows = [OpenSession.model_validate(row) for row in await list_sessions(session, user_id=me.user_id)]
    current = visitor.signed_in.session_id
    return OpenSessions(sessions=[row.model_copy(update={"is_current": row.id == current}) for row in rows])


@router.delete("/auth/sessions/{session_id}", status_code=204)
async def end_own_session(session_id: UUID, visitor: CurrentVisitor, runtime: CurrentRuntime) -> None:
    """Sign a device out."""
    async with runtime.db.transaction(visitor.principal.tenant_id) as session:
        await end_session(session, visitor.principal, session_id=session_id)
    forget_session(runtime, session_id)


@router.delete("/auth/sessions", status_code=204)
async def end_other_sessions(visitor: CurrentVisitor, runtime: CurrentRuntime) -> None:
    """Sign all devices out but this one."""
    me = visitor.principal
    assert me.user_id is not None
    async with runtime.db.transaction(me.tenant_id) as session:
        await end_sessions(session, me, user_id=me.user_id, keep=visitor.signed_in.session_id)
    forget_person(runtime, me.user_id)


@router.get("/api-keys")
async def list_api_keys(principal: CurrentPerson, runtime: CurrentRuntime) -> ApiKeys:
    """The own API keys; for an administrator those of everybody."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await api_keys.list_keys(session, principal)
        return ApiKeys(api_keys=[ApiKeyInfo.model_validate(key) for key in found])


@router.post("/api-keys", status_code=201)
async def create_api_key(body: NewApiKey, principal: CurrentPerson, runtime: CurrentRuntime) -> MadeApiKey:
    """A new API key; its text is shown this once."""
    if body.for_program and principal.platform_role not in api_keys.KEY_ADMINS:
        raise NotAllowed("An API key of nobody in particular is for administrators to make.", code="not_an_admin")
    async with runtime.db.transaction(principal.tenant_id) as session:
        key, text = await api_keys.create_key(
            session,
            principal,
            name=body.name,
            scopes=body.scopes,
            user_id=None if body.for_program else principal.user_id,
            expires_in_days=body.expires_in_days,
        )
        return MadeApiKey(**ApiKeyInfo.model_validate(key).model_dump(), key=text)


@router.delete("/api-keys/{key_id}", status_code=204)
async def revoke_api_key(key_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """End an API key."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await api_keys.revoke_key(session, principal, key_id=key_id)

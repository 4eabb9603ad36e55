"""A person across tenants: where they belong, and going from one to another."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select, update

from pharos.identity.audit import record_audit
from pharos.identity.models import Membership, SignInSession, Tenant, User
from pharos.identity.principal import Principal
from pharos.identity.recognise import SignedIn, forget_person
from pharos.identity.sign_in import Holder, IssuedTokens, Origin, as_principal, normal_email, open_session
from pharos.identity.tokens import SIGN_IN_AGAIN
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, NotAllowed, NotFound, NotSignedIn
from pharos.infra.ids import UserId
from pharos.runtime import Runtime


async def find_place(runtime: Runtime, email: str, *, tenant: str | None = None) -> Principal | None:
    """Whoever may sign in with this address, in their first tenant or the one named by its slug."""
    return await _find(runtime, User.email == normal_email(email), tenant=tenant)


async def go_to_place(
    runtime: Runtime, signed_in: SignedIn, *, slug: str, is_browser: bool, origin: Origin
) -> IssuedTokens:
    """A session of the same person in another tenant, which lasts no longer than the one that asks.

    A browser's takes the place of the old one, which ends. A program's has an access token alone: what keeps it signed
    in stays the refresh token of the session that asked, and it ends with that. Raises `NotFound`, `Conflict` for the
    tenant they are in, `NotAllowed` for a session that was itself asked for so, `NotSignedIn` if it ended meanwhile.
    """
    me = signed_in.principal
    assert me.user_id is not None
    place = await _find(runtime, User.id == me.user_id, tenant=slug)
    if place is None:
        raise NotFound("You have no place in such a tenant. `GET /auth/tenants` lists yours.", code="no_such_tenant")
    if place.tenant_id == me.tenant_id:
        raise Conflict("You are in this tenant already.", code="same_tenant")
    mine = SignInSession.id == signed_in.session_id, SignInSession.revoked_at.is_(None)
    async with runtime.db.transaction(me.tenant_id) as session:
        asking = (await session.execute(select(SignInSession).where(*mine).with_for_update())).scalar_one_or_none()
        if asking is None:
            raise NotSignedIn(SIGN_IN_AGAIN)
        if asking.parent_session_id is not None:
            raise NotAllowed("Ask with the access token of your sign-in.", code="not_a_sign_in")
        if is_browser:
            await session.execute(update(SignInSession).where(*mine).values(revoked_at=func.now()))
            await record_audit(session, me, action="session.ended", subject=f"session:{asking.id}")
    if is_browser:
        forget_person(runtime, me.user_id)
    holder: Holder = "browser" if is_browser else "brief"
    return await open_session(runtime, place, door="tenant", holder=holder, origin=origin, asking=asking)


async def _find(runtime: Runtime, who: ColumnElement[bool], *, tenant: str | None) -> Principal | None:
    async with system_transaction(runtime.db) as session:
        user = (await session.execute(select(User).where(who, User.disabled_at.is_(None)))).scalar_one_or_none()
    if user is None:
        return None
    mine = select(Membership).where(Membership.user_id == user.id, Membership.disabled_at.is_(None))
    if tenant is not None:
        mine = mine.join(Tenant, Tenant.id == Membership.tenant_id).where(Tenant.slug == tenant)
    async with system_transaction(runtime.db, user_id=UserId(user.id)) as session:
        place = (await session.execute(mine.order_by(Membership.created_at).limit(1))).scalar_one_or_none()
    return None if place is None else as_principal(user, place)

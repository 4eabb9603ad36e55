"""Sign in by a link that is mailed: looking at it changes nothing, confirming uses it up."""

from __future__ import annotations

from sqlalchemy import select

from pharos.identity import mail_texts
from pharos.identity.models import Membership, User
from pharos.identity.one_time import (
    BadLink,
    find_one_time,
    issue_one_time,
    tenant_of_link,
    use_one_time,
    void_one_time,
)
from pharos.identity.places import find_place
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.identity.sign_in import Origin, as_principal
from pharos.infra.http import safe_next
from pharos.infra.mail import queue_mail
from pharos.runtime import Runtime

LINK_PATH = "/auth/magic-link"


async def request_magic_link(
    runtime: Runtime, *, email: str, next_path: str | None, tenant: str | None, origin: Origin
) -> None:
    """Mail a link to whoever has this address; nothing happens for an address nobody has."""
    person = await find_place(runtime, email, tenant=tenant)
    if person is None:
        return
    async with runtime.db.transaction(person.tenant_id) as session:
        token = await issue_one_time(
            session, tenant_id=person.tenant_id, purpose="magic_link", email=person.name,
            user_id=person.user_id, next=safe_next(next_path),
        )  # fmt: skip
        letter = mail_texts.magic_link(f"{runtime.settings.base_url}{LINK_PATH}?token={token}")
        await queue_mail(
            session, runtime.vault, tenant_id=person.tenant_id, recipient=person.name,
            subject=letter.subject, text=letter.text,
        )  # fmt: skip
        await record_security_event(
            session, person.tenant_id, event_type="magic_link_requested", severity="low", user_id=person.user_id,
            subject=f"user:{person.user_id}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip


async def look_at_magic_link(runtime: Runtime, token: str) -> tuple[str, str]:
    """The address a link signs in and where it leads then; uses nothing up. Raises `BadLink`."""
    async with runtime.db.transaction(tenant_of_link(token)) as session:
        row = await find_one_time(session, purpose="magic_link", token=token)
    if row is None:
        raise BadLink
    return row.email, str(row.detail["next"])


async def use_magic_link(runtime: Runtime, token: str, *, origin: Origin) -> tuple[Principal, str]:
    """Whose link this is and where it leads; it and its sisters work no more. Raises `BadLink`."""
    tenant_id = tenant_of_link(token)
    async with runtime.db.transaction(tenant_id) as session:
        row = await use_one_time(session, purpose="magic_link", token=token)
        # The address counts too: after a change of address an older link leads nowhere.
        holder = (
            select(User, Membership)
            .join(Membership, Membership.user_id == User.id)
            .where(User.id == row.user_id, User.email == row.email)
            .where(User.disabled_at.is_(None), Membership.disabled_at.is_(None))
        )
        found = (await session.execute(holder)).one_or_none()
        if found is None:
            raise BadLink
        await void_one_time(session, email=row.email, purposes=("magic_link",))
        await record_security_event(
            session, tenant_id, event_type="magic_link_verified", severity="low", user_id=row.user_id,
            subject=f"user:{row.user_id}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip
    return as_principal(found.User, found.Membership, proved_at=row.used_at), str(row.detail["next"])

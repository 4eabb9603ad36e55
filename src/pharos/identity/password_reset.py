"""A forgotten password: a link by mail, a new password, and every session ended."""

from __future__ import annotations

from sqlalchemy import func, select

from pharos.identity import mail_texts
from pharos.identity.api_keys import is_good, list_keys
from pharos.identity.change_password import set_password
from pharos.identity.lockout import unlock
from pharos.identity.models import Membership, User
from pharos.identity.one_time import (
    BadLink,
    find_one_time,
    issue_one_time,
    tenant_of_link,
    use_one_time,
)
from pharos.identity.passwords import check_new_password, hash_apart
from pharos.identity.places import find_place
from pharos.identity.recognise import forget_person
from pharos.identity.security import record_security_event
from pharos.identity.sign_in import Origin, as_principal
from pharos.infra.mail import queue_mail
from pharos.runtime import Runtime

RESET_PATH = "/password/reset"


async def request_password_reset(runtime: Runtime, *, email: str, origin: Origin) -> None:
    """Mail a link to whoever has this address; nothing happens for an address nobody has."""
    person = await find_place(runtime, email)
    if person is None:
        return
    async with runtime.db.transaction(person.tenant_id) as session:
        token = await issue_one_time(
            session, tenant_id=person.tenant_id, purpose="password_reset", email=person.name,
            user_id=person.user_id,
        )  # fmt: skip
        letter = mail_texts.password_reset(f"{runtime.settings.base_url}{RESET_PATH}?token={token}")
        await queue_mail(
            session, runtime.vault, tenant_id=person.tenant_id, recipient=person.name,
            subject=letter.subject, text=letter.text,
        )  # fmt: skip
        await record_security_event(
            session, person.tenant_id, event_type="password_reset_requested", severity="low", user_id=person.user_id,
            subject=f"user:{person.user_id}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip


async def look_at_password_reset(runtime: Runtime, token: str) -> str:
    """The address a link is for; uses nothing up. Raises `BadLink`."""
    async with runtime.db.transaction(tenant_of_link(token)) as session:
        row = await find_one_time(session, purpose="password_reset", token=token)
    if row is None:
        raise BadLink
    return row.email


async def reset_password(runtime: Runtime, *, token: str, password: str, origin: Origin) -> None:
    """Set a new password, end every session of the person, and tell them.

    Raises `BadLink`, or `Invalid` for a weak password, which leaves the link good.
    """
    check_new_password(password)
    await look_at_password_reset(runtime, token)  # before the work of hashing: strangers cannot make us do it
    hashed = await hash_apart(password)
    tenant_id = tenant_of_link(token)
    async with runtime.db.transaction(tenant_id) as session:
        row = await use_one_time(session, purpose="password_reset", token=token)
        holder = (
            select(User, Membership)
            .join(Membership, Membership.user_id == User.id)
            .where(User.id == row.user_id, User.email == row.email, User.disabled_at.is_(None))
            .where(func.coalesce(User.sessions_valid_from < row.created_at, True))  # by two links at once: one counts
            .with_for_update(of=User)
        )
        found = (await session.execute(holder)).one_or_none()
        if found is None:
            raise BadLink
        person = as_principal(found.User, found.Membership)
        await set_password(session, person, user_id=found.User.id, hashed=hashed, origin=origin)
        await unlock(session, found.User.id)
        keys = [key.name for key in await list_keys(session, person) if key.user_id == person.user_id and is_good(key)]
        letter = mail_texts.password_changed(runtime.settings.base_url, key_names=keys)
        await queue_mail(
            session, runtime.vault, tenant_id=tenant_id, recipient=row.email, subject=letter.subject, text=letter.text
        )
    forget_person(runtime, found.User.id)

"""Another e-mail address for an account: it counts once a link mailed to it was confirmed (ID-14)."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import exists, select

from pharos.identity import mail_texts
from pharos.identity.audit import record_audit
from pharos.identity.models import Membership, User
from pharos.identity.one_time import (
    BadLink,
    find_one_time,
    issue_one_time,
    tenant_of_link,
    use_one_time,
)
from pharos.identity.recognise import SignedIn, find_by_session, forget_person
from pharos.identity.same_time import same_time
from pharos.identity.security import record_security_event
from pharos.identity.sessions import end_sessions
from pharos.identity.setup import check_email
from pharos.identity.sign_in import Origin, as_principal, normal_email, prove_by_password
from pharos.infra.errors import Invalid, NotAllowed, NotSignedIn
from pharos.infra.limits import EMAIL_CHANGE_EMAIL, EMAIL_CHANGE_IP, EMAIL_CHANGE_USER, ip_subject
from pharos.infra.mail import queue_mail
from pharos.runtime import Runtime

CONFIRM_PATH = "/email/confirm"


async def request_email_change(
    runtime: Runtime, signed_in: SignedIn, *, new_email: str, password: str, origin: Origin
) -> None:
    """Mail a link to the new address; until it is confirmed nothing changes.

    An address that somebody has gets no mail, and the answer does not tell. Raises `NotAllowed` for a wrong password,
    `Invalid` for what is no new address, `LimitReached`.
    """
    me, new_email = signed_in.principal, normal_email(new_email)
    check_email(new_email)
    if new_email == me.name:
        raise Invalid("This is your address already.", code="same_email")
    try:
        await prove_by_password(runtime, login=me.name, password=password, origin=origin)
    except NotSignedIn as error:
        raise NotAllowed("The password is wrong.", code="wrong_password") from error
    await runtime.limits.hit(EMAIL_CHANGE_USER, f"user:{me.user_id}")
    await runtime.limits.hit(EMAIL_CHANGE_IP, ip_subject(origin.ip))
    await runtime.limits.hit(EMAIL_CHANGE_EMAIL, f"email:{new_email}")
    async with same_time(), runtime.db.transaction(me.tenant_id) as session:
        if (await session.execute(select(exists().where(User.email == new_email)))).scalar_one():
            return
        token = await issue_one_time(
            session, tenant_id=me.tenant_id, purpose="email_change", email=new_email,
            user_id=me.user_id, old_email=me.name, session_id=str(signed_in.session_id),
        )  # fmt: skip
        letter = mail_texts.email_change(f"{runtime.settings.base_url}{CONFIRM_PATH}?token={token}")
        await queue_mail(
            session, runtime.vault, tenant_id=me.tenant_id, recipient=new_email,
            subject=letter.subject, text=letter.text,
        )  # fmt: skip
        await record_audit(session, me, action="email_change.requested", subject=f"user:{me.user_id}")


async def look_at_email_change(runtime: Runtime, token: str) -> str:
    """The new address a link confirms; uses nothing up. Raises `BadLink`."""
    async with runtime.db.transaction(tenant_of_link(token)) as session:
        row = await find_one_time(session, purpose="email_change", token=token)
    if row is None:
        raise BadLink
    return row.email


async def confirm_email_change(runtime: Runtime, *, token: str, origin: Origin) -> str:
    """Give the account its new address, which is returned; other sessions end, and the old address is told.

    Raises `BadLink`, also when somebody else has the address by now or the session that asked has ended.
    """
    tenant_id = tenant_of_link(token)
    async with runtime.db.transaction(tenant_id) as session:
        row = await use_one_time(session, purpose="email_change", token=token)
        old_email, asking = str(row.detail["old_email"]), UUID(str(row.detail["session_id"]))
        holder = (
            select(User, Membership)
            .join(Membership, Membership.user_id == User.id)
            .where(User.id == row.user_id, User.email == old_email, User.disabled_at.is_(None))
            .with_for_update(of=User)
        )
        found = (await session.execute(holder)).one_or_none()
        is_taken = (await session.execute(select(exists().where(User.email == row.email)))).scalar_one()
        is_open = await find_by_session(session, tenant_id, asking) is not None  # asked while the person is locked
        if found is None or is_taken or not is_open:
            raise BadLink
        found.User.email = row.email
        await session.flush()
        person = as_principal(found.User, found.Membership)
        letter = mail_texts.email_changed(row.email, runtime.settings.base_url)
        await queue_mail(
            session, runtime.vault, tenant_id=tenant_id, recipient=old_email, subject=letter.subject, text=letter.text
        )
        await record_security_event(
            session, tenant_id, event_type="email_changed", severity="medium", user_id=row.user_id,
            subject=f"user:{row.user_id}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip
        await record_audit(session, person, action="email.changed", subject=f"user:{row.user_id}")
        await end_sessions(session, person, user_id=found.User.id, keep=asking)
    forget_person(runtime, found.User.id)
    return row.email

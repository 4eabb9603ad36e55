"""First setup: a one-time link from the machine makes the first account, once."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import exists, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import BootstrapState, Membership, User
from pharos.identity.passwords import check_new_password, hash_apart
from pharos.identity.principal import Principal, operator
from pharos.identity.sign_in import as_principal, normal_email
from pharos.identity.tenants import ensure_default_tenant, rename_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, Invalid, NotAllowed
from pharos.infra.ids import TenantId, new_id
from pharos.runtime import Runtime

SETUP_PATH = "/onboarding/first-login"
USERNAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,63}")
SETUP_LOCK = 0x5048_5345_5455  # an advisory lock of our own: two browsers cannot both win

ALREADY = Conflict(
    "This installation is set up already. Sign in, or ask an administrator for an account.", code="already_initialized"
)
HAS_OWNER = Conflict(
    "There is a first administrator already, and nothing is changed. For a further one, or a new password: "
    "`pharos user create-admin --email EMAIL`.",
    code="already_initialized",
)


class EmailTaken(Conflict):
    """Somebody in this installation has the address, perhaps in another tenant."""

    code = "email_taken"


@dataclass(frozen=True)
class NewPerson:
    """A person to be made; without a password they cannot sign in yet.

    `must_change_password`: the password only opens the change to one of their own.
    """

    name: str
    email: str
    password: str | None = None
    username: str | None = None
    must_change_password: bool = False


async def is_initialised(runtime: Runtime) -> bool:
    """Whether the first account exists, as the one row of `bootstrap_state` says (ID-01)."""
    async with system_transaction(runtime.db) as session:
        return bool((await session.execute(select(BootstrapState.is_initialized))).scalar_one_or_none())


async def issue_setup_link(runtime: Runtime) -> str:
    """The address of the setup page with a new one-time token; an older link is void. Raises `Conflict`."""
    tenant_id = await ensure_default_tenant(runtime)
    token = secrets.token_urlsafe(32)
    async with runtime.db.transaction(tenant_id) as session:
        if await _is_closed(session):
            raise ALREADY
        await session.execute(update(BootstrapState).values(setup_token_hash=_hash(token)))
    return f"{runtime.settings.base_url}{SETUP_PATH}?token={token}"


async def is_setup_token(runtime: Runtime, token: str) -> bool:
    """Whether a setup token is the one that was issued last and is still good."""
    async with system_transaction(runtime.db) as session:
        state = (await session.execute(select(BootstrapState))).scalar_one_or_none()
    return state is not None and not state.is_initialized and _opens(state, token)


async def initialise(
    runtime: Runtime, *, token: str, owner: NewPerson, ceo: NewPerson | None = None, organisation: str = ""
) -> Principal:
    """Make the superadmin and, if given, the head of the organisation; uses the token up (ID-02, ID-03).

    `organisation`: what it is called; left out it keeps its name. Raises `Conflict` once an owner exists, even if the
    flag row was edited by hand, `NotAllowed` for a wrong token, `Invalid` for bad names, addresses and passwords.
    """
    people = [_checked(owner)] + ([_checked(ceo)] if ceo else [])
    if owner.password is None:
        raise Invalid("The first account needs a password.", code="weak_password")
    if len({person.email for person in people}) < len(people):
        raise Invalid("The two accounts need different e-mail addresses.", code="same_email")
    tenant_id = await ensure_default_tenant(runtime)
    async with runtime.db.transaction(tenant_id) as session:
        await _open_state(session, token)  # before the work of hashing: strangers cannot make us do it
    hashes = [await hash_apart(person.password) if person.password else None for person in people]
    async with runtime.db.transaction(tenant_id) as session:
        state = await _open_state(session, token)
        state.is_initialized, state.setup_token_hash = True, None
        principal = await add_person(session, tenant_id, people[0], hashes[0], platform_role="superadmin")
        if ceo is not None:
            await add_person(session, tenant_id, people[1], hashes[1], org_position="ceo")
        if organisation.strip():
            await rename_tenant(session, principal, name=organisation)
        await record_audit(session, principal, action="installation.initialised", subject=f"tenant:{tenant_id}")
    return principal


async def add_person(
    session: AsyncSession, tenant_id: TenantId, person: NewPerson, password_hash: str | None, **place: str
) -> Principal:
    """A user and their membership. Raises `Conflict` when the address or the user name is taken."""
    if (await session.execute(select(exists().where(User.email == person.email)))).scalar_one():
        raise EmailTaken(f"There is an account for {person.email} already.")
    if person.username is not None:
        check_username(person.username)
        if await is_taken(session, person.username):
            raise Conflict(f"Somebody is called {person.username} already. Choose another.", code="username_taken")
    user = User(
        id=new_id(),
        email=person.email,
        username=person.username,
        name=person.name,
        password_hash=password_hash,
        must_change_password=person.must_change_password,
    )
    session.add(user)
    await session.flush()
    membership = Membership(tenant_id=tenant_id, user_id=user.id, **place)
    session.add(membership)
    await session.flush()
    await session.refresh(membership)
    return as_principal(user, membership)


async def add_admin(
    session: AsyncSession, tenant_id: TenantId, person: NewPerson, password_hash: str, *, only_first: bool = False
) -> Principal:
    """An administrator made at the machine, the first of a tenant its superadmin; the setup page closes (C-23).

    Takes the lock of the setup, so that of all ways to the first account one wins. Raises `Conflict` as `add_person`,
    and with `only_first` where a superadmin is.
    """
    await session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": SETUP_LOCK})
    is_owned = await has_owner(session)
    if is_owned and only_first:
        raise HAS_OWNER
    role = "admin" if is_owned else "superadmin"
    made = await add_person(session, tenant_id, person, password_hash, platform_role=role)
    await close_setup(session)
    await record_audit(session, operator(tenant_id), action="user.created", subject=f"user:{made.user_id}")
    return made


async def is_taken(session: AsyncSession, username: str) -> bool:
    """Whether somebody in this installation has the user name."""
    return bool((await session.execute(select(exists().where(User.username == username)))).scalar_one())


def check_username(username: str) -> None:
    """Raise `Invalid` for what could be mistaken for an e-mail address or be written in two ways."""
    if not USERNAME.fullmatch(username):
        raise Invalid(
            "A user name has 2 to 64 small letters, digits, dots, dashes or underscores.", code="bad_username"
        )


def check_email(email: str) -> None:
    """Raise `Invalid` for what no mail can be sent to."""
    local, _, domain = email.partition("@")
    is_plain = email.isprintable() and not set(email) & set(' ,;:<>()[]"\\')
    if not local or "." not in domain.strip(".") or "@" in domain or not is_plain or len(email) > 254:
        raise Invalid("This is not an e-mail address. Check it.", code="bad_email")


async def close_setup(session: AsyncSession) -> None:
    """An owner was made by another way; the setup page offers nothing from now on."""
    await session.execute(update(BootstrapState).values(is_initialized=True, setup_token_hash=None))


async def has_owner(session: AsyncSession) -> bool:
    """Whether the session's tenant has its superadmin."""
    owner = exists().where(Membership.platform_role == "superadmin")
    return bool((await session.execute(select(owner))).scalar_one())


async def _is_closed(session: AsyncSession) -> bool:
    """Whether the setup is over, asked under the lock that the transaction now holds."""
    await session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": SETUP_LOCK})
    await session.execute(insert(BootstrapState).values(singleton=True).on_conflict_do_nothing())
    flag = (await session.execute(select(BootstrapState.is_initialized))).scalar_one()
    return flag or await has_owner(session)


async def _open_state(session: AsyncSession, token: str) -> BootstrapState:
    """The state that the token opens, locked. Raises `Conflict` once the setup is over, `NotAllowed`."""
    if await _is_closed(session):
        raise ALREADY
    state = (await session.execute(select(BootstrapState).with_for_update())).scalar_one()
    if not _opens(state, token):
        raise NotAllowed(
            "This setup link is not valid. Print a new one with `pharos setup-link`.", code="bad_setup_token"
        )
    return state


def _opens(state: BootstrapState, token: str) -> bool:
    return hmac.compare_digest(state.setup_token_hash or "", _hash(token))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _checked(person: NewPerson) -> NewPerson:
    name, email = " ".join(person.name.split()), normal_email(person.email)
    check_email(email)
    if not 1 <= len(name) <= 200:
        raise Invalid("A name has 1 to 200 characters.", code="bad_name")
    if person.password is not None:
        check_new_password(person.password)
    return NewPerson(name=name, email=email, password=person.password)

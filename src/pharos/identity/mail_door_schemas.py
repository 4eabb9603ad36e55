"""What the doors that open by mail take and give over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from pharos.identity.principal import PlatformRole
from pharos.identity.schemas import Body, Email, Name, Password, Session, Tokens

LinkToken = Annotated[str, Field(min_length=1, max_length=200)]


class Accepted(Body):
    """The same for every address: what follows, if anything, comes by mail."""

    status: Literal["accepted"] = "accepted"
    message: str = "If this address can be used here, a mail is on its way to it."


class MagicLinkRequest(Body):
    email: Email
    next: Annotated[str | None, Field(max_length=2000, description="A path of this server to go to then.")] = None
    tenant: Annotated[str | None, Field(max_length=100, description="Slug; without it the person's first tenant.")] = (
        None
    )


class MagicLinkSeen(Body):
    """What the link would do; send it with POST to do it."""

    email: str
    next: str


class LinkUse(Body):
    token: LinkToken


class MagicLinkTokens(Tokens):
    next: str


class CurrentSession(Body):
    """`user` is null where nobody is signed in."""

    user: Session | None


class PasswordForgotten(Body):
    email: Email


class PasswordReset(Body):
    token: LinkToken
    password: Password


class EmailChange(Body):
    new_email: Email
    password: Password


class EmailChanged(Body):
    email: str


class NewInvitation(Body):
    email: Email
    name: Annotated[str, Field(max_length=200)] = ""
    platform_role: PlatformRole = "none"
    department_id: UUID | None = None
    group_ids: list[UUID] = Field(default_factory=list, max_length=200)


class Invitation(Body):
    id: UUID
    email: str
    name: str
    platform_role: str
    invited_by: str
    created_at: datetime
    expires_at: datetime


class Invitations(Body):
    invitations: list[Invitation]


class InvitationId(Body):
    id: UUID


class InvitationAcceptance(Body):
    token: LinkToken
    name: Annotated[Name | None, Field(description="For a new account.")] = None
    password: Annotated[Password | None, Field(description="For a new account.")] = None


class Joined(Body):
    """A new account is signed in; one that was there signs in as always, and has no tokens here."""

    is_new: bool
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: Annotated[int | None, Field(description="Seconds.")] = None

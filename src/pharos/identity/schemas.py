"""What sign-in and setup take and give over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.identity.api_keys import DEFAULT_DAYS, DEFAULT_SCOPES, Scope

Name = Annotated[str, Field(min_length=1, max_length=200)]
Email = Annotated[str, Field(min_length=3, max_length=254)]
Password = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """camelCase on the wire; snake_case is taken as well."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class BootstrapStatus(Body):
    is_initialized: bool


class Head(Body):
    """The head of the organisation; without a password they cannot sign in yet."""

    name: Name
    email: Email
    password: Password | None = None


class BootstrapInit(Body):
    token: Annotated[str, Field(min_length=1, max_length=200)]
    name: Name
    email: Email
    password: Password
    ceo: Head | None = None
    organisation: Annotated[str, Field(max_length=200, description="Its name; it can be changed later.")] = ""


class Login(Body):
    email: Email
    password: Password
    tenant: Annotated[str | None, Field(max_length=100, description="Slug; without it the person's first tenant.")] = (
        None
    )


class Refresh(Body):
    refresh_token: Annotated[str, Field(min_length=1, max_length=200)]


class Tokens(Body):
    """`refresh_token` is left out for a browser: it has the session as a cookie that no script can read."""

    access_token: str
    refresh_token: str | None = None
    expires_in: Annotated[int, Field(description="Seconds.")]


class Session(Body):
    user_id: UUID
    tenant_id: UUID
    name: str
    email: str
    platform_role: str
    org_position: str


class FormToken(BaseModel):
    """The answer of an OAuth2 password form; its names are the standard's (ID-05)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the standard's word


class PasswordChange(Body):
    old_password: Password
    new_password: Password


class OpenSession(Body):
    """Where somebody is signed in. `agent` is what their browser or program calls itself, `ip` anonymised."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)

    id: UUID
    door: str
    agent: str
    ip: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    is_current: bool = False


class OpenSessions(Body):
    sessions: list[OpenSession]


class NewApiKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: list[Scope] = list(DEFAULT_SCOPES)
    expires_in_days: Annotated[int | None, Field(ge=1, le=3650, description="Null: it does not end by itself.")] = (
        DEFAULT_DAYS
    )
    for_program: Annotated[
        bool, Field(description="Acts as nobody in particular instead of as you; for administrators.")
    ] = False


class ApiKeyInfo(Body):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)

    id: UUID
    name: str
    prefix: str
    scopes: list[str]
    user_id: UUID | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class MadeApiKey(ApiKeyInfo):
    key: Annotated[str, Field(description="Shown this once.")]


class ApiKeys(Body):
    api_keys: list[ApiKeyInfo]

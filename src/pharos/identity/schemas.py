"""What sign-in and setup take and give over HTTP."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

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

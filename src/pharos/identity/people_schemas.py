"""People, departments and groups on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.identity.principal import OrgPosition, PlatformRole
from pharos.identity.schemas import Body

Name = Annotated[str, Field(min_length=1, max_length=200)]


class View(Body):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class Person(View):
    id: UUID
    email: str
    name: str
    platform_role: PlatformRole
    org_position: OrgPosition
    department_id: UUID | None
    department: str | None
    is_disabled: Annotated[bool, Field(description="Cannot sign in to this tenant.")]
    created_at: datetime


class Account(View):
    """Sessions and keys are those of this tenant; `lockedUntil` is null for whoever is not locked out."""

    username: str | None
    has_password: bool
    must_change_password: bool
    failed_sign_ins: int
    locked_until: datetime | None
    open_sessions: int
    last_seen_at: datetime | None
    api_keys: int


class People(View):
    """By e-mail address; `next` is the `after` of the page that follows, null on the last one."""

    users: list[Person]
    next: str | None


class PlaceChange(Body):
    """What is left out stays as it is; a `departmentId` of null takes the department away."""

    platform_role: PlatformRole = "none"
    org_position: OrgPosition = "member"
    department_id: UUID | None = None


class Department(View):
    id: UUID
    name: str
    people: int


class Departments(View):
    departments: list[Department]


class Named(Body):
    name: Name


class Group(View):
    """`departmentId` is null for a group of the whole tenant."""

    id: UUID
    name: str
    department_id: UUID | None
    department: str | None
    members: int


class Groups(View):
    groups: list[Group]


class NewGroup(Named):
    department_id: UUID | None = None


class GroupMember(View):
    user_id: UUID
    email: str
    name: str


class GroupMembers(View):
    members: list[GroupMember]


class Id(View):
    id: UUID


class TenantChoice(Body):
    slug: Annotated[str, Field(min_length=1, max_length=100)]


class Tenant(View):
    id: UUID
    slug: str
    name: str


class Tenants(View):
    """Where the person may sign in, by name."""

    tenants: list[Tenant]

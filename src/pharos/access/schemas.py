"""Grants, explanations and share requests on the wire: camelCase out, both spellings in."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from pharos.access.projects import Source, Tier
from pharos.access.shares import DEFAULT_DAYS, MAX_DAYS

GranteeKind = Literal["user", "group", "department"]


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class Grant(Body):
    """`grantee` is an e-mail address or a name; an expired grant gives nothing."""

    id: UUID
    grantee_kind: GranteeKind
    grantee_id: UUID
    grantee: str
    tier: Tier
    granted_by: str
    expires_at: AwareDatetime | None
    is_expired: bool
    created_at: AwareDatetime


class Grants(Body):
    grants: list[Grant]


class NewGrant(Body):
    """To whom: an id, or for a person the e-mail address."""

    grantee_kind: GranteeKind
    grantee_id: UUID | None = None
    email: Annotated[str | None, Field(max_length=254)] = None
    tier: Tier
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_grantee(self) -> NewGrant:
        is_by_email = self.email is not None and self.grantee_kind == "user"
        if (self.grantee_id is not None) == is_by_email:
            msg = "name the grantee by granteeId, or a user by email"
            raise ValueError(msg)
        return self


class Rung(Body):
    """What one rung gives (null: nothing), why, and the audit entry of what gave it, if one is known.

    `decides`: it is the first that gives anything.
    """

    source: Source
    tier: Tier | None
    decides: bool
    why: str
    audit_id: UUID | None


class Explanation(Body):
    """`tier` is null when no rung gives anything; `rungs` stand in the order in which they are tried."""

    user_id: UUID
    email: str
    is_disabled: bool
    project_id: UUID
    project: str
    tier: Tier | None
    source: Source | None
    rungs: list[Rung]


class PersonAccess(Body):
    user_id: UUID
    email: str
    name: str
    tier: Tier
    source: Source


class Who(Body):
    """Who can see a project, the highest tier first."""

    users: list[PersonAccess]


class ProjectAccess(Body):
    project_id: UUID
    name: str
    is_private: bool
    tier: Tier
    source: Source


class What(Body):
    """What a person can see, by name."""

    projects: list[ProjectAccess]


class ShareLink(Body):
    """`isOpen`: neither past its end nor revoked. `uses` counts how often it was opened."""

    id: UUID
    expires_at: AwareDatetime
    revoked_at: AwareDatetime | None
    uses: int
    is_open: bool


class ShareRequest(Body):
    id: UUID
    project_id: UUID
    project: str
    conversation_id: UUID
    requested_by: str
    message: str
    state: Literal["pending", "approved", "rejected"]
    decided_by: str | None
    decided_at: AwareDatetime | None
    created_at: AwareDatetime
    link: ShareLink | None


class ShareRequests(Body):
    """The newest first."""

    requests: list[ShareRequest]


class Approval(Body):
    days: Annotated[int, Field(ge=1, le=MAX_DAYS, description="How long the link lasts.")] = DEFAULT_DAYS


class ApprovedShare(Body):
    """`url` is shown this once; only a hash of it is kept."""

    url: str
    expires_at: AwareDatetime

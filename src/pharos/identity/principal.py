"""Who is asking, as every other slice sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from pharos.infra.ids import ProjectId, TenantId, UserId

PlatformRole = Literal["none", "admin", "engineer", "superadmin"]
PLATFORM_ROLES: tuple[PlatformRole, ...] = get_args(PlatformRole)
Kind = Literal["person", "operator", "program", "guest", "product"]
OrgPosition = Literal["member", "manager", "ceo"]
ORG_POSITIONS: tuple[OrgPosition, ...] = get_args(OrgPosition)


@dataclass(frozen=True)
class Principal:
    """Who acts in a tenant, and what they are there.

    `kind`: a person (by whatever door), the operator at the machine, a program with an API key, a guest with a
    share link, or the product itself, which keeps the handbook. A program may act for a person and then has their
    `user_id`; it never administrates.
    `name` is what the audit log says: an e-mail address, "operator", "key:NAME" or "guest".
    `scopes` narrow a program; None is everything its kind may do. `guest_project_id` is all a guest can reach,
    `guest_share_id` the link they came by. `proved_at`, by the clock of the database, is known of
    whoever has just proved who they are: a session that it opens ends with what was changed since.
    """

    tenant_id: TenantId
    user_id: UserId | None
    name: str
    kind: Kind = "person"
    platform_role: PlatformRole = "none"
    org_position: OrgPosition = "member"
    department_id: UUID | None = None
    scopes: frozenset[str] | None = None
    guest_project_id: ProjectId | None = None
    guest_share_id: UUID | None = None
    proved_at: datetime | None = field(default=None, compare=False, repr=False)

    @property
    def is_operator(self) -> bool:
        return self.kind == "operator"

    @property
    def administrates(self) -> bool:
        """Manages people, departments, groups, projects and share requests; an engineer does not (F-02)."""
        return self.kind in {"operator", "product"} or (
            self.kind == "person" and self.platform_role in {"admin", "superadmin"}
        )

    @property
    def sees_everything(self) -> bool:
        """Platform roles have full access to every project of their tenant (AC-01)."""
        return self.kind in {"operator", "product"} or (self.kind == "person" and self.platform_role != "none")


def operator(tenant_id: TenantId) -> Principal:
    """Whoever has a shell on the machine; recorded as "operator"."""
    return Principal(tenant_id=tenant_id, user_id=None, name="operator", kind="operator")


def product(tenant_id: TenantId) -> Principal:
    """Pharos itself, in what nobody asked it for: only it may change the handbook."""
    return Principal(tenant_id=tenant_id, user_id=None, name="pharos", kind="product")

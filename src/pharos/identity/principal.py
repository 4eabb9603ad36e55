"""Who is asking, as every other slice sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pharos.infra.ids import TenantId, UserId

PlatformRole = Literal["none", "admin", "engineer", "superadmin"]
OrgPosition = Literal["member", "manager", "ceo"]


@dataclass(frozen=True)
class Principal:
    """A person in a tenant, or (with no `user_id`) the operator at the machine, who may do everything there.

    `name` is what the audit log says: an e-mail address, or "operator".
    """

    tenant_id: TenantId
    user_id: UserId | None
    name: str
    platform_role: PlatformRole = "none"
    org_position: OrgPosition = "member"

    @property
    def is_operator(self) -> bool:
        return self.user_id is None

    @property
    def sees_everything(self) -> bool:
        """Platform roles have full access to every project of their tenant (AC-01)."""
        return self.is_operator or self.platform_role != "none"


def operator(tenant_id: TenantId) -> Principal:
    """Whoever has a shell on the machine; recorded as "operator"."""
    return Principal(tenant_id=tenant_id, user_id=None, name="operator")

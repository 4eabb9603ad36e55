"""Who manages which providers of models (C-35): a tenant's administrators its own, engineers the installation's."""

from __future__ import annotations

from pharos.identity.principal import Principal
from pharos.runtime import Runtime

ENGINEER_ROLES = {"engineer", "superadmin"}


async def managed_scopes(runtime: Runtime, principal: Principal) -> set[bool]:
    """Which providers somebody manages: {False} a tenant's own, {True} the shared ones, or both, or none.

    The shared ones lie in the default tenant and are managed from there alone.
    """
    is_default = principal.tenant_id == await runtime.models.find_default_tenant()
    is_engineer = principal.kind == "person" and principal.platform_role in ENGINEER_ROLES
    scopes = {False} if principal.administrates else set()
    return scopes | ({True} if is_default and (is_engineer or principal.is_operator) else set())


async def find_models_page(runtime: Runtime, principal: Principal, *, is_shared: bool | None = None) -> str | None:
    """The page on which somebody can mend what ails the models; None for who can mend nothing there.

    `is_shared` says whose provider fails, where one does: an organisation's own is not on the installation's page.
    """
    scopes = await managed_scopes(runtime, principal)
    if True in scopes and is_shared is not False:
        return "/engineer/providers"
    return "/admin/models" if False in scopes else None

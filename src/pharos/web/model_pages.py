"""The pages about models: the installation's for engineers, an organisation's for administrators, and what helped."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pharos.chat.feedback import list_rated_down
from pharos.identity.model_managers import find_models_page, managed_scopes
from pharos.infra.ids import ProjectId
from pharos.library.project_settings import read_project_settings
from pharos.library.projects import get_project
from pharos.ops.provider_changes import read_model_settings, require_manager
from pharos.ops.provider_report import (
    has_model,
    list_offers,
    managed_providers,
    read_installation_spend,
    read_tenant_spend,
    uncounted_models,
)
from pharos.providers.presets import PRESETS
from pharos.web.admin_pages import AdminVisit, admin_page
from pharos.web.html import page
from pharos.web.visit import CurrentVisit, Visit

router = APIRouter(include_in_schema=False)

PAGE_ROWS = 50


async def engineers_visit(visit: CurrentVisit) -> Visit:
    """A visit of somebody who manages the installation's providers. Raises `NotAllowed` for anybody else."""
    await require_manager(visit.runtime, visit.principal, is_shared=True)
    return visit


EngineerVisit = Annotated[Visit, Depends(engineers_visit)]


@router.get("/engineer/providers")
async def installation_providers_page(request: Request, visit: EngineerVisit) -> Response:
    """The providers that every organisation may use unless it says otherwise."""
    managed = [one for one in await managed_providers(visit.runtime, visit.principal) if one.provider.is_shared]
    return page(
        request,
        "engineer_providers.html",
        **visit.context,
        **_choices(),
        managed=managed,
        given=[one for one in await list_offers(visit.runtime, visit.principal) if one.id is None],
        spend=await read_installation_spend(visit.runtime, visit.principal),
        shared=True,
        allows_private=visit.runtime.settings.allow_private_providers,
    )


@router.get("/admin/models")
async def models_page(request: Request, visit: AdminVisit) -> Response:
    """An organisation's own providers, those of the installation, what may be used and what it cost."""
    runtime, me = visit.runtime, visit.principal
    offers = await list_offers(runtime, me)
    spend, lines = await read_tenant_spend(runtime, me)
    return await admin_page(
        request,
        visit,
        "models",
        **_choices(),
        managed=[one for one in await managed_providers(runtime, me) if not one.provider.is_shared],
        answering=next((one for one in offers if one.is_chosen and one.is_usable), None),
        installations=[one for one in offers if one.is_shared],
        rules=await read_model_settings(runtime, me),
        uncounted=uncounted_models(offers),
        spend=spend,
        lines=lines,
        shared=False,
        allows_private=runtime.settings.allow_private_providers,
        manages_installation=True in await managed_scopes(runtime, me),
    )


@router.get("/admin/feedback")
async def feedback_page(request: Request, visit: AdminVisit, before: UUID | None = None) -> Response:
    """Answers that did not help, with their questions and what was said about them."""
    async with visit.transaction() as session:
        rated = await list_rated_down(session, visit.principal, before=before, limit=PAGE_ROWS)
    following = rated[-1].id if len(rated) == PAGE_ROWS else None
    return await admin_page(request, visit, "feedback", rated=rated, following=following)


@router.get("/projects/{project_id}/instructions")
async def instructions_page(request: Request, project_id: ProjectId, visit: CurrentVisit) -> Response:
    """What a project asks of every answer."""
    async with visit.transaction() as session:
        project = await get_project(session, visit.principal, project_id=project_id)
        kept = await read_project_settings(session, visit.principal, project_id=project_id)
    offers = await list_offers(visit.runtime, visit.principal)
    names = [f"{offer.name}/{model}" for offer in offers if offer.is_usable for model in offer.models]
    if kept.model is not None and kept.model not in names:
        names.insert(0, kept.model)
    return page(request, "project_instructions.html", **visit.context, project=project, kept=kept, models=names)


async def models_lead(visit: Visit) -> str | None:
    """Where whoever manages models makes one answer, while none does (C-31); None for everybody else."""
    lead = await find_models_page(visit.runtime, visit.principal)
    return None if lead is None or await has_model(visit.runtime, visit.principal) else lead


def _choices() -> dict[str, Any]:
    presets = list(PRESETS.values())
    return {"presets": presets, "preset_facts": {preset.name: asdict(preset) for preset in presets}}

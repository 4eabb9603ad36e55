"""What a project asks of every answer: instructions, the model that writes it, and facts it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project
from pharos.access.projects import require
from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra.errors import Invalid
from pharos.infra.ids import ProjectId
from pharos.library.models import ProjectMemory

MAX_INSTRUCTIONS_CHARACTERS = 4000
MAX_MODEL_CHARACTERS = 300
MAX_MEMORIES = 50
MAX_MEMORY_CHARACTERS = 500


@dataclass(frozen=True)
class ProjectSettings:
    """`model` as a question would name it, `provider/model` or a bare model; None: the organisation's default."""

    instructions: str
    model: str | None
    memories: tuple[str, ...]


async def read_project_settings(
    session: AsyncSession, principal: Principal, *, project_id: ProjectId
) -> ProjectSettings:
    """The settings, for who manages the project. Raises `NotFound`, `NotAllowed`."""
    project = await require(session, principal, project_id, "full")
    mine = select(ProjectMemory.body).where(ProjectMemory.project_id == project_id)
    memories = (await session.execute(mine.order_by(ProjectMemory.id))).scalars().all()
    return ProjectSettings(project.instructions, project.model, tuple(memories))


async def change_project_settings(
    session: AsyncSession,
    principal: Principal,
    *,
    project_id: ProjectId,
    instructions: str | None = None,
    model: str | None = None,
    memories: Sequence[str] | None = None,
) -> ProjectSettings:
    """Change what is not None; an empty model is the organisation's default. Raises as reading does, and `Invalid`.

    Whether anybody offers the model is not asked: providers come and go, and the answer says so when nobody does.
    """
    await require(session, principal, project_id, "full")
    kept = _checked(memories)
    if instructions is not None and len(instructions) > MAX_INSTRUCTIONS_CHARACTERS:
        raise Invalid(f"Instructions have at most {MAX_INSTRUCTIONS_CHARACTERS} characters.", code="too_long")
    if model is not None and (len(model) > MAX_MODEL_CHARACTERS or len(model.split()) > 1):
        raise Invalid("A model is named as PROVIDER/MODEL or MODEL, without spaces.", code="bad_model")
    changes = {"instructions": instructions} if instructions is not None else {}
    changed = changes | ({"model": model.strip() or None} if model is not None else {})
    if changed:
        await session.execute(update(Project).where(Project.id == project_id).values(**changed))
    if kept is not None:
        await session.execute(delete(ProjectMemory).where(ProjectMemory.project_id == project_id))
        rows = [ProjectMemory(tenant_id=principal.tenant_id, project_id=project_id, body=each) for each in kept]
        session.add_all(rows)
        await session.flush()
    fields = sorted([*changed, *(["memories"] if kept is not None else [])])
    await record_audit(session, principal, action="project.changed", subject=f"project:{project_id}", fields=fields)
    return await read_project_settings(session, principal, project_id=project_id)


def _checked(memories: Sequence[str] | None) -> list[str] | None:
    if memories is None:
        return None
    kept = [" ".join(each.split()) for each in memories if each.strip()]
    if len(kept) > MAX_MEMORIES or any(len(each) > MAX_MEMORY_CHARACTERS for each in kept):
        raise Invalid(
            f"A project keeps at most {MAX_MEMORIES} facts of {MAX_MEMORY_CHARACTERS} characters each.",
            code="too_many_memories",
        )
    return kept

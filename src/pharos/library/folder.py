"""Bring a folder into a project: new files are added, changed ones replaced, unchanged ones skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pharos.access.projects import find_project_by_name
from pharos.identity.principal import Principal
from pharos.infra.blobs import read_file
from pharos.infra.errors import Invalid, PharosError
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.delete import delete_document
from pharos.library.extract.sniff import safe_name
from pharos.library.projects import create_project
from pharos.library.upload import DuplicateDocument, find_by_name, record, store
from pharos.runtime import Runtime

Outcome = Literal["added", "replaced", "unchanged", "refused"]


@dataclass(frozen=True)
class FileOutcome:
    """What became of one file; `reason` says why it was refused."""

    name: str
    outcome: Outcome
    document_id: DocumentId | None = None
    reason: str | None = None


async def find_or_make_project(runtime: Runtime, principal: Principal, *, name: str) -> ProjectId:
    """The project of this name, made if it is missing."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        project = await find_project_by_name(session, principal, name=name)
        if project is None:
            project = await create_project(session, principal, name=name)
        return ProjectId(project.id)


def list_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """(file, document name) of every regular, visible file at or below the paths, sorted by name.

    A file below a given folder is named by its path inside that folder. Raises `Invalid` for a missing path, and for
    two files of the same name: one would replace the other.
    """
    found: list[tuple[Path, str]] = []
    for path in paths:
        if not path.exists():
            raise Invalid(f"There is no {path}. Check the path.", code="no_such_path")
        found += [(path, path.name)] if path.is_file() else list(_files_below(path))
    found.sort(key=lambda item: item[1])
    for (one, name), (other, other_name) in pairwise(found):
        if safe_name(name) == safe_name(other_name) and one != other:
            raise Invalid(
                f"{one} and {other} would both be called “{name}”. Give the folder that holds both, or take them into "
                "two projects.",
                code="same_name",
            )
    return found


def _files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not path.is_symlink() and not is_hidden:
            yield path, inside.as_posix()


async def ingest_files(
    runtime: Runtime, principal: Principal, *, project_id: ProjectId, files: Iterable[tuple[Path, str]]
) -> AsyncIterator[FileOutcome]:
    """Receive files one after the other; a file that is refused does not stop the others."""
    for path, name in files:
        try:
            yield await _ingest_file(runtime, principal, project_id=project_id, path=path, name=name)
        except PharosError as error:
            yield FileOutcome(name=name, outcome="refused", reason=error.message)
        except OSError as error:
            words = f"The file cannot be read ({error.strerror}). Check its permissions and bring it again."
            yield FileOutcome(name=name, outcome="refused", reason=words)


async def _ingest_file(
    runtime: Runtime, principal: Principal, *, project_id: ProjectId, path: Path, name: str
) -> FileOutcome:
    """One transaction a file: with a thousand small files their number is most of the cost.

    It takes the place of the one document of its name. Where several have that name nobody can say which is the older
    version, so they stay.
    """
    stored = await store(runtime, principal.tenant_id, name=name, chunks=read_file(path))
    async with runtime.db.transaction(principal.tenant_id) as session:
        older = await find_by_name(session, project_id=project_id, name=name)
        outcome: Outcome = "added"
        try:
            document = await record(session, principal, project_id=project_id, name=name, stored=stored)
        except DuplicateDocument as duplicate:
            document, outcome = duplicate.existing, "unchanged"
        replaced = older[0] if len(older) == 1 and older[0] != document.id else None
        if replaced is not None:
            await delete_document(session, principal, document_id=replaced)
            outcome = "replaced"
    return FileOutcome(name=name, outcome=outcome, document_id=DocumentId(document.id))


@dataclass(frozen=True)
class IngestReport:
    """What `POST /ingest` says: counts of files by outcome, and the ids of the documents now queued."""

    added: int
    replaced: int
    unchanged: int
    refused: int
    document_ids: tuple[DocumentId, ...]


async def ingest_configured(runtime: Runtime, principal: Principal) -> IngestReport:
    """Ingest the folders of PHAROS_INGEST_PATHS, each into the project of its name. Never a path from a request."""
    folders = runtime.settings.ingest_folders
    if not folders:
        raise Invalid("No folder is configured. Set PHAROS_INGEST_PATHS and restart.", code="no_ingest_paths")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise Invalid("Two folders of PHAROS_INGEST_PATHS have the same name. Rename one.", code="same_name")
    outcomes: list[FileOutcome] = []
    for folder in folders:
        project_id = await find_or_make_project(runtime, principal, name=folder.name)
        files = await asyncio.to_thread(list_files, [folder])
        outcomes += [o async for o in ingest_files(runtime, principal, project_id=project_id, files=files)]
    count = {kind: sum(o.outcome == kind for o in outcomes) for kind in ("added", "replaced", "unchanged", "refused")}
    queued = tuple(o.document_id for o in outcomes if o.document_id and o.outcome in {"added", "replaced"})
    return IngestReport(**count, document_ids=queued)

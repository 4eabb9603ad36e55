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
from pharos.infra.errors import Invalid, PharosError
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.delete import delete_documents
from pharos.library.extract.sniff import safe_name
from pharos.library.projects import create_project
from pharos.library.upload import Stored, find_by_name, record, store_file
from pharos.runtime import Runtime

Outcome = Literal["added", "replaced", "unchanged", "refused"]

TOGETHER_FILES = 16
TOGETHER_BYTES = 256 * 1024
"""Files in one transaction and one job. The first saves statements: with short files their number is most of the cost,
and more together saves little more. The second keeps a job to seconds, so that nobody waits long for the first file."""


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
    """Receive files in their order; a file that is refused does not stop the others."""
    for group in _groups(files):
        for outcome in await _ingest_group(runtime, principal, project_id=project_id, files=group):
            yield outcome


def _groups(files: Iterable[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    """The files, in their order, so many together as are worth one transaction and one job."""
    group: list[tuple[Path, str]] = []
    group_bytes = 0
    for path, name in files:
        size_bytes = _size_bytes(path)
        if group and (len(group) == TOGETHER_FILES or group_bytes + size_bytes > TOGETHER_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append((path, name))
        group_bytes += size_bytes
    if group:
        yield group


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # who reads it says what is wrong with it
        return 0


async def _ingest_group(
    runtime: Runtime, principal: Principal, *, project_id: ProjectId, files: list[tuple[Path, str]]
) -> list[FileOutcome]:
    received = await asyncio.to_thread(_receive, runtime, principal, files)
    stored = [each for each in received if isinstance(each, Stored)]
    try:
        recorded = iter(await _record(runtime, principal, project_id=project_id, files=stored) if stored else [])
    except PharosError as error:
        recorded = iter([FileOutcome(name=file.name, outcome="refused", reason=error.message) for file in stored])
    return [next(recorded) if isinstance(each, Stored) else each for each in received]


def _receive(runtime: Runtime, principal: Principal, files: list[tuple[Path, str]]) -> list[Stored | FileOutcome]:
    received: list[Stored | FileOutcome] = []
    for path, name in files:
        try:
            received.append(store_file(runtime, principal.tenant_id, name=name, path=path))
        except PharosError as error:
            received.append(FileOutcome(name=name, outcome="refused", reason=error.message))
        except OSError as error:
            words = f"The file cannot be read ({error.strerror}). Check its permissions and bring it again."
            received.append(FileOutcome(name=name, outcome="refused", reason=words))
    return received


async def _record(
    runtime: Runtime, principal: Principal, *, project_id: ProjectId, files: list[Stored]
) -> list[FileOutcome]:
    """Each takes the place of the one document of its name. Where several have that name nobody can say which is the
    older version, so they stay; and so does what is another file's document by now."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        older = await find_by_name(session, project_id=project_id, names=[file.name for file in files])
        recorded = await record(session, principal, project_id=project_id, files=files)
        current = {document.id for document, _ in recorded}
        outcomes: list[FileOutcome] = []
        replaced: list[DocumentId] = []
        for file, (document, is_new) in zip(files, recorded, strict=True):
            outcome: Outcome = "added" if is_new else "unchanged"
            same_name = older.get(file.name, [])
            if len(same_name) == 1 and same_name[0] not in current:
                replaced += same_name
                outcome = "replaced"
            outcomes.append(FileOutcome(name=file.name, outcome=outcome, document_id=DocumentId(document.id)))
        await delete_documents(session, principal, document_ids=replaced)
    return outcomes


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

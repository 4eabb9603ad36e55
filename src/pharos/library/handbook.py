"""The project *Pharos handbook*: our guide and runbook, so that the product explains itself by its main job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import select

from pharos.access.models import Project
from pharos.identity.principal import product
from pharos.infra.ids import DocumentId, ProjectId, TenantId
from pharos.infra.shipped import shipped_folder
from pharos.library.delete import delete_documents
from pharos.library.extract import extract_document
from pharos.library.folder import ingest_files, list_files
from pharos.library.ingest import split_extracted
from pharos.library.models import Document
from pharos.library.passages import embedded_text, title_of
from pharos.library.projects import HANDBOOK_NAME, create_project
from pharos.library.split import token_counter
from pharos.runtime import Runtime

FOLDERS = ("docs/guide", "docs/runbook")
COMMENT = re.compile(r"^<!--.*?-->\n+", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^( *```\w+) .*$", re.MULTILINE)
"""The first line of a block of commands: its language, then what only the tests that run it read."""


async def load_handbook(runtime: Runtime, tenant_id: TenantId) -> ProjectId:
    """Make the tenant's handbook what this version ships: add, replace, remove. Runs at every start; cheap."""
    principal = product(tenant_id)
    async with runtime.db.transaction(tenant_id) as session:
        found = await session.execute(select(Project.id).where(Project.is_handbook))
        project_id = found.scalar_one_or_none()
        if project_id is None:
            made = await create_project(session, principal, name=HANDBOOK_NAME, is_handbook=True)
            project_id = made.id
    with _pages() as files:
        async for _ in ingest_files(runtime, principal, project_id=ProjectId(project_id), files=files):
            pass
    names = [name for _, name in files]
    async with runtime.db.transaction(tenant_id) as session:
        gone = await session.execute(
            select(Document.id).where(Document.project_id == project_id, Document.name.not_in(names))
        )
        old = [DocumentId(document_id) for document_id in gone.scalars()]
        await delete_documents(session, principal, document_ids=old)
    return ProjectId(project_id)


async def handbook_texts(models_dir: Path) -> list[str]:
    """What the model reads of every passage of the handbook, as its ingest will ask for it."""
    count_tokens = token_counter(models_dir)
    texts: list[str] = []
    with _pages() as files:
        for path, name in files:
            pieces = split_extracted(await extract_document(path, name=name), count_tokens)
            texts += [embedded_text(title_of(name), piece) for piece in pieces]
    return texts


def for_people(page: str) -> str:
    """A page of the handbook without the marks that only tests read.

    >>> for_people("# Stop\\n\\n<!-- contract: DE-13 -->\\n\\n```sh id=stop seconds=9\\npharos down\\n```")
    '# Stop\\n\\n```sh\\npharos down\\n```'
    """
    return BLOCK.sub(r"\1", COMMENT.sub("", page))


@contextmanager
def _pages() -> Iterator[list[tuple[Path, str]]]:
    """(file, name) of every page, named by its folder: `guide/asking.md`, `runbook/stop.md`. The files are copies."""
    pages = []
    with TemporaryDirectory() as place:
        for folder in FOLDERS:
            for path, inside in list_files([shipped_folder(folder)]):
                if not inside.endswith(".md"):
                    continue
                name = f"{Path(folder).name}/{inside}"
                copy = Path(place, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(for_people(path.read_text("utf-8")), "utf-8")
                pages.append((copy, name))
        yield pages

"""After a restore the sweep goes on: only what the database from before it still names is kept, exactly that."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import psycopg
import pytest
from tests.make import make_document, make_project
from tests.ops.installation import Place, quiet, upload, with_runtime

from pharos.infra.ids import DocumentId
from pharos.library.delete import delete_documents, sweep_aside, sweep_blobs
from pharos.ops.backup.restore import restore
from pharos.ops.backup.scratch import drop_database
from pharos.runtime import Runtime

NOW = 0.0
"""Seconds that unneeded bytes wait here."""


def files(place: Place) -> set[str]:
    return {path.name for path in place.settings.blob_root.glob("*-*/??/??/*")}


async def remove(runtime: Runtime, place: Place, documents: Sequence[str]) -> None:
    async with runtime.db.transaction(place.tenant.id) as session:
        ids = [DocumentId(UUID(document)) for document in documents]
        await delete_documents(session, place.tenant.admin, document_ids=ids)


def swept(place: Place) -> set[str]:
    """What a sweep that waits for nothing removes."""
    before = files(place)
    count = with_runtime(place.settings, lambda runtime: sweep_blobs(runtime, place.tenant.id, grace_seconds=NOW))
    gone = before - files(place)
    assert len(gone) == count
    return gone


def allow_connections(place: Place, database: str, *, allowed: bool) -> None:
    with psycopg.connect(place.server.admin_url, autocommit=True) as connection:
        connection.execute(f"alter database {database} allow_connections {allowed}")


@pytest.mark.contract("BK-06", part="after a restore exactly the files are kept that the database from before names")
def test_after_a_restore_only_what_the_database_from_before_names_is_kept(place: Place) -> None:
    (first, second, _), blobs = place.ledger, place.settings.blob_root
    again = b"sent, removed and sent again"

    async def live_on(runtime: Runtime) -> str:
        """Before the restore: a document of the backup goes with its file, another one comes."""
        await remove(runtime, place, [first])
        assert await sweep_blobs(runtime, place.tenant.id, grace_seconds=NOW) == 1
        project_id = await make_project(runtime.db, place.tenant.admin)
        return (await make_document(runtime, place.tenant.admin, project_id, content=again)).sha256

    async def go_on(runtime: Runtime) -> str:
        """After it: three documents go, of which one is new, one's file was added by the restore, and one came again
        with the bytes that only the old database names."""
        project_id = await make_project(runtime.db, place.tenant.admin)
        resent = await make_document(runtime, place.tenant.admin, project_id, content=again)
        ((fresh, sha256),) = (await upload(runtime, place.tenant, 1, "fresh")).items()
        await remove(runtime, place, [fresh, first, second, str(resent.id)])
        return sha256

    only_before = with_runtime(place.settings, live_on)
    done = restore(place.settings, place.folder, tell=quiet)
    assert done.rollback_point is not None
    fresh = with_runtime(place.settings, go_on)
    allow_connections(place, done.rollback_point, allowed=False)
    assert swept(place) == set(), "one that cannot be asked may name all of them"
    allow_connections(place, done.rollback_point, allowed=True)
    assert swept(place) == {fresh, place.ledger[first]}
    assert files(place) == {only_before, *list(place.ledger.values())[1:]}

    async def sweep_what_is_aside(runtime: Runtime) -> int:
        return await sweep_aside(runtime, grace_seconds=NOW)

    aside = blobs / "aside-20260101-000000"
    (aside / str(place.tenant.id) / only_before[:2] / only_before[2:4] / only_before).mkdir(parents=True)
    assert with_runtime(place.settings, sweep_what_is_aside) == 0
    drop_database(place.server.admin_url, done.rollback_point)
    assert with_runtime(place.settings, sweep_what_is_aside) == 1
    assert swept(place) == {only_before, place.ledger[second]}

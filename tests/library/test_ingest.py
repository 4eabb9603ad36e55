"""From upload to indexed: nothing acknowledged is lost, doubled or left hanging."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from sqlalchemy import event, text
from tests.conftest import RunJobs
from tests.fakes import FakeEmbedding
from tests.make import MadeTenant, make_document, make_project

from pharos.identity.principal import operator
from pharos.infra import jobs
from pharos.infra.errors import Invalid, NotAllowed, NotFound, TooLarge, Unavailable
from pharos.infra.ids import DocumentId, TenantId, new_id
from pharos.library import documents, ingest
from pharos.library.check import check_index, repair_index
from pharos.library.delete import delete_documents, sweep_blobs
from pharos.library.documents import find_documents
from pharos.library.folder import ingest_files, list_files
from pharos.library.handbook import handbook_texts, load_handbook
from pharos.library.models import Document, Passage
from pharos.library.upload import DuplicateDocument
from pharos.runtime import Runtime


async def read(runtime: Runtime, tenant: MadeTenant, document_id: object) -> Document:
    async with runtime.db.transaction(tenant.id) as session:
        return await documents.get_document(session, tenant.admin, document_id=DocumentId(document_id))  # type: ignore[arg-type]


async def passages_of(runtime: Runtime, tenant: MadeTenant) -> list[str]:
    async with runtime.db.transaction(tenant.id) as session:
        rows = await session.execute(text("select text from passages order by document_id, ordinal"))
        return list(rows.scalars())


@pytest.mark.contract("PD-03")
async def test_a_document_goes_from_pending_to_indexed(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    assert document.status == "pending"
    await run_jobs(runtime)
    indexed = await read(runtime, tenant, document.id)
    assert (indexed.status, indexed.passage_count, indexed.reason) == ("indexed", 1, None)


@pytest.mark.contract("PD-03")
async def test_a_failed_document_keeps_reason_and_file_and_can_be_retried(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(
        runtime, tenant.admin, project, name="x.bin", content=b"\x7fELF\x02\x01\x01\x00" * 50
    )
    await run_jobs(runtime)
    failed = await read(runtime, tenant, document.id)
    assert failed.status == "failed"
    assert failed.reason is not None
    assert "Convert it" in failed.reason
    assert runtime.blobs.path(tenant.id, failed.sha256).exists()
    async with runtime.db.transaction(tenant.id) as session:
        again = await documents.retry(session, tenant.admin, document_id=DocumentId(document.id))
        assert (again.status, again.reason) == ("pending", None)
    await run_jobs(runtime)
    assert (await read(runtime, tenant, document.id)).status == "failed"


@pytest.mark.contract("PD-04")
async def test_passages_can_be_dropped_and_rebuilt_from_the_kept_file(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    await run_jobs(runtime)
    before = await passages_of(runtime, tenant)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text("update documents set status = 'pending'"))
    await ingest.ingest_documents(runtime, tenant.id, [DocumentId(document.id)])
    assert await passages_of(runtime, tenant) == before
    async with runtime.db.transaction(tenant.id) as session:
        assert (await check_index(session)).out_of_step == 0


async def test_ingesting_twice_at_once_leaves_one_set_of_passages(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    await asyncio.gather(*(ingest.ingest_documents(runtime, tenant.id, [DocumentId(document.id)]) for _ in range(4)))
    assert len(await passages_of(runtime, tenant)) == 1
    async with runtime.db.transaction(tenant.id) as session:
        assert (await check_index(session)).out_of_step == 0


class InterruptedEmbedding(FakeEmbedding):
    """While it embeds, something else happens."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        await self._meanwhile()
        return await super().embed(texts)


async def test_a_run_that_was_thought_dead_cannot_overwrite_its_successor(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)

    async def a_successor_finishes() -> None:
        await ingest.ingest_documents(runtime, tenant.id, [DocumentId(document.id)])
        async with runtime.db.transaction(tenant.id) as session:
            await session.execute(text("update passages set text = 'the successor was here'"))

    slow = replace(runtime, embedding=InterruptedEmbedding(a_successor_finishes))
    await ingest.ingest_documents(slow, tenant.id, [DocumentId(document.id)])
    assert await passages_of(runtime, tenant) == ["the successor was here"]


async def test_a_list_that_shows_a_document_unfinished_says_so_although_it_is_finished_by_now(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)

    def finish_after_list(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        """What happens when the worker is quick."""
        if "count(*) OVER" not in statement:
            return
        assert runtime.settings.database_url is not None
        with psycopg.connect(runtime.settings.database_url) as elsewhere:
            elsewhere.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant.id)])
            done = elsewhere.execute("update documents set status = 'indexed' where id = %s", [document.id])
            assert done.rowcount == 1

    event.listen(runtime.db.engine.sync_engine, "after_cursor_execute", finish_after_list)
    async with runtime.db.transaction(tenant.id) as session:
        found = await find_documents(session, tenant.admin, project_id=project, name="", limit=10)
    event.remove(runtime.db.engine.sync_engine, "after_cursor_execute", finish_after_list)
    assert ([each.status for each in found.documents], found.is_busy) == (["pending"], True)
    assert (await read(runtime, tenant, document.id)).status == "indexed"


async def test_the_same_bytes_are_recognised_and_the_first_document_is_named(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    first = await make_document(runtime, tenant.admin, project, name="a.txt")
    with pytest.raises(DuplicateDocument) as known:
        await make_document(runtime, tenant.admin, project, name="b.txt")
    assert known.value.details["existing_id"] == str(first.id)
    elsewhere = await make_project(runtime.db, tenant.admin)
    assert (await make_document(runtime, tenant.admin, elsewhere)).id != first.id


async def test_many_uploads_of_the_same_bytes_at_once_make_one_document(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    outcomes = await asyncio.gather(
        *(make_document(runtime, tenant.admin, project) for _ in range(6)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Document"] + ["DuplicateDocument"] * 5


async def test_an_empty_or_too_large_file_is_refused_with_words(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    with pytest.raises(Invalid, match="empty"):
        await make_document(runtime, tenant.admin, project, content=b"")
    with pytest.raises(TooLarge):
        await make_document(runtime, tenant.admin, project, content=b"x" * (runtime.settings.max_upload_bytes + 1))
    async with runtime.db.transaction(tenant.id) as session:
        assert await documents.list_documents(session, tenant.admin, project_id=project) == []


@pytest.mark.contract("FI-04", part="files are kept below the data directory")
async def test_a_deleted_document_leaves_no_rows_and_after_the_grace_no_bytes(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    await run_jobs(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        await delete_documents(session, tenant.admin, document_ids=[DocumentId(document.id)])
    with pytest.raises(NotFound):
        await read(runtime, tenant, document.id)
    async with runtime.db.transaction(tenant.id) as session:
        for table in ("passages", "passage_terms", "passage_vectors_minilm_l6_v2", "lexicon", "document_texts"):
            assert (await session.execute(text(f"select count(*) from {table}"))).scalar_one() == 0
    assert await sweep_blobs(runtime, tenant.id) == 0
    assert await sweep_blobs(runtime, tenant.id, grace_seconds=0) == 1
    assert not runtime.blobs.path(tenant.id, document.sha256).exists()


async def test_the_sweep_spares_bytes_that_a_document_names(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    assert await sweep_blobs(runtime, tenant.id, grace_seconds=0) == 0
    assert runtime.blobs.path(tenant.id, document.sha256).exists()


@pytest.mark.contract("IQ-04")
async def test_a_document_whose_job_was_lost_is_queued_again_once(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    async with runtime.db.transaction(tenant.id) as session:
        assert await documents.recover_documents(session) == 0
        await session.execute(
            text("delete from procrastinate_jobs where args->'document_ids' ? :id"), {"id": str(document.id)}
        )
    async with runtime.db.transaction(tenant.id) as session:
        assert await documents.recover_documents(session) == 1
    async with runtime.db.transaction(tenant.id) as session:
        assert await documents.recover_documents(session) == 0
    await run_jobs(runtime)
    assert (await read(runtime, tenant, document.id)).status == "indexed"


async def test_an_embedder_that_is_away_is_tried_again_and_the_document_is_not_failed(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)

    async def it_is_away() -> None:
        raise Unavailable("The embedder does not answer. `pharos status` shows why.")

    without = replace(runtime, embedding=InterruptedEmbedding(it_is_away))
    with pytest.raises(Unavailable):
        await ingest.ingest_documents(without, tenant.id, [DocumentId(document.id)])
    assert (await read(runtime, tenant, document.id)).status == "processing"
    await ingest.ingest_documents(runtime, tenant.id, [DocumentId(document.id)])
    assert (await read(runtime, tenant, document.id)).status == "indexed"


async def test_every_span_is_exactly_its_passage(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> None:
    project = await make_project(runtime.db, tenant.admin)
    body = "\r\n\r\n".join(f"Absatz {n}: Der Türmer zündet die Lampe an. 灯塔守望者点亮灯。" * 6 for n in range(30))
    document = await make_document(runtime, tenant.admin, project, content=body.encode())
    await run_jobs(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        found = await documents.get_text(session, tenant.admin, document_id=DocumentId(document.id))
        rows = (await session.execute(text("select start_char, end_char, text from passages"))).all()
    assert found.body == body
    assert len(rows) > 5
    assert all(body[start:end] == passage for start, end, passage in rows)


def test_passages_have_the_fence_in_their_key() -> None:
    assert [column.name for column in Passage.__table__.primary_key] == ["tenant_id", "id"]


@pytest.mark.contract("IQ-03")
async def test_clearing_the_queue_removes_only_waiting_jobs_and_loses_no_document(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    kind = f"{jobs.NAMESPACE}:{documents.INGEST_TASK}"
    async with runtime.db.transaction(tenant.id) as session:
        waiting = await jobs.clear_queue(session, task_name=kind, dry_run=True)
        assert waiting >= 1
        assert await jobs.clear_queue(session, task_name=kind, dry_run=False) == waiting
    assert (await read(runtime, tenant, document.id)).status == "pending"
    async with runtime.db.transaction(TenantId(tenant.id)) as session:
        assert await documents.recover_documents(session) == 1
    await run_jobs(runtime)
    assert (await read(runtime, tenant, document.id)).status == "indexed"


async def test_a_document_deleted_while_it_is_being_stored_leaves_the_counts_right(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    document_id = DocumentId(document.id)
    deleting: asyncio.Task[None] | None = None

    async def delete_it() -> None:
        async with runtime.db.transaction(tenant.id) as session:
            await delete_documents(session, tenant.admin, document_ids=[document_id])

    async with runtime.db.transaction(tenant.id) as session:
        # What a run does in its last transaction: the row's lock, then the passages and their counts.
        await session.execute(text("select id from documents where id = :id for update"), {"id": document_id})
        deleting = asyncio.create_task(delete_it())
        waiting = text("select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')")
        while not (await session.execute(waiting)).scalar_one():  # noqa: ASYNC110 - the other end is the database
            await asyncio.sleep(0.01)
        await session.execute(ADD_PASSAGE, {"project": project, "document": document_id, "id": new_id()})
    await deleting
    async with runtime.db.transaction(tenant.id) as session:
        counted = await session.execute(text("select passage_count from projects where id = :id"), {"id": project})
        assert counted.scalar_one() == 0
        assert (await check_index(session)).out_of_step == 0


async def test_an_index_out_of_step_is_noticed_and_repaired(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project)
    other = await make_document(runtime, tenant.admin, project, name="b.txt", content=b"A second note about lamps.")
    await run_jobs(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text("update projects set passage_count = 7"))
        await session.execute(text("update lexicon set passages = passages + 1"))
        await session.execute(text("delete from passages where document_id = :id"), {"id": other.id})
    async with runtime.db.transaction(tenant.id) as session:
        assert (await check_index(session)).out_of_step > 2
        assert await repair_index(session) == 1
    await run_jobs(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        assert (await check_index(session)).out_of_step == 0
    assert len(await passages_of(runtime, tenant)) == 2


async def test_what_is_prepared_at_install_is_what_the_handbook_asks_of_the_model(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    asked: set[str] = set()

    class Listening(FakeEmbedding):
        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            asked.update(texts)
            return await super().embed(texts)

    world = replace(runtime, embedding=Listening())
    await load_handbook(world, tenant.id)
    await run_jobs(world)
    assert asked == set(await handbook_texts(world.settings.models_dir))
    assert not [read for read in asked if "contract:" in read or "sh id=" in read], "marks that only tests read"


async def test_the_handbook_takes_no_documents_but_its_own(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await load_handbook(runtime, tenant.id)
    for principal in (tenant.admin, operator(tenant.id)):
        with pytest.raises(NotAllowed):
            await make_document(runtime, principal, project)


ADD_PASSAGE = text(
    """
    with counted as (update projects set passage_count = passage_count + 1 where id = :project),
    passage as (
        insert into passages (tenant_id, id, project_id, document_id, ordinal, start_char, end_char, text)
        select tenant_id, :id, :project, :document, 0, 0, 5, 'Light' from projects where id = :project
    ), term as (
        insert into passage_terms (tenant_id, passage_id, project_id, terms)
        select tenant_id, :id, :project, '{7:1}/1000000000' from projects where id = :project
    )
    insert into lexicon (tenant_id, project_id, term, passages)
    select tenant_id, :project, 7, 1 from projects where id = :project
    """
)


class RefusingEmbedding(FakeEmbedding):
    """It breaks on a text that speaks of poison."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if any("poison" in each for each in texts):
            raise ZeroDivisionError
        return await super().embed(texts)


async def test_a_document_that_breaks_its_job_breaks_no_other_of_the_same_job(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs, tmp_path: Path
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    for word in ("bread", "poison", "water"):
        (tmp_path / f"{word}.txt").write_text(f"A note about {word}.")
    files = list_files([tmp_path])
    received = [each async for each in ingest_files(runtime, tenant.admin, project_id=project, files=files)]
    async with runtime.db.transaction(tenant.id) as session:
        waiting = await session.execute(text("select count(*) from procrastinate_jobs where status = 'todo'"))
        assert waiting.scalar_one() == 1
    world = replace(runtime, embedding=RefusingEmbedding())
    await run_jobs(world)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text("update procrastinate_jobs set scheduled_at = null"))
    await run_jobs(world)  # divides the job
    await run_jobs(world)
    states = {each.name: (await read(runtime, tenant, each.document_id)).status for each in received}
    assert states == {"bread.txt": "indexed", "poison.txt": "processing", "water.txt": "indexed"}
    async with runtime.db.transaction(tenant.id) as session:
        assert (await check_index(session)).out_of_step == 0

"""The queue loses no job: not when its cause fails, not when its worker dies."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from procrastinate import JobContext
from sqlalchemy import text
from structlog.testing import capture_logs
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project

from pharos import worker
from pharos.infra import job_queue, jobs
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Invalid, Unavailable
from pharos.infra.mail import SEND_TASK
from pharos.library.documents import GAVE_UP, INGEST_TASK
from pharos.runtime import Runtime

seen: list[str] = []


@job_queue.durable_task("test_note")
async def note(context: JobContext, *, word: str) -> None:
    seen.append(word)
    if word == "later":
        raise Unavailable("Not now. Later.")
    if word == "never":
        raise Invalid("Not ever.")


async def state_of(runtime: Runtime, job_id: int) -> tuple[str, int] | None:
    async with system_transaction(runtime.db) as session:
        row = (
            await session.execute(
                text("select cast(status as text), attempts from procrastinate_jobs where id = :id"), {"id": job_id}
            )
        ).one_or_none()
    return (row[0], row[1]) if row else None


async def orphan(runtime: Runtime, tenant: MadeTenant, *, attempts: int = 0, silent_seconds: float = 60) -> int:
    """A job that its worker took and then died with."""
    async with runtime.db.transaction(tenant.id) as session:
        job_id = await jobs.enqueue(session, "test_note", word="orphan")
        await session.execute(
            text(
                "with dead as (insert into procrastinate_workers (last_heartbeat) "
                "values (now() - make_interval(secs => :silent)) returning id) "
                "update procrastinate_jobs set status = 'doing', attempts = :attempts, "
                "worker_id = (select id from dead) where id = :job"
            ),
            {"job": job_id, "attempts": attempts, "silent": silent_seconds},
        )
    return job_id


async def test_a_job_exists_exactly_if_its_cause_was_committed(runtime: Runtime, tenant: MadeTenant) -> None:
    lost: list[int] = []

    async def a_cause_that_fails() -> None:
        async with runtime.db.transaction(tenant.id) as session:
            lost.append(await jobs.enqueue(session, "test_note", word="x"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await a_cause_that_fails()
    assert await state_of(runtime, lost[0]) is None
    async with runtime.db.transaction(tenant.id) as session:
        kept = await jobs.enqueue(session, "test_note", word="x")
    assert await state_of(runtime, kept) == ("todo", 0)


@pytest.mark.contract("IQ-06", part="jobs survive the death of their worker")
async def test_the_job_of_a_dead_worker_is_put_back_once(runtime: Runtime, tenant: MadeTenant) -> None:
    job_id = await orphan(runtime, tenant)

    async def rescue() -> list[int]:
        async with system_transaction(runtime.db) as session:
            return [found.id for found in await jobs.rescue_jobs(session)]

    rounds = await asyncio.gather(rescue(), rescue(), rescue())
    assert sum(job_id in found for found in rounds) == 1
    assert await state_of(runtime, job_id) == ("todo", 1)


async def test_the_job_of_a_living_worker_is_left_alone(runtime: Runtime, tenant: MadeTenant) -> None:
    job_id = await orphan(runtime, tenant, silent_seconds=0)
    async with system_transaction(runtime.db) as session:
        assert job_id not in [found.id for found in await jobs.rescue_jobs(session)]
    assert await state_of(runtime, job_id) == ("doing", 0)


async def test_a_job_whose_worker_was_taken_off_the_list_is_put_back(runtime: Runtime, tenant: MadeTenant) -> None:
    job_id = await orphan(runtime, tenant, silent_seconds=0)
    async with system_transaction(runtime.db) as session:
        await session.execute(text("update procrastinate_jobs set worker_id = null where id = :id"), {"id": job_id})
        assert job_id in [found.id for found in await jobs.rescue_jobs(session)]


async def test_a_job_that_has_killed_too_many_workers_is_given_up_and_its_document_says_so(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(
            text(
                "update procrastinate_jobs set status = 'doing', attempts = :attempts, worker_id = null "
                "where args->'document_ids' ? :id"
            ),
            {"attempts": jobs.MAX_ATTEMPTS - 1, "id": str(document.id)},
        )
    await worker.rescue(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        row = (
            await session.execute(text("select status, reason from documents where id = :id"), {"id": document.id})
        ).one()
    assert (row.status, row.reason) == ("failed", GAVE_UP)


@pytest.mark.contract("LO-01", part="the request's id goes with the job")
async def test_a_job_logs_under_the_id_of_the_request_that_caused_it(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    with structlog.contextvars.bound_contextvars(request_id="request-0815"):
        async with runtime.db.transaction(tenant.id) as session:
            await jobs.enqueue(session, "test_note", word="caused")
    async with runtime.db.transaction(tenant.id) as session:
        await jobs.enqueue(session, "test_note", word="by nobody")
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        await run_jobs(runtime)
    finished = {event["job"]: event["request_id"] for event in events if event["event"] == "job.finished"}
    assert [finished[job] for job in sorted(finished)] == ["request-0815", ""]


async def test_what_may_work_later_is_tried_again_and_what_cannot_is_not(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    seen.clear()
    async with runtime.db.transaction(tenant.id) as session:
        later = await jobs.enqueue(session, "test_note", word="later")
        never = await jobs.enqueue(session, "test_note", word="never")
    await run_jobs(runtime)
    assert await state_of(runtime, later) == ("todo", 1)
    assert await state_of(runtime, never) == ("failed", 1)
    assert sorted(seen) == ["later", "never"]


async def test_every_task_that_can_be_given_up_is_a_registered_one() -> None:
    assert set(worker.WHEN_GIVEN_UP) == {f"{jobs.NAMESPACE}:{task}" for task in (INGEST_TASK, SEND_TASK)}
    assert set(worker.WHEN_GIVEN_UP) <= job_queue.blueprint.tasks.keys()

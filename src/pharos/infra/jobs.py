"""Durable work: a job is stored in the transaction of its cause, and no killed process can lose it.

Procrastinate keeps the queue. What it lacks is here: a job whose worker died is put back (`rescue_jobs`), and one
that was tried too often is given up with its reason instead of running for ever. Who only queues a job or reads the
queue, as most commands do, does not wait for procrastinate to be loaded: what runs jobs is in `job_queue`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.logs import current_request_id, get_logger

log = get_logger(__name__)

LEASE_SECONDS = 10.0
"""A worker that was silent for this long is dead. Five heartbeats: one lost to a busy machine is not a death."""
MAX_ATTEMPTS = 5

NAMESPACE = "pharos"
REQUEST_ID = "request_id"
"""An argument of every job that a request caused: its log lines carry the request's id (LO-01)."""


async def has_worker(session: AsyncSession) -> bool:
    """Whether a worker has reported within the last half minute."""
    alive = text("select from procrastinate_workers where last_heartbeat > now() - interval '30 seconds' limit 1")
    return (await session.execute(alive)).first() is not None


async def enqueue(
    session: AsyncSession,
    name: str,
    *,
    queue: str = "default",
    lock: str | None = None,
    after_seconds: float = 0.0,
    **ids: str | list[str],
) -> int:
    """Store a job in the session's transaction: it exists exactly if its cause does. Returns the job's id.

    It starts `after_seconds` at the earliest; jobs of one `lock` never run side by side.
    """
    request_id = current_request_id()
    row = await session.execute(
        text(
            "select procrastinate_defer_jobs_v1(array[row(:queue, :task, 0, cast(:lock as text), null, "
            "cast(:args as jsonb), case when :after > 0 then clock_timestamp() + make_interval(secs => :after) end)"
            "::procrastinate_job_to_defer_v1])"
        ),
        {
            "queue": queue,
            "task": f"{NAMESPACE}:{name}",
            "lock": lock,
            "args": json.dumps(ids | ({REQUEST_ID: request_id} if request_id else {})),
            "after": after_seconds,
        },
    )
    jobs: list[int] = row.scalar_one()
    return jobs[0] if isinstance(jobs, list) else jobs


async def drop_waiting(session: AsyncSession, *, lock: str) -> None:
    """Remove the jobs of one lock that have not started, so that a new one is not behind them."""
    await session.execute(text("delete from procrastinate_jobs where status = 'todo' and lock = :lock"), {"lock": lock})


@dataclass(frozen=True)
class Orphan:
    """A job whose worker died: put back, or given up because it outlived `MAX_ATTEMPTS` workers."""

    id: int
    task_name: str
    ids: dict[str, Any]
    given_up: bool


async def rescue_jobs(session: AsyncSession) -> list[Orphan]:
    """Put back the jobs of dead workers; give up those that were tried `MAX_ATTEMPTS` times.

    One statement, so that two rescuers cannot put the same job back twice. A job is an orphan when it is `doing` and
    its worker is gone from the list or silent for `LEASE_SECONDS`.
    """
    rows = await session.execute(RESCUE, {"lease": LEASE_SECONDS, "max_attempts": MAX_ATTEMPTS})
    orphans = [
        Orphan(id=row.id, task_name=row.task_name, ids=_without_request(row.args), given_up=row.status == "failed")
        for row in rows
    ]
    if orphans:
        log.warning("jobs.rescued", jobs=len(orphans), given_up=sum(orphan.given_up for orphan in orphans))
    return orphans


def _without_request(args: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in args.items() if name != REQUEST_ID}


# Counting the attempt here means that a job which kills its worker (out of memory on a huge PDF) still reaches the
# limit, at the cost of one attempt lost when a machine is switched off.
RESCUE = text(
    """
    with orphans as (
        select job.id from procrastinate_jobs job
        left join procrastinate_workers worker on worker.id = job.worker_id
        where job.status = 'doing'
          and (worker.id is null or worker.last_heartbeat < now() - make_interval(secs => :lease))
        for update of job skip locked
    )
    update procrastinate_jobs job
    set status = cast(case when job.attempts + 1 >= :max_attempts then 'failed' else 'todo' end
                      as procrastinate_job_status),
        attempts = job.attempts + 1,
        worker_id = null,
        abort_requested = false
    from orphans where job.id = orphans.id
    returning job.id, job.task_name, job.args, cast(job.status as text) as status
    """
)


@dataclass(frozen=True)
class QueueLine:
    """Jobs of one task in one state (`todo`, `doing`, `failed`), with the age of the oldest in seconds."""

    task_name: str
    status: str
    jobs: int
    oldest_seconds: float


async def list_queue(session: AsyncSession) -> list[QueueLine]:
    """What waits, runs or was given up; finished jobs are not listed."""
    rows = await session.execute(
        text(
            """
            select job.task_name, cast(job.status as text) as status, count(*) as jobs,
                   coalesce(extract(epoch from now() - min(event.at)), 0) as oldest_seconds
            from procrastinate_jobs job
            left join procrastinate_events event on event.job_id = job.id and event.type = 'deferred'
            where job.status in ('todo', 'doing', 'failed')
            group by 1, 2 order by 1, 2
            """
        )
    )
    return [QueueLine(row.task_name, row.status, row.jobs, round(float(row.oldest_seconds), 1)) for row in rows]


async def clear_queue(session: AsyncSession, *, task_name: str, dry_run: bool) -> int:
    """Remove the jobs of one task that have not started; running ones are untouched. Returns how many."""
    waiting = text("select count(*) from procrastinate_jobs where status = 'todo' and task_name = :task")
    removal = text("delete from procrastinate_jobs where status = 'todo' and task_name = :task")
    if dry_run:
        return int((await session.execute(waiting, {"task": task_name})).scalar_one())
    result = await session.execute(removal, {"task": task_name})
    return int(getattr(result, "rowcount", 0))

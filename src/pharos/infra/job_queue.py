"""The queue as a worker runs it: tasks, when they are tried again, and the loop that runs them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import procrastinate
import structlog

from pharos.infra.errors import PharosError
from pharos.infra.jobs import LEASE_SECONDS, MAX_ATTEMPTS, NAMESPACE, REQUEST_ID
from pharos.infra.logs import get_logger

log = get_logger(__name__)

HEARTBEAT_SECONDS = LEASE_SECONDS / 5
blueprint = procrastinate.Blueprint()
"""Every slice's tasks hang on it; the worker adds it to its app."""

Task = Callable[..., Awaitable[None]]


class Backoff(procrastinate.BaseRetryStrategy):
    """Try again after 1, 4, 16, 64 seconds when the error says that later may be better; else give up at once."""

    def get_retry_decision(
        self, *, exception: BaseException, job: procrastinate.jobs.Job
    ) -> procrastinate.RetryDecision | None:
        gives_up = isinstance(exception, PharosError) and not exception.retryable
        if gives_up or job.attempts + 1 >= MAX_ATTEMPTS:
            return None
        return procrastinate.RetryDecision(retry_in={"seconds": 4**job.attempts})


def durable_task(name: str, *, queue: str = "default") -> Callable[[Task], Any]:
    """Register a task. It gets the job's context, then ids only; it must be safe to run twice."""

    def register(function: Task) -> Any:
        async def run(context: procrastinate.JobContext, /, **ids: str) -> None:
            request_id = ids.pop(REQUEST_ID, "")
            with structlog.contextvars.bound_contextvars(request_id=request_id, task=name, job=context.job.id):
                started = time.monotonic()
                await function(context, **ids)
                log.info("job.finished", seconds=round(time.monotonic() - started, 3))

        return blueprint.task(name=f"{NAMESPACE}:{name}", queue=queue, retry=Backoff(), pass_context=True)(run)

    return register


def create_queue(url: str) -> procrastinate.App:
    """The queue as the worker runs it. `url` must reach Postgres directly: a transaction pooler breaks LISTEN."""
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=4, kwargs={"prepare_threshold": None})
    app = procrastinate.App(connector=connector)
    app.tasks.update(blueprint.tasks)  # not `add_tasks_from`: it renames the tasks, so a second queue would miss them
    return app


async def run_worker(
    app: procrastinate.App, *, context: dict[str, Any], concurrency: int, wait: bool = True, signals: bool = True
) -> None:
    """Run jobs until a SIGTERM (`wait`) or until the queue is empty; a running job may finish for 30 seconds."""
    await app.run_worker_async(
        concurrency=concurrency,
        wait=wait,
        additional_context=context,
        install_signal_handlers=signals,
        listen_notify=wait,
        fetch_job_polling_interval=2.0,
        shutdown_graceful_timeout=30.0,
        update_heartbeat_interval=HEARTBEAT_SECONDS,
        stalled_worker_timeout=LEASE_SECONDS,
        delete_jobs="successful",
    )

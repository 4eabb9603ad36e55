"""The worker process: runs jobs, puts back the jobs of dead workers, recovers lost documents, sweeps files."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from pharos.access.news import forget_news
from pharos.chat.turn_rows import forget_events, interrupt_lost_turns
from pharos.identity import tasks as identity_tasks
from pharos.identity.audit_seals import BATCH, seal_logs
from pharos.identity.sessions import sweep_sessions
from pharos.identity.tenants import list_tenants, remove_abandoned_tenants
from pharos.infra import job_queue, jobs, processes
from pharos.infra.database_roles import connection_urls
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import PharosError
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.mail import SEND_TASK, recover_mails
from pharos.infra.settings import Settings, child_environment
from pharos.library import tasks
from pharos.library.delete import sweep_aside, sweep_blobs
from pharos.library.documents import INGEST_TASK, recover_documents
from pharos.library.handbook import load_handbook
from pharos.ops.backup.drill_log import is_drill_due, list_drills
from pharos.ops.backup.nightly import failed_just_now, is_copy_due, is_missing, last_moment
from pharos.ops.backup.own import own_backups
from pharos.ops.backup.rollback_points import remove_old_rollback_points
from pharos.ops.backup.scratch_folder import sweep_scratch
from pharos.ops.backup.store import list_backups
from pharos.ops.log_files import log_file, open_log
from pharos.ops.secrets_check import refuse_wrong_secrets
from pharos.ops.spend_watch import watch_spend
from pharos.runtime import Runtime, open_runtime

log = get_logger(__name__)

RESCUE_EVERY_SECONDS = 5.0
RECOVER_EVERY_SECONDS = 60.0
SWEEP_EVERY_SECONDS = 3600.0
SEAL_EVERY_SECONDS = 15.0
BACKUP_EVERY_SECONDS = 30.0
BACKUP_AGAIN_SECONDS = 600.0
"""Before another try, when one ended before it could be counted: another operation ran, or the database was away."""
COPY_AGAIN_SECONDS = 1800.0
"""Each try leaves a snapshot in a restic repository, if a small one, and reads a part of it."""
DRILL_EVERY_SECONDS = 600.0
DRILL_AGAIN_SECONDS = 3600.0

WHEN_GIVEN_UP: dict[str, Callable[..., Awaitable[None]]] = {
    f"{jobs.NAMESPACE}:{INGEST_TASK}": tasks.mark_given_up,
    f"{jobs.NAMESPACE}:{SEND_TASK}": identity_tasks.mark_mail_given_up,
}
"""What follows when a job has killed too many workers, by task."""


async def run(settings: Settings) -> None:
    """Work until SIGTERM; running jobs get 30 seconds to finish, after that they are put back."""
    async with open_runtime(settings) as runtime:
        await refuse_wrong_secrets(runtime)
        async with upkeep(runtime):
            await _work(settings, runtime)
    log.info("worker.stopped")


async def _work(settings: Settings, runtime: Runtime) -> None:
    app = job_queue.create_queue(connection_urls(settings).direct)
    async with app.open_async():
        log.info("worker.started", concurrency=settings.worker_concurrency)
        for tenant_id in await tenant_ids(runtime):
            await load_handbook(runtime, tenant_id)
        await job_queue.run_worker(app, context={"runtime": runtime}, concurrency=settings.worker_concurrency)


@contextlib.asynccontextmanager
async def upkeep(runtime: Runtime) -> AsyncIterator[None]:
    """Rescue, recovery and sweeping beside the jobs: not jobs themselves, so a blocked queue cannot block them."""
    loops = [
        asyncio.create_task(_every(RESCUE_EVERY_SECONDS, rescue, runtime)),
        asyncio.create_task(_every(RECOVER_EVERY_SECONDS, recover, runtime)),
        asyncio.create_task(_every(SWEEP_EVERY_SECONDS, sweep, runtime)),
        asyncio.create_task(_every(SEAL_EVERY_SECONDS, seal, runtime)),
        asyncio.create_task(_every(BACKUP_EVERY_SECONDS, DailyBackup().make_if_due, runtime)),
        asyncio.create_task(_every(BACKUP_EVERY_SECONDS, DailyCopy().make_if_due, runtime)),
        asyncio.create_task(_every(DRILL_EVERY_SECONDS, RegularDrill().run_if_due, runtime)),
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def rescue(runtime: Runtime) -> None:
    """Put back the jobs of dead workers; what was given up is told to its document."""
    async with system_transaction(runtime.db) as session:
        orphans = await jobs.rescue_jobs(session)
    for orphan in orphans:
        if orphan.given_up and orphan.task_name in WHEN_GIVEN_UP:
            await WHEN_GIVEN_UP[orphan.task_name](runtime, **orphan.ids)


async def recover(runtime: Runtime) -> int:
    """Queue documents and mails that no live job knows of, end answers nobody makes; returns how many documents."""
    recovered = mails = 0
    for tenant_id in await tenant_ids(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            recovered += await recover_documents(session)
            mails += await recover_mails(session, tenant_id=tenant_id)
            await interrupt_lost_turns(session)
    if recovered or mails:
        log.warning("work.recovered", documents=recovered, mails=mails)
    return recovered


async def sweep(runtime: Runtime) -> None:
    """Remove what nothing needs: half uploads, bytes no document names, old limits and sessions, scratch tenants, and
    what killed verifications and drills left."""
    runtime.blobs.sweep_incoming(older_than_seconds=SWEEP_EVERY_SECONDS, now=time.time())
    await sweep_aside(runtime)
    await runtime.limits.sweep()
    await remove_abandoned_tenants(runtime)
    for tenant_id in await tenant_ids(runtime):
        await sweep_blobs(runtime, tenant_id)
        async with runtime.db.transaction(tenant_id) as session:
            await sweep_sessions(session)
            await forget_events(session)
            await forget_news(session)
            await watch_spend(session, tenant_id)
    await asyncio.to_thread(sweep_scratch, runtime.settings.data_dir)
    # Last: it asks the whole server, and what keeps it from answering must not keep the rest lying.
    await asyncio.to_thread(remove_old_rollback_points, runtime.settings)


async def seal(runtime: Runtime) -> int:
    """Seal what every tenant's audit log and security events gained; returns how many entries."""
    sealed = 0
    for tenant_id in await tenant_ids(runtime):
        count = BATCH
        while count == BATCH:
            async with runtime.db.transaction(tenant_id) as session:
                count = await seal_logs(session, tenant_id)
            sealed += count
    return sealed


class DailyBackup:
    """The daily backup of this worker; of several workers the lock of operations lets one make it."""

    def __init__(self) -> None:
        self.since = datetime.now().astimezone()
        self.settled: datetime | None = None
        self.next_try = 0.0

    async def make_if_due(self, runtime: Runtime) -> bool:
        """Run `pharos backup nightly` if its time has come; True when it did and succeeded.

        A process of its own: it dies with this one, leaves nothing half when it does, and takes no time from the jobs.
        """
        settings = runtime.settings
        moment = last_moment(settings.backup_at, datetime.now().astimezone())
        if moment in (None, self.settled) or time.monotonic() < self.next_try:
            return False
        assert moment is not None
        attempts = own_backups(settings, await asyncio.to_thread(list_backups, settings, removed=True))
        if not is_missing(moment, attempts, since=self.since):
            self.settled = moment
            return False
        self.next_try = time.monotonic() + BACKUP_AGAIN_SECONDS
        if failed_just_now(attempts, now=datetime.now().astimezone()):
            return False
        return await _run_apart(settings, "backup", "backup", "nightly", "--json")


class DailyCopy:
    """The daily copy elsewhere; of several workers the lock of operations lets one make it."""

    def __init__(self) -> None:
        self.next_try = 0.0

    async def make_if_due(self, runtime: Runtime) -> bool:
        """Run `pharos backup push` if the newest verified backup should be elsewhere by now; True when it is."""
        settings = runtime.settings
        if not settings.offsite or time.monotonic() < self.next_try:
            return False
        backups = own_backups(settings, await asyncio.to_thread(list_backups, settings))
        if not is_copy_due(settings.offsite_at, backups, now=datetime.now().astimezone()):
            return False
        self.next_try = time.monotonic() + COPY_AGAIN_SECONDS
        return await _run_apart(settings, "backup", "backup", "push", "--json")


class RegularDrill:
    """The restore drill that runs by itself; of several workers the lock of operations lets one run it."""

    def __init__(self) -> None:
        self.next_try = 0.0

    async def run_if_due(self, runtime: Runtime) -> bool:
        """Run `pharos drill` if the last one is PHAROS_DRILL_EVERY_DAYS ago; True when it did and all was well."""
        settings = runtime.settings
        if settings.drill_every_days == 0 or time.monotonic() < self.next_try:
            return False
        drills, backups = (
            await asyncio.to_thread(list_drills, settings),
            await asyncio.to_thread(list_backups, settings),
        )
        if not is_drill_due(drills, backups, every_days=settings.drill_every_days, now=datetime.now().astimezone()):
            return False
        self.next_try = time.monotonic() + DRILL_AGAIN_SECONDS
        return await _run_apart(settings, "drill", "drill", "--if-due", "--by", "schedule")


async def _run_apart(settings: Settings, part: str, *words: str) -> bool:
    """Run a command of ours to its end, its output in the log of `part`; it dies with this process."""
    with open_log(settings.data_dir, part) as output:
        process = processes.spawn(
            [sys.executable, "-m", "pharos", *words],
            death_signal=signal.SIGTERM,
            output=output,
            env=child_environment(settings),
        )
    try:
        code = await processes.exited(process)
    finally:
        if process.poll() is None:
            process.terminate()
    if code != 0:
        log.error("command.failed", command=" ".join(words), exit_code=code, log=str(log_file(settings.data_dir, part)))
    return code == 0


async def tenant_ids(runtime: Runtime) -> list[TenantId]:
    return [TenantId(tenant.id) for tenant in await list_tenants(runtime)]


async def _every(seconds: float, round_: Callable[[Runtime], Awaitable[object]], runtime: Runtime) -> None:
    while True:
        try:
            await round_(runtime)
        except (SQLAlchemyError, psycopg.Error, OSError, PharosError) as error:
            # The database or the disk may be away for a while; the next round tries again.
            log.warning("upkeep.failed", round=round_.__name__, error=type(error).__name__)
        await asyncio.sleep(seconds)

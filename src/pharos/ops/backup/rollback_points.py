"""Databases under other names: the restored one beside the live one, the swap, and what was live before it.

ALTER DATABASE … RENAME is transactional, so whoever is killed leaves the old or the new one under the live name. The
database that was live keeps its content as `<name>_before_<YYYYMMDDHHMMSS>` until its time is over; one that did not
work once it was live is kept as long, as `<name>_failed_<YYYYMMDDHHMMSS>`, and is never swapped back to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from pharos.infra import embedded_postgres
from pharos.infra.database_roles import DATABASE, Administration, read_administration
from pharos.infra.errors import Conflict, NotFound, PharosError, Unavailable
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup.restore_journal import read_journal
from pharos.ops.backup.scratch import drop_database
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.running import read_state
from pharos.ops.start_stop import postgres_alone

log = get_logger(__name__)

SWAP_TRIES = 10
STAMP = "%Y%m%d%H%M%S"
BEFORE, FAILED = "before", "failed"
"""What a kept database was: live until a swap, or live and of no use."""
POINTS = """
    with ours as materialized (select oid, datname from pg_database where starts_with(datname, %s))
    select datname, pg_database_size(oid) from ours
    """


@dataclass(frozen=True)
class RollbackPoint:
    """A database that was live until `since`, and is removed by the worker from `until` on."""

    database: str
    since: datetime
    until: datetime
    bytes: int


def restored_name(live: str) -> str:
    """What the database that is being restored is called until the swap."""
    return f"{live}_restore"


def list_rollback_points(settings: Settings) -> list[RollbackPoint]:
    """What can be swapped back to, the newest first. Raises `psycopg.Error` where the server does not answer."""
    return list_kept(settings, BEFORE)


def list_kept(settings: Settings, word: str) -> list[RollbackPoint]:
    """What is kept as `word`, `BEFORE` or `FAILED`, the newest first. Raises as `list_rollback_points` does.

    Only ours are measured: a size wants the right to connect, and of another's database may be gone by then.
    """
    known = read_administration(settings)
    prefix = f"{known.database}_{word}_"
    pattern = re.compile(rf"{re.escape(prefix)}(\d{{14}})")
    keep, points = timedelta(days=settings.rollback_keep_days), []
    with psycopg.connect(known.admin_url, autocommit=True, connect_timeout=5) as connection:
        for name, size in connection.execute(POINTS, [prefix]):
            if found := pattern.fullmatch(name):
                since = datetime.strptime(found[1], STAMP).replace(tzinfo=UTC)
                points.append(RollbackPoint(name, since, since + keep, size))
    return sorted(points, key=lambda point: point.since, reverse=True)


def kept_here(settings: Settings, word: str) -> list[RollbackPoint] | None:
    """The same, changing nothing where there is no database yet; None where none answers."""
    try:
        return [] if has_no_database(settings) else list_kept(settings, word)
    except (psycopg.OperationalError, PharosError):
        return None


def has_no_database(settings: Settings) -> bool:
    """Whether the server that comes with Pharos was never started here."""
    return settings.database_url is None and embedded_postgres.find(settings.data_dir) is None


def database_name(settings: Settings) -> str:
    """The live database's name, whether or not it exists."""
    return DATABASE if settings.database_url is None else urlsplit(settings.database_url).path.lstrip("/")


def remove_old_rollback_points(settings: Settings) -> list[str]:
    """Drop those whose time is over, and what failed as long ago; their names. Does nothing where no administrator's
    address is known, and leaves what a restore at work, or one that was broken off, may have to swap back to."""
    points = kept_here(settings, BEFORE)
    if points is None or has_no_database(settings):
        return []
    kept, needed = (*points, *list_kept(settings, FAILED)), _needed(settings)
    over = [one.database for one in kept if one.until <= datetime.now(UTC) and one.database not in needed]
    for database in over:
        drop_database(read_administration(settings).admin_url, database)
    return over


def _needed(settings: Settings) -> set[str | None]:
    """What a restore at work, or one that was broken off, may have to swap back to."""
    left = read_journal(settings)
    return {left.before, left.database} if left else set()


def find_kept(settings: Settings, name: str) -> RollbackPoint:
    """What is kept under exactly this name, a rollback point or what failed. Raises `NotFound` for anything else, the
    live database among it, and `Conflict` for what a restore may still need."""
    kept = [*list_kept(settings, BEFORE), *list_kept(settings, FAILED)]
    found = next((one for one in kept if one.database == name), None)
    if found is None:
        raise NotFound(
            f"{name} is no rollback point and nothing that a failed restore left, so it was not touched. "
            "`pharos restore --list` names those; `pharos backup prune` removes backups.",
            code="no_rollback_point",
        )
    if name in _needed(settings):
        raise Conflict(
            f"A restore that is at work or was broken off may swap back to {name}. Wait, or end it first with `pharos "
            "restore --resume` or `--abort`.",
            code="restore_unfinished",
        )
    return found


def forget_kept(settings: Settings, name: str) -> RollbackPoint:
    """Remove it for good. Wants a server that answers; raises as `find_kept` and `hold_operation_lock` do."""
    known = read_administration(settings)
    is_served = has_database(known, known.database)
    with hold_operation_lock(settings, "removing a rollback point", with_database=is_served):
        found = find_kept(settings, name)
        drop_database(known.admin_url, name)
    log.warning("restore.rollback_point_removed", database=name, bytes=found.bytes)
    return found


def has_database(known: Administration, name: str) -> bool:
    """Whether the server has a database of this name."""
    with psycopg.connect(known.admin_url, autocommit=True) as connection:
        found = connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone()
    return found is not None


def swap(known: Administration, *, fresh: str, kept: str | None) -> None:
    """Let the database `fresh` take the live one's name, in one transaction; whoever is connected is disconnected.

    The live one is called `kept` from then on (see `free_name`); None where there is no live one. Raises `Unavailable`
    when somebody keeps coming back faster than we can rename.
    """
    names = [name for name in (known.database, fresh) if kept or name == fresh]
    with psycopg.connect(known.admin_url, autocommit=True) as connection:
        for _ in range(SWAP_TRIES):
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = any(%s)", [names]
            )
            try:
                with connection.transaction():
                    if kept is not None:
                        _rename(connection, known.database, kept)
                    _rename(connection, fresh, known.database)
            except psycopg.errors.ObjectInUse:
                continue  # a program of another machine was quicker
            return
    raise Unavailable(
        f"Something keeps connecting to the database {known.database}, so it could not be swapped; nothing was "
        "changed. Stop Pharos on all other machines and run this again.",
        code="database_in_use",
    )


def free_name(known: Administration, word: str) -> str:
    """What the live database may be called when it is live no more, `word` being `BEFORE` or `FAILED`. Names carry a
    second, and two swaps may fall into one."""
    at = datetime.now(UTC)
    while has_database(known, name := f"{known.database}_{word}_{at.strftime(STAMP)}"):
        at += timedelta(seconds=1)
    return name


@contextmanager
def server_at_hand(settings: Settings) -> Iterator[None]:
    """Where nothing runs, the server that comes with Pharos, alone, while the block runs."""
    if read_state(settings) is not None:
        yield
        return
    with postgres_alone(settings):
        yield


@contextmanager
def dropped_afterwards(known: Administration, database: str) -> Iterator[None]:
    """Whatever happens, no database of this name is left; a swapped one has another name by then."""
    try:
        yield
    finally:
        with suppress(psycopg.OperationalError):  # the server is down: the next run drops it before it begins
            drop_database(known.admin_url, database)


def _rename(connection: psycopg.Connection[tuple[object, ...]], old: str, new: str) -> None:
    connection.execute(sql.SQL("alter database {} rename to {}").format(sql.Identifier(old), sql.Identifier(new)))

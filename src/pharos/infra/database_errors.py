"""What an error of the database means to the person who meets it, told by its SQLSTATE."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import Conflict, Invalid, NotAllowed, PharosError, StorageFull, Unavailable

DISK_FULL = "53100"
UNSTORABLE = (None, "22003", "22021", "22P05")
"""Refused by the driver (a NUL in a text), out of range, not in the character set: the sender's, not our fault."""
WITHOUT_SCHEMA = ("42P01", "42703", "42883", "3F000")
"""A table, column, function or schema that is not there: our statements name none that the migrations do not make."""


async def flush_unless_taken(session: AsyncSession, taken: Conflict) -> None:
    """Write what waits in the session. Raises `taken` when a unique index knows it: of two at once one gets through."""
    try:
        await session.flush()
    except IntegrityError as error:
        if isinstance(error.orig, psycopg.errors.UniqueViolation):
            raise taken from error
        raise


def as_pharos_error(error: Exception) -> PharosError | None:
    """The kind that a driver's or pool's error stands for; None for one that only a fault of ours can cause."""
    cause: object = error.orig if isinstance(error, DBAPIError) else error
    sqlstate = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    if sqlstate == DISK_FULL:
        return StorageFull("The disk of the database is full; nothing of this was kept. Make room there and try again.")
    if isinstance(cause, psycopg.DataError) and sqlstate in UNSTORABLE:
        return Invalid("A value holds a character or a number that cannot be stored. Remove it.", code="bad_value")
    if sqlstate in WITHOUT_SCHEMA:
        return Conflict("The database lacks tables of this version. Run `pharos migrate --apply`.", code="not_migrated")
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        reason = cause.diag.message_primary
        return NotAllowed(f"The database refuses: {reason}. `pharos db init` gives the roles their rights.")
    unanswered = (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError)
    if isinstance(error, unanswered):
        words = "The database does not answer now. Try again in a moment; `pharos doctor db` says why."
        return Unavailable(words, code="database_unavailable")
    return None

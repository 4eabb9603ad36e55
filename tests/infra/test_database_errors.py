"""Errors of the database by what they mean: full, not migrated, refused, away, or a fault of ours."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pharos.infra import http
from pharos.infra.database_errors import as_pharos_error
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import Database
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, NotAllowed, PharosError, StorageFull, Unavailable

KINDS: list[tuple[str, type[PharosError] | None]] = [
    ("53100", StorageFull),
    ("42P01", Conflict),
    ("42501", NotAllowed),
    ("57P01", Unavailable),
    ("23505", None),
]


@pytest.mark.parametrize(("sqlstate", "kind"), KINDS)
async def test_each_error_has_its_kind_from_the_driver_and_through_the_pool(
    db: Database, database_urls: DatabaseUrls, sqlstate: str, kind: type[PharosError] | None
) -> None:
    failing = f"do $$ begin raise exception 'it is so' using errcode = '{sqlstate}'; end $$"
    with psycopg.connect(database_urls.app) as connection, pytest.raises(psycopg.Error) as raw:
        connection.execute(failing.encode())
    with pytest.raises(DBAPIError) as wrapped:
        async with system_transaction(db) as session:
            await session.execute(text(failing))
    for error in (raw.value, wrapped.value):
        assert type(as_pharos_error(error)) is (kind or type(None))


async def test_a_full_disk_of_the_database_answers_507(db: Database) -> None:
    with pytest.raises(DBAPIError) as full:
        async with system_transaction(db) as session:
            await session.execute(text("do $$ begin raise exception 'full' using errcode = '53100'; end $$"))
    error = http.as_pharos_error(full.value)
    assert (error.http_status, error.code, error.exit_code) == (507, "storage_full", 7)

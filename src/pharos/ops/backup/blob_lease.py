"""Leases that keep the sweep from removing bytes which a backup copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

import psycopg

from pharos.infra.ids import new_id

BACKUP_REASON = "backup"
BACKUP_LEASE = timedelta(days=1)
"""A killed backup's lease ends by itself after this; the next backup ends it at once."""


def lease_blobs(url: str, *, reason: str, lasts: timedelta) -> UUID:
    """Begin a lease in the database at `url` (the app role's); what is swept from now on waits until it ends."""
    lease_id = new_id()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into blob_leases (id, reason, since, until) values (%s, %s, now(), now() + %s)",
            [lease_id, reason, lasts],
        )
    return lease_id


def end_leases(url: str, *, reason: str) -> None:
    """End all leases of a reason, those of killed processes too."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("delete from blob_leases where reason = %s or until < now()", [reason])


@contextmanager
def backup_lease(url: str) -> Iterator[None]:
    """Keep all bytes while a backup copies them; the caller is the only backup that runs.

    Nothing is done on a schema from before leases: a backup is also taken before the step that makes their table.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        has_table = connection.execute("select to_regclass('blob_leases')").fetchone() != (None,)
    if not has_table:
        yield
        return
    end_leases(url, reason=BACKUP_REASON)
    lease_blobs(url, reason=BACKUP_REASON, lasts=BACKUP_LEASE)
    try:
        yield
    finally:
        end_leases(url, reason=BACKUP_REASON)

"""Counts and fingerprints of every table, the same before a dump and after its restore."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pharos.ops.backup.manifest import TableState

NOT_IN_DUMP = ("blob_leases", "operations")
"""Tables whose rows are about the running installation only: a backup holds them empty and says nothing of them."""

TEXT_FORM = """
    set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set bytea_output = 'hex';
    set extra_float_digits = 1; set lc_monetary = 'C'; set xmlbinary = 'base64'; set search_path = public
    """
"""What decides how a row reads as text; a row's hash is the hash of that text."""

SERVER = """
    select current_setting('server_version'), concat_ws(
        ' ', d.datlocprovider, coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate),
        coalesce(d.datcollversion, '')
    )
    from pg_database d where d.datname = current_database()
    """
"""The column of a locale that is not the C library's has had another name since Postgres 17, and was missing before."""

TABLES = """
    select c.relname, exists (
        select 1 from pg_attribute a
        where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    )
    from pg_class c
    where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace and c.relname <> all(%s)
    order by 1
    """


@dataclass(frozen=True)
class ServerFacts:
    """`version` as the server gives it, `16.14`; `collation` is what sorts the database's text: provider (b, c or i),
    locale and, where the provider has one, its version."""

    version: str
    collation: str


def read_server(connection: psycopg.Connection[Any]) -> ServerFacts:
    """`server_version` and `collation_version` of a manifest."""
    row = connection.execute(SERVER).fetchone()
    assert row is not None
    return ServerFacts(version=row[0], collation=row[1].strip())


def fingerprint_tables(
    connection: psycopg.Connection[Any], only: Collection[str] | None = None
) -> dict[str, TableState]:
    """Rows and fingerprint of each table of the schema `public`, by name, as a role that row security lets see them;
    of those in `only` where it is given.

    Sees what the connection's transaction sees. Changes session settings, so it wants a connection of its own.
    """
    connection.execute(TEXT_FORM)
    names = [name for name, _ in _tables(connection) if only is None or name in only]
    return {name: _fingerprint(connection, name) for name in names}


def count_by_tenant(connection: psycopg.Connection[Any]) -> dict[str, dict[str, int]]:
    """Rows of each tenant in each table that has any: {tenant id: {table: rows}}."""
    counts: dict[str, dict[str, int]] = {}
    for name, is_of_tenants in _tables(connection):
        if is_of_tenants:
            query = sql.SQL("select tenant_id::text, count(*) from {} group by 1").format(sql.Identifier(name))
            for tenant_id, rows in connection.execute(query):
                counts.setdefault(tenant_id, {})[name] = rows
    return counts


def _tables(connection: psycopg.Connection[Any]) -> list[tuple[str, bool]]:
    return connection.execute(TABLES, [list(NOT_IN_DUMP)]).fetchall()


def _fingerprint(connection: psycopg.Connection[Any], name: str) -> TableState:
    query = sql.SQL(
        "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text from {} as t"
    ).format(sql.Identifier(name))
    row = connection.execute(query).fetchone()
    assert row is not None
    return TableState(rows=row[0], fingerprint=row[1])


def count_rows(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Rows of each table, by name."""
    queries = {name: sql.SQL("select count(*) from {}").format(sql.Identifier(name)) for name, _ in _tables(connection)}
    counts = {}
    for name, query in queries.items():
        row = connection.execute(query).fetchone()
        assert row is not None
        counts[name] = int(row[0])
    return counts

"""One table of a backup beside the live tables, in a schema of its own, for whoever merges rows by hand."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pharos.identity.tenants import DEFAULT_SLUG
from pharos.infra.database_roles import make_database, read_administration, role_name, with_database
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.ids import new_id
from pharos.infra.settings import Settings
from pharos.ops.backup.check import check_backup
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import Manifest
from pharos.ops.backup.restore_plan import Tell, programs_for
from pharos.ops.backup.rollback_points import dropped_afterwards
from pharos.ops.backup.scratch import Difference, drop_database, refuse_differences, restore_table
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.running import read_state
from pharos.ops.start_stop import postgres_alone

COLUMNS = """
    select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a
    where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    order by a.attnum
    """
PRIMARY_KEY = """
    select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
    where i.indrelid = %s::regclass and i.indisprimary
    """


@dataclass(frozen=True)
class RestoredTable:
    """A table `into`.`table` with `rows` rows. `missing`: how many of them the live table lacked by primary key;
    `merged`: how many were added to it; `merge`: the statement that adds them."""

    backup: str
    table: str
    into: str
    rows: int
    missing: int
    merged: int
    merge: str


def restore_one_table(
    settings: Settings,
    folder: Path,
    *,
    table: str,
    into: str,
    tell: Tell,
    merges: bool = False,
    identity: Path | None = None,
    signed_by: str | None = None,
) -> RestoredTable:
    """Put a table's rows as they were into the new schema `into` of the live database, which the app cannot see.

    With `merges` those that the live table lacks are added to it, in the same transaction, which also writes the entry
    in the audit log. Raises `NotFound` for a
    table that the backup lacks, `Conflict` when the schema is there already or rows refer to some that are gone, and
    what `check_backup` raises.
    """
    tell("check", f"Checking every file of {folder.name}")
    with remember_faults(settings, folder):
        manifest = check_backup(settings, folder, signed_by=signed_by, identity=identity)
    _refuse_bad_names(manifest, table, into)
    with ExitStack() as held:
        if read_state(settings) is None:
            held.enter_context(postgres_alone(settings))
        held.enter_context(hold_operation_lock(settings, "restore of a table"))
        known = read_administration(settings)
        live, owner = with_database(known.admin_url, known.database), role_name(known.database, "owner")
        beside = f"{known.database}_table"
        with psycopg.connect(live) as connection:
            _refuse_known_schema(connection, into)
        drop_database(known.admin_url, beside)  # one left by a killed run
        with dropped_afterwards(known, beside):
            tell("load", f"Loading {manifest.tables[table].rows} rows of {table}")
            make_database(known.admin_url, database=beside, passwords=known.passwords, roles_of=known.database)
            url = with_database(known.admin_url, beside)
            restore_table(programs_for(settings, known.admin_url, manifest), url, folder, table, owner=owner)
            with remember_faults(settings, folder):
                _compare(url, manifest, table)
            with psycopg.connect(url) as source, psycopg.connect(live) as target:
                rows = _copy(source, target, table, into, owner=owner)
                missing, merge = _missing(target, table, into)
                merged = _merge(target, merge, table) if merges else 0
                _record(target, table, backup=manifest.name, into=into, rows=rows, merged=merged)
    return RestoredTable(manifest.name, table, into, rows, missing, merged, merge.as_string(None))


def _refuse_bad_names(manifest: Manifest, table: str, into: str) -> None:
    if table not in manifest.tables:
        raise NotFound(
            f"{manifest.name} has no table {table}. It has: {', '.join(sorted(manifest.tables))}.", code="no_such_table"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", into) or into == "public" or into.startswith("pg_"):
        raise Invalid(
            f"{into} cannot be the name of a new schema. Use small letters, digits and _: `--into scratch`.",
            code="bad_schema_name",
        )


def _refuse_known_schema(connection: psycopg.Connection[Any], into: str) -> None:
    if connection.execute("select to_regnamespace(%s)", [into]).fetchone() != (None,):
        raise Conflict(
            f"There is a schema {into} already. Choose another name, or drop it: DROP SCHEMA {into} CASCADE.",
            code="schema_exists",
        )


def _compare(url: str, manifest: Manifest, table: str) -> None:
    with psycopg.connect(url) as connection:
        found = fingerprint_tables(connection).get(table)
    if found != manifest.tables[table]:
        refuse_differences([Difference(table, "not the rows that were saved")], name=manifest.name)


def _copy(
    source: psycopg.Connection[Any], target: psycopg.Connection[Any], table: str, into: str, *, owner: str
) -> int:
    """Make the schema and the table in it, with the columns of then; in the transaction of `target`."""
    columns = source.execute(COLUMNS, [f"public.{table}"]).fetchall()
    names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns)
    typed = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in columns)
    there, schema = sql.Identifier(into, table), sql.Identifier(into)
    target.execute(sql.SQL("create schema {} authorization {}").format(schema, sql.Identifier(owner)))
    target.execute(sql.SQL("create table {} ({})").format(there, typed))
    target.execute(sql.SQL("alter table {} owner to {}").format(there, sql.Identifier(owner)))
    reading = sql.SQL("copy (select {} from {}) to stdout").format(names, sql.Identifier("public", table))
    writing = sql.SQL("copy {} ({}) from stdin").format(there, names)
    with source.cursor() as cursor, cursor.copy(reading) as out, target.cursor() as sink, sink.copy(writing) as into_it:
        for chunk in out:
            into_it.write(chunk)
    counted = target.execute(sql.SQL("select count(*) from {}").format(there)).fetchone()
    assert counted is not None
    return int(counted[0])


def _missing(target: psycopg.Connection[Any], table: str, into: str) -> tuple[int, sql.Composed]:
    """How many of its rows the live table lacks, and the statement that adds them."""
    live, there = f"public.{table}", sql.Identifier(into, table)
    key = [name for (name,) in target.execute(PRIMARY_KEY, [live])]
    shared = {name for name, _ in target.execute(COLUMNS, [live])}
    columns = [name for name, _ in target.execute(COLUMNS, [f"{into}.{table}"]) if name in shared]
    same = sql.SQL(" and ").join(
        sql.SQL("n.{} = o.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in key
    )
    lacking = sql.SQL("select count(*) from {} o where not exists (select 1 from {} n where {})").format(
        there, sql.Identifier("public", table), same
    )
    counted = target.execute(lacking).fetchone()
    assert counted is not None
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    merge = sql.SQL("insert into {} ({}) select {} from {} on conflict do nothing;").format(
        sql.Identifier("public", table), names, names, there
    )
    return int(counted[0]), merge


def _merge(target: psycopg.Connection[Any], merge: sql.Composed, table: str) -> int:
    try:
        return target.execute(merge).rowcount
    except psycopg.errors.ForeignKeyViolation as error:
        raise Conflict(
            f"Rows of {table} need rows of another table that are gone ({error.diag.message_detail}). Nothing was "
            "changed. Restore that table first, the same way.",
            code="missing_reference",
        ) from error


def _record(target: psycopg.Connection[Any], table: str, **detail: object) -> None:
    """One entry, of the operator's own tenant: the rows may be of all of them. Last in its transaction, which works as
    that tenant from here on."""
    found = target.execute("select id from tenants where slug = %s", [DEFAULT_SLUG]).fetchone()
    if found is None:
        return
    target.execute("select set_config('pharos.tenant_id', %s, true)", [str(found[0])])
    target.execute(
        "insert into audit_log (tenant_id, id, actor, action, subject, detail) values (%s, %s, %s, %s, %s, %s)",
        [found[0], new_id(), "operator", "data.table_restored", f"table:{table}", json.dumps(detail)],
    )

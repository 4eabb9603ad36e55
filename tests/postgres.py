"""One real Postgres for a whole test session, a migrated template in it, and clones of that."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from filelock import FileLock
from psycopg import sql

from pharos.infra import embedded_postgres, migrate
from pharos.infra.database_roles import DatabaseUrls, make_database, role_name

TEMPLATE = "pharos_template"
OPTIONS = "-c scram_iterations=1 -c max_connections=200 -c full_page_writes=off"
"""Proving a password in the usual 4,096 rounds is half the work of a connection; nothing outlives a crash here."""
PASSWORDS = {kind: f"{kind}-of-the-tests" for kind in ("migrator", "app", "backup", "monitor")}


@dataclass(frozen=True)
class Server:
    """A running server; `admin_url` is its superuser's and used for making databases only."""

    admin_url: str

    def urls(self, database: str) -> DatabaseUrls:
        """Addresses of a clone by role; the roles are the template's."""
        address = self.admin_url.rpartition("@")[2].partition("/")[0]
        url = {
            kind: f"postgresql://{role_name(TEMPLATE, kind)}:{quote(password)}@{address}/{database}"
            for kind, password in PASSWORDS.items()
        }
        return DatabaseUrls(**url, direct=url["app"], owner_role=role_name(TEMPLATE, "owner"))

    def clone(self, database: str, *, template: str = TEMPLATE) -> DatabaseUrls:
        """A fresh copy of the migrated template under a new name."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template {} strategy file_copy").format(
                    sql.Identifier(database), sql.Identifier(template)
                )
            )
            settings = connection.execute(
                "select unnest(setconfig) from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase "
                "join pg_roles r on r.oid = s.setrole where d.datname = %s and r.rolname = %s",
                [TEMPLATE, role_name(TEMPLATE, "app")],
            ).fetchall()
            for (setting,) in settings:
                name, _, value = setting.partition("=")
                connection.execute(
                    sql.SQL("alter role {} in database {} set {} = {}").format(
                        sql.Identifier(role_name(TEMPLATE, "app")),
                        sql.Identifier(database),
                        sql.SQL(name),
                        sql.Literal(value),
                    )
                )
        return self.urls(database)

    def drop(self, database: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))


class FreshDatabase:
    """A clone that is as new after each use: emptied where a clone of its own would copy and remove 600 files."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._make()

    def _make(self) -> None:
        self.name = f"test_{secrets.token_hex(6)}"
        self.urls = self.server.clone(self.name)
        with self._inside() as connection:
            self._schema = connection.execute(SCHEMA).fetchone()
            self._sequences = connection.execute(SEQUENCES).fetchall()
            self._seeds = {table: _read(connection, table) for table in _filled(connection)}

    def _inside(self) -> psycopg.Connection:
        return psycopg.connect(self.server.admin_url.rpartition("/")[0] + f"/{self.name}")

    def renew(self) -> None:
        """Make its rows what they were; where its schema is another one, `urls` and `name` are a new clone's."""
        with self._inside() as connection:
            is_same = connection.execute(SCHEMA).fetchone() == self._schema
            if is_same:
                # neither foreign keys nor what keeps the audit log from losing rows
                connection.execute("set session_replication_role = replica")
                for table in _filled(connection):
                    connection.execute(sql.SQL("delete from {}").format(sql.Identifier(table)))
                for sequence in self._sequences:
                    connection.execute("select setval(%s::regclass, %s, %s)", sequence)
                for table, rows in self._seeds.items():
                    with connection.cursor().copy(sql.SQL("copy {} from stdin").format(sql.Identifier(table))) as copy:
                        copy.write(rows)
        if not is_same:
            self.drop()
            self._make()

    def drop(self) -> None:
        self.server.drop(self.name)


SCHEMA = """
    select (select sum(hashtext(xmin::text)) from pg_class where relnamespace = 'public'::regnamespace),
           (select sum(hashtext(a.xmin::text)) from pg_attribute a join pg_class c on c.oid = a.attrelid
            where c.relnamespace = 'public'::regnamespace),
           (select sum(hashtext(xmin::text)) from pg_policy),
           (select sum(hashtext(xmin::text)) from pg_constraint where connamespace = 'public'::regnamespace),
           (select sum(hashtext(t.xmin::text)) from pg_trigger t join pg_class c on c.oid = t.tgrelid
            where c.relnamespace = 'public'::regnamespace),
           (select sum(hashtext(xmin::text)) from pg_proc where pronamespace = 'public'::regnamespace),
           (select array_agg(setrole || setconfig::text order by setrole) from pg_db_role_setting
            where setdatabase = (select oid from pg_database where datname = current_database()))
"""
"""Which transactions wrote the tables, their columns, policies, constraints, triggers and functions; the settings."""

SEQUENCES = """
    select format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), last_value is not null
    from pg_sequences where schemaname = 'public'
"""
"""Set back one by one: `truncate … restart identity` would write new files, which is what a renewal spares."""


def _filled(connection: psycopg.Connection) -> list[str]:
    tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    is_filled = sql.SQL(" union all ").join(
        sql.SQL("select {} where exists (select from {})").format(sql.Literal(table), sql.Identifier(table))
        for (table,) in tables
    )
    return [table for (table,) in connection.execute(is_filled)]


def _read(connection: psycopg.Connection, table: str) -> bytes:
    with connection.cursor().copy(sql.SQL("copy {} to stdout").format(sql.Identifier(table))) as copy:
        return b"".join(copy)


@contextmanager
def shared_server(directory: Path) -> Iterator[Server]:
    """The server of this test session: the first process in starts it, the last one out stops it.

    `directory` is the same for all processes of the session and nobody else's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state, lock = directory / "server.json", FileLock(directory / "lock")
    with lock:
        if not state.exists():
            state.write_text(json.dumps({"users": 0, "admin_url": _start(directory)}))
        known = json.loads(state.read_text())
        state.write_text(json.dumps({**known, "users": known["users"] + 1}))
    try:
        yield Server(admin_url=known["admin_url"])
    finally:
        with lock:
            known = json.loads(state.read_text())
            if known["users"] > 1:
                state.write_text(json.dumps({**known, "users": known["users"] - 1}))
            else:
                cluster = embedded_postgres.find(directory / "data")
                if cluster is not None:
                    embedded_postgres.stop(cluster, timeout_seconds=0.0)  # nothing of it need be written
                    embedded_postgres.delete(directory / "data")
                state.unlink()


def _start(directory: Path) -> str:
    # A process of its own starts the server and stays its parent: the test process that came first may leave first.
    cluster = embedded_postgres.initialise(directory / "data")
    embedded_postgres.write_configuration(cluster, fsync=False)
    with (directory / "postgres.log").open("ab") as log:
        subprocess.run(
            [str(cluster.binaries / "bin" / "pg_ctl"), "-D", str(cluster.data), "-o", OPTIONS, "-w", "start"],
            check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=cluster.home,
            user=cluster.user, group=cluster.group, extra_groups=[],
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while True:
        try:
            make_database(cluster.admin_url, database=TEMPLATE, passwords=PASSWORDS)
            break
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    urls = Server(admin_url=cluster.admin_url).urls(TEMPLATE)
    migrate.upgrade(urls.migrator, owner=urls.owner_role)
    return cluster.admin_url

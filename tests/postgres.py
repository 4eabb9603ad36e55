"""One real Postgres for a whole test session, a migrated template in it, and clones of that in milliseconds."""

from __future__ import annotations

import json
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
            [str(cluster.binaries / "bin" / "pg_ctl"), "-D", str(cluster.data), "-w", "start"],
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

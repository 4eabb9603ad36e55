"""The five roles of a database and who may connect as whom.

    <prefix>_owner     owns every table; nobody logs in as it
    <prefix>_migrator  becomes the owner while it migrates
    <prefix>_app       what web and worker are: owns nothing, bypasses nothing
    <prefix>_backup    reads every tenant (BYPASSRLS, REPLICATION), writes nothing
    <prefix>_monitor   reads the server's statistics

The prefix is the database's name, so that several installations can share a server.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from pharos.infra import embedded_postgres
from pharos.infra.errors import Conflict, Invalid, Unavailable
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings

DATABASE = "pharos"
LOGIN_ROLES = ("migrator", "app", "backup", "monitor")
MIN_VECTOR = (0, 8, 1)
"""pgvector from which iterative index scans keep a filtered search complete."""
MIN_SERVER, MAX_SERVER = 16, 18

# A plan cached for one tenant searches another's rows with the wrong index: 60 % of recall lost in measurements.
APP_SETTINGS = {
    "search_path": "public",
    "plan_cache_mode": "force_custom_plan",
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.ef_search": "100",
    "idle_in_transaction_session_timeout": "60s",
}


@dataclass(frozen=True)
class DatabaseUrls:
    """Addresses of one database by role. `app` may lead through a pooler; all others go past it: LISTEN, migrations,
    which hold a lock and a role in their session, and the roles that a pooler does not know."""

    app: str
    direct: str
    migrator: str
    backup: str
    monitor: str
    owner_role: str


def connection_urls(settings: Settings) -> DatabaseUrls:
    """Where to connect, as which role. Raises `Unavailable` when nothing was initialised yet."""
    passwords = _read_passwords(settings.data_dir)
    if settings.database_url is not None:
        app, database = settings.database_url, urlsplit(settings.database_url).path.lstrip("/")
        base = settings.database_direct_url or app
    else:
        cluster = embedded_postgres.find(settings.data_dir)
        if cluster is None or not passwords:
            raise Unavailable(
                f"There is no database in {settings.data_dir} yet. Start Pharos once with `pharos up`.",
                code="database_not_initialised",
            )
        database = DATABASE
        base = cluster.url(user=role_name(database, "app"), password="", database=database)
        app = _as_role(base, database, "app", passwords)
    return DatabaseUrls(
        app=app,
        direct=settings.database_direct_url or app,
        migrator=_as_role(base, database, "migrator", passwords),
        backup=_as_role(base, database, "backup", passwords),
        monitor=_as_role(base, database, "monitor", passwords),
        owner_role=role_name(database, "owner"),
    )


def role_name(database: str, kind: str) -> str:
    """The server-wide name of a role: `pharos_app`."""
    return f"{database}_{kind}"


def initialise_database(settings: Settings) -> DatabaseUrls:
    """Make database, roles, rights and the vector extension; safe to repeat. Raises as `read_administration` does, and
    `Conflict` for a server that is too old or lacks pgvector."""
    known = read_administration(settings)
    make_database(known.admin_url, database=known.database, passwords=known.passwords)
    return connection_urls(settings)


@dataclass(frozen=True)
class Administration:
    """What making and renaming databases needs: an administrator's address, the installation's database, and the
    passwords of its roles by kind. The server need not run, nor the database exist."""

    admin_url: str
    database: str
    passwords: dict[str, str]


def read_administration(settings: Settings) -> Administration:
    """The embedded server's superuser, its cluster made if there is none; else `PHAROS_DATABASE_ADMIN_URL`, which is
    used for nothing else. Raises `Invalid` without one."""
    passwords = _ensure_passwords(settings.data_dir)
    if settings.database_url is None:
        admin_url, database = embedded_postgres.initialise(settings.data_dir).admin_url, DATABASE
    else:
        if settings.database_admin_url is None:
            raise Invalid(
                "Preparing a database needs an administrator: set PHAROS_DATABASE_ADMIN_URL and run the command again.",
                code="no_admin_url",
            )
        admin_url, target = settings.database_admin_url.get_secret_value(), urlsplit(settings.database_url)
        database = target.path.lstrip("/")
        if unquote(target.username or "") != role_name(database, "app") or not target.password:
            raise Invalid(
                f"PHAROS_DATABASE_URL must name the role {role_name(database, 'app')} with a password of your choice; "
                "`pharos db init` makes it.",
                code="bad_app_role",
            )
        passwords = {**passwords, "app": unquote(target.password)}
    return Administration(admin_url, database, passwords)


def make_database(admin_url: str, *, database: str, passwords: dict[str, str], roles_of: str | None = None) -> None:
    """What `initialise_database` does on a server, as its administrator; `passwords` by kind of role.

    `roles_of` names the database whose roles it shall have, when it is to stand beside that one.
    """
    prefix = roles_of or database
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", database):
        raise Invalid("A database's name is made of small letters, digits and _.", code="bad_database_name")
    with psycopg.connect(admin_url, autocommit=True) as connection:
        _check_server(connection)
        _make_roles(connection, prefix, passwords)
        known = connection.execute("select 1 from pg_database where datname = %s", [database]).fetchone()
        if known is None:
            owner = sql.Identifier(role_name(prefix, "owner"))
            connection.execute(
                sql.SQL("create database {} owner {} encoding 'UTF8' template template0").format(
                    sql.Identifier(database), owner
                )
            )
    with psycopg.connect(with_database(admin_url, database), autocommit=True) as connection:
        _prepare(connection, database, prefix)


def _check_server(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    major = connection.info.server_version // 10000
    if not MIN_SERVER <= major <= MAX_SERVER:
        raise Conflict(
            f"This server is Postgres {major}; Pharos runs on {MIN_SERVER} to {MAX_SERVER}. Use another server.",
            code="server_version",
        )
    found = connection.execute("select default_version from pg_available_extensions where name = 'vector'").fetchone()
    if found is None or tuple(map(int, str(found[0]).split("."))) < MIN_VECTOR:
        raise Conflict(
            f"pgvector {'.'.join(map(str, MIN_VECTOR))} or newer must be installed on the server; it has "
            f"{found[0] if found else 'none'}. Install the package postgresql-{major}-pgvector there.",
            code="no_pgvector",
        )


def _make_roles(connection: psycopg.Connection[tuple[object, ...]], database: str, passwords: dict[str, str]) -> None:
    known = {row[0] for row in connection.execute("select rolname from pg_roles")}
    owner = role_name(database, "owner")
    rights = {
        "owner": "nologin nosuperuser nobypassrls",
        "migrator": "login nosuperuser nobypassrls",
        "app": "login nosuperuser nobypassrls noreplication nocreatedb nocreaterole",
        "backup": "login nosuperuser bypassrls replication",
        "monitor": "login nosuperuser nobypassrls",
    }
    for kind, words in rights.items():
        name = role_name(database, kind)
        verb = "alter" if name in known else "create"
        statement = sql.SQL(f"{verb} role {{}} {words}").format(sql.Identifier(name))
        if kind in passwords:
            statement += sql.SQL(" password {}").format(sql.Literal(passwords[kind]))
        connection.execute(statement)
    migrator, monitor = role_name(database, "migrator"), role_name(database, "monitor")
    connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(owner), sql.Identifier(migrator)))
    connection.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(owner)))
    connection.execute(sql.SQL("grant pg_monitor to {}").format(sql.Identifier(monitor)))


def _prepare(connection: psycopg.Connection[tuple[object, ...]], database: str, prefix: str) -> None:
    names = {kind: sql.Identifier(role_name(prefix, kind)) for kind in ("owner", "app", "backup", "monitor")}
    connection.execute("create extension if not exists vector")
    for statement in (
        "alter schema public owner to {owner}",
        "revoke create on schema public from public",
        "grant usage on schema public to {app}, {backup}, {monitor}",
        "alter default privileges for role {owner} grant select, insert, update, delete on tables to {app}",
        "alter default privileges for role {owner} grant usage, select on sequences to {app}",
        "alter default privileges for role {owner} grant select on tables to {backup}",
        "alter default privileges for role {owner} grant select on sequences to {backup}",
    ):
        connection.execute(sql.SQL(statement).format(**names))
    for name, value in APP_SETTINGS.items():
        connection.execute(
            sql.SQL("alter role {app} in database {database} set {name} = {value}").format(
                app=names["app"],
                database=sql.Identifier(database),
                name=sql.SQL(name),
                value=sql.SQL(value) if name == "search_path" else sql.Literal(value),
            )
        )


def _ensure_passwords(data_dir: Path) -> dict[str, str]:
    passwords = _read_passwords(data_dir)
    missing = [kind for kind in LOGIN_ROLES if kind not in passwords]
    if missing:
        passwords |= {kind: secrets.token_urlsafe(32) for kind in missing}
        write_secret(_passwords_file(data_dir), json.dumps(passwords))
    return passwords


def _read_passwords(data_dir: Path) -> dict[str, str]:
    file = _passwords_file(data_dir)
    passwords: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return passwords


def _passwords_file(data_dir: Path) -> Path:
    return data_dir / "secrets" / "database-roles.json"


def _as_role(base: str, database: str, kind: str, passwords: dict[str, str]) -> str:
    parts = urlsplit(base)
    host = parts.netloc.rpartition("@")[2]
    login = f"{quote(role_name(database, kind))}:{quote(passwords.get(kind, ''), safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


def with_database(url: str, database: str) -> str:
    """The same server and role, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(database)}"))

"""Load a backup's database: into a scratch server that is thrown away, or beside the live one; and compare it.

A dump is loaded without its owners and rights: the roles of the server it goes to own it, whatever the installation was
called where it was made. Its rights are granted afterwards, with those roles' names.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from pharos.infra import embedded_postgres
from pharos.infra.database_roles import LOGIN_ROLES, make_database, role_name, with_database
from pharos.infra.envelope import Sealed, open_bytes, place
from pharos.infra.errors import Conflict, StorageFull
from pharos.infra.keyring import EncryptionSecret
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.ops.backup.dump import ENVIRONMENT, NO_SPACE, for_a_client
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import DATABASE_FOLDER, Manifest
from pharos.ops.backup.scratch_folder import scratch_folder
from pharos.ops.log_files import open_log

JOBS = 2
CHOSEN = "--use-list=/dev/stdin"
"""Not a file: a kill would leave it, with the names of everything in the database."""
MADE_BY_US = re.compile(r"^\d+; \d+ \d+ (SCHEMA - public|EXTENSION|COMMENT|DEFAULT ACL|ACL)\b")
"""Lines of `pg_restore --list` that `make_database` has done already, or that name roles."""
RIGHTS = re.compile(r"^\d+; \d+ \d+ ACL (?!- SCHEMA public )")
FENCE = re.compile(r"^\d+; \d+ \d+ (ROW SECURITY|POLICY) ")
"""Row security comes last: the owner is subject to it, and could not check foreign keys any more."""
ROLE = re.compile(r"\b\w+_(owner|migrator|app|backup|monitor)\b")


@dataclass(frozen=True)
class ScratchServer:
    """A running server; `passwords` are those of the roles that databases loaded into it get."""

    admin_url: str
    passwords: dict[str, str]


@dataclass(frozen=True)
class Loaded:
    """A loaded database: `admin_url` and `backup_url` lead to it as administrator and as the role that reads all."""

    database: str
    admin_url: str
    backup_url: str


@dataclass(frozen=True)
class Difference:
    """A table that is not what the manifest says, in words."""

    table: str
    said: str


@dataclass(frozen=True)
class OpenedSecrets:
    """How many data keys and secrets opened; `unopened` names those that did not, as `table id`."""

    data_keys: int
    secrets: int
    unopened: tuple[str, ...]


@contextmanager
def scratch_server(settings: Settings) -> Iterator[ScratchServer]:
    """An embedded Postgres of its own below `<data_dir>/tmp`, on a free port; removed at the end, also after a failure.

    What a killed process left there is removed first. Its server dies with this process.
    """
    with scratch_folder(settings.data_dir, prefix="scratch-") as home:
        cluster = embedded_postgres.initialise(home)
        with open_log(settings.data_dir, "scratch") as output:
            process = embedded_postgres.start(cluster, output=output, fsync=False)
        try:
            embedded_postgres.wait_until_ready(cluster, process)
            yield ScratchServer(cluster.admin_url, dict.fromkeys(LOGIN_ROLES, secrets.token_urlsafe(24)))
        finally:
            embedded_postgres.stop(cluster, timeout_seconds=5.0)
            process.kill()  # one that had no lock yet was not found by it
            process.wait()  # our child: unasked for, it would stay in the list of processes


def load_backup(server: ScratchServer, folder: Path, *, database: str = "pharos") -> Loaded:
    """Load the dump of a backup's folder into a new database of a scratch server. Raises as `load_dump` does."""
    return load_dump(
        server.admin_url,
        folder,
        database=database,
        roles_of=database,
        passwords=server.passwords,
        programs=shipped_programs(),
    )


def shipped_programs() -> Path:
    """The folder with the `pg_restore` that comes with the install."""
    return reachable_binaries(os.geteuid(), os.getegid()) / "bin"


def load_dump(
    admin_url: str, folder: Path, *, database: str, roles_of: str, passwords: dict[str, str], programs: Path
) -> Loaded:
    """Load a dump into the database `database`, made anew, which belongs to the roles of the database `roles_of`.

    `programs` holds a `pg_restore` that is no older than the dump.

    Raises `Conflict` (`dump_not_loaded`) when it does not load, `StorageFull` when the server's disk has no room; then
    the half-loaded database is dropped.
    """
    drop_database(admin_url, database)
    make_database(admin_url, database=database, passwords=passwords, roles_of=roles_of)
    url, dump = with_database(admin_url, database), folder / DATABASE_FOLDER
    try:
        lines = _pg_restore(programs, "--list", str(dump)).splitlines()
        wanted = [line for line in lines if not line.startswith(";") and not MADE_BY_US.match(line)]
        fences = [line for line in wanted if FENCE.match(line)]
        for part in ([line for line in wanted if line not in fences], fences):
            _restore_lines(programs, url, dump, part, owner=role_name(roles_of, "owner"))
        _grant(programs, url, dump, [line for line in lines if RIGHTS.match(line)], roles_of)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("analyze")
    except BaseException:
        drop_database(admin_url, database)
        raise
    backup_url = _as_role(url, role_name(roles_of, "backup"), passwords["backup"])
    return Loaded(database, url, backup_url)


def drop_database(admin_url: str, database: str) -> None:
    """Drop a database and end what is connected to it; nothing happens when there is none."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))


def compare_tables(loaded: Loaded, manifest: Manifest) -> list[Difference]:
    """Every table's rows and fingerprint against the manifest, before any migration; empty when all are the same."""
    with psycopg.connect(loaded.backup_url) as connection:
        found = fingerprint_tables(connection)
    differences = [
        Difference(name, f"{state.rows} rows that the manifest does not name")
        for name, state in found.items()
        if name not in manifest.tables
    ]
    for name, wanted in manifest.tables.items():
        if name not in found:
            differences.append(Difference(name, f"missing; it had {wanted.rows} rows"))
        elif found[name].rows != wanted.rows:
            differences.append(Difference(name, f"{found[name].rows} rows instead of {wanted.rows}"))
        elif found[name].fingerprint != wanted.fingerprint:
            differences.append(Difference(name, f"{wanted.rows} rows, but not the same ones"))
    return sorted(differences, key=lambda difference: difference.table)


def refuse_differences(differences: Sequence[Difference], *, name: str) -> None:
    """Raise `Conflict` (`backup_differs`) naming each table, unless there are none."""
    if differences:
        said = "; ".join(f"{difference.table}: {difference.said}" for difference in differences)
        raise Conflict(
            f"What was loaded from {name} is not what it held when it was made: {said}. Nothing was changed. Take "
            "another backup: `pharos restore --list`.",
            code="backup_differs",
            tables=[difference.table for difference in differences],
        )


def open_secrets(loaded: Loaded, keys: Sequence[EncryptionSecret]) -> OpenedSecrets:
    """Open every data key and every secret of every tenant with these keys alone."""
    by_id = {key.id: key.secret for key in keys}
    data_keys: dict[tuple[object, object], bytes] = {}
    opened, unopened = 0, []
    with psycopg.connect(loaded.backup_url) as connection:
        wrapped = connection.execute("select tenant_id, id, encryption_key_id, nonce, wrapped from data_keys")
        for tenant_id, row_id, key_id, nonce, content in wrapped:
            at = place(tenant_id, "data_keys", row_id)
            key = open_bytes(by_id[key_id], Sealed(nonce, content), at) if key_id in by_id else None
            if key is None:
                unopened.append(f"data_keys {row_id}")
            else:
                data_keys[tenant_id, row_id] = key
        sealed = connection.execute("select tenant_id, id, data_key_id, nonce, ciphertext from secrets")
        for tenant_id, row_id, data_key_id, nonce, content in sealed:
            data_key = data_keys.get((tenant_id, data_key_id))
            at = place(tenant_id, "secrets", row_id)
            if data_key is None or open_bytes(data_key, Sealed(nonce, content), at) is None:
                unopened.append(f"secrets {row_id}")
            else:
                opened += 1
    return OpenedSecrets(len(data_keys), opened, tuple(unopened))


def refuse_unopened(
    opened: OpenedSecrets,
    *,
    name: str,
    keys: str = "its escrow",
    mend: str = "Take another backup: `pharos restore --list`.",
) -> None:
    """Raise `Conflict` (`secrets_not_opened`) when a secret did not open with the keys of `keys`; `mend` says what to
    do."""
    if opened.unopened:
        raise Conflict(
            f"{len(opened.unopened)} of the secrets in {name} do not open with the keys of {keys} (first: "
            f"{opened.unopened[0]}). Nothing was changed. {mend}",
            code="secrets_not_opened",
            unopened=list(opened.unopened[:20]),
        )


def restore_table(programs: Path, url: str, folder: Path, table: str, *, owner: str) -> None:
    """Load one table's columns and rows, without its keys and fence, into the database at `url`."""
    lines = _pg_restore(programs, "--list", str(folder / DATABASE_FOLDER)).splitlines()
    wanted = [line for line in lines if re.match(rf"^\d+; \d+ \d+ (TABLE|TABLE DATA|TYPE) public {table} ", line)]
    types = [line for line in lines if re.match(r"^\d+; \d+ \d+ TYPE public ", line)]
    _restore_lines(programs, url, folder / DATABASE_FOLDER, [*types, *wanted], owner=owner)


def _restore_lines(programs: Path, url: str, dump: Path, lines: Sequence[str], *, owner: str) -> None:
    address, environment = for_a_client(url)
    _pg_restore(
        programs,
        *("--exit-on-error", "--no-owner", "--no-acl", f"--role={owner}", f"--jobs={JOBS}"),
        *(CHOSEN, f"--dbname={address}", str(dump)),
        environment=environment,
        lines=lines,
    )


def _grant(programs: Path, url: str, dump: Path, lines: Sequence[str], roles_of: str) -> None:
    """Exactly the rights of the dump: what default privileges gave the roles while loading is taken back first."""
    text = _pg_restore(programs, CHOSEN, "--file=-", str(dump), lines=lines)
    given = [line for line in text.splitlines() if line.startswith(("GRANT ", "REVOKE "))]
    roles = sql.SQL(", ").join(sql.Identifier(role_name(roles_of, kind)) for kind in ("app", "backup", "monitor"))
    with psycopg.connect(url) as connection:
        for kind in ("tables", "sequences"):
            connection.execute(
                sql.SQL("revoke all on all {} in schema public from {}").format(sql.SQL(kind), roles),
            )
        for line in given:
            what, word, whom = re.split(r" (TO|FROM) ", line, maxsplit=1)
            whom = ROLE.sub(lambda found: role_name(roles_of, found[1]), whom)
            connection.execute(f"{what} {word} {whom}".encode())


def _pg_restore(
    programs: Path, *arguments: str, environment: Mapping[str, str] = ENVIRONMENT, lines: Sequence[str] = ()
) -> str:
    """Its output. `lines` of the table of contents are those that `CHOSEN` means."""
    done = subprocess.run(  # noqa: S603 - our own program
        [str(programs / "pg_restore"), *arguments],
        env=environment,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    if NO_SPACE in done.stderr:
        raise StorageFull(
            "The disk of the database server is full, so the backup could not be loaded; what was loaded is removed "
            "again. Free some space (`pharos doctor` says where) and run it again."
        )
    reason = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr.strip()[-300:])
    raise Conflict(
        f"The dump does not load: {reason}. Nothing was changed. `pharos backup verify` says what is wrong with the "
        "backup; another one may be whole: `pharos restore --list`.",
        code="dump_not_loaded",
    )


def _as_role(url: str, role: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}"))

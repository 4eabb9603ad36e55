"""An installation on a Postgres 16 that others run, where text is sorted as Germans do, is brought back on our own 18.

One such server with one installation, made by commands, and one backup of it, for the whole module.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs
from tests.make import MadeTenant, make_document, make_project
from tests.ops.installation import Place, first_day, quiet, with_runtime
from tests.ops.server_16 import LANGUAGE, server_16
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra import embedded_postgres
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.ids import DocumentId
from pharos.infra.settings import Settings
from pharos.library.ingest import ingest_documents
from pharos.ops.backup import signing
from pharos.ops.backup.escrow import make_drill_identity
from pharos.ops.backup.fingerprints import fingerprint_tables, read_server
from pharos.ops.backup.manifest import SIGNATURE, TableState, read_manifest, write_manifest, write_private
from pharos.ops.backup.restore import restore
from pharos.ops.backup.restore_plan import prepare
from pharos.ops.backup.scratch import shipped_programs
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.backup.verification import verify_backup
from pharos.ops.start_stop import postgres_alone
from pharos.runtime import Runtime

pytestmark = [pytest.mark.prove, pytest.mark.xdist_group("restore_from_16")]  # one server for all of them

GERMAN = ["apfel", "Äpfel", "Bär", "éclair", "ein Text", "eintönig", "Zebra"]
"""As a German reader expects them; `Zebra` comes first and `Äpfel` near the end where bytes alone count."""
IN_ORDER = "select name from projects where tenant_id = %s order by name"
BY_INDEX = "set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off"
KEPT = {"audit_log", "security_events", "backups", "drills"}
"""A restore writes into the logs, and keeps what this machine knows of backups."""


@dataclass(frozen=True)
class Moved(Place):
    """`state` is that of every table, and `names` those of the projects in the server's order."""

    state: dict[str, TableState]
    names: list[str]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("from-16")
    with server_16(folder / "server") as server:
        address = server.admin_url.rpartition("@")[2].partition("/")[0]
        settings = Settings(
            _env_file=None,
            data_dir=folder / "data",
            database_url=f"postgresql://house_app:of-the-test@{address}/house",
            database_admin_url=server.admin_url,
        )
        for command in ("db init", "migrate --apply", "db check"):
            done = pharos(settings, *command.split())
            assert done.exit_code == 0, done.output
        tenant, ledger = with_runtime(settings, first_day)
        with_runtime(settings, lambda runtime: fill(runtime, tenant))
        with psycopg.connect(connection_urls(settings).backup) as connection:
            state = fingerprint_tables(connection)
            names = [row[0] for row in connection.execute(IN_ORDER, [tenant.id])]
        yield Moved(settings, server, make_backup(settings), tenant, ledger, state, names)


async def fill(runtime: Runtime, tenant: MadeTenant) -> None:
    """A project of each name with a document that can be searched."""
    made = []
    for name in GERMAN:
        project = await make_project(runtime.db, tenant.admin, name=name)
        content = f"{name}: ein Text über Äpfel und Bären."
        made.append(await make_document(runtime, tenant.admin, project, name=f"{name}.txt", content=content.encode()))
    await ingest_documents(runtime, tenant.id, [DocumentId(document.id) for document in made])


def pharos(settings: Settings, *words: str) -> Result:
    environment = {"PHAROS_DATA_DIR": str(settings.data_dir)}
    if settings.database_url is not None and settings.database_admin_url is not None:
        environment["PHAROS_DATABASE_URL"] = settings.database_url
        environment["PHAROS_DATABASE_ADMIN_URL"] = settings.database_admin_url.get_secret_value()
    return CliRunner().invoke(app, list(words), env=environment)


def by_name_index(url: str, tenant: MadeTenant) -> list[str]:
    """The projects as the unique index on their names has them, read without any sorting."""
    with psycopg.connect(url) as connection:
        connection.execute(BY_INDEX)
        plan = connection.execute(f"explain {IN_ORDER}", [tenant.id]).fetchall()
        assert "uq_projects_name" in str(plan)
        assert "Sort" not in str(plan)
        return [row[0] for row in connection.execute(IN_ORDER, [tenant.id])]


def test_its_backup_is_made_with_its_own_clients_and_says_where_it_is_from(moved: Moved) -> None:
    manifest = read_manifest(moved.folder)
    listing = [str(shipped_programs() / "pg_restore"), "--list", str(moved.folder / "database")]
    contents = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert f"Dumped by pg_dump version: {manifest.server_version}" in contents
    assert manifest.server_version.startswith("16.")
    assert manifest.collation_version.startswith("c ")
    assert manifest.tables.keys() == moved.state.keys()
    if LANGUAGE in manifest.collation_version:  # where the machine can make that locale
        assert sorted(moved.names, key=str) != moved.names
        assert [name for name in moved.names if name in GERMAN] == by_name_index_of_16(moved)


def by_name_index_of_16(moved: Moved) -> list[str]:
    return [name for name in by_name_index(connection_urls(moved.settings).backup, moved.tenant) if name in GERMAN]


def test_a_dry_run_names_the_other_server_and_its_other_rules_for_sorting(moved: Moved, tmp_path: Path) -> None:
    settings, identity = Settings(_env_file=None, data_dir=tmp_path / "new"), make_drill_identity(moved.settings)
    manifest = read_manifest(moved.folder)
    trust = ("--identity", str(identity), "--signed-by", manifest.signed_by)
    planned = pharos(settings, "restore", "--dry-run", str(moved.folder), *trust)
    said = " ".join(planned.stdout.split())
    version = embedded_postgres.shipped_version()
    assert f"made on Postgres {manifest.server_version}, and this is {version}." in said
    assert f"sorted by {manifest.collation_version}, and is by b C.UTF-8 1 here: indexes are rebuilt" in said


def test_it_is_brought_back_whole_on_the_embedded_18_and_sorted_by_its_rules(moved: Moved, tmp_path: Path) -> None:
    settings, identity = Settings(_env_file=None, data_dir=tmp_path / "new"), make_drill_identity(moved.settings)
    manifest = read_manifest(moved.folder)
    with capture_logs() as logged:
        told: list[str] = []
        restore(
            settings,
            moved.folder,
            identity=identity,
            signed_by=manifest.signed_by,
            keep_sessions=True,
            tell=lambda _, said: told.append(said),
        )
    try:
        assert [line for line in told if "Postgres 16" in line]
        assert [line for line in told if "sorted by c " in line]
        [event] = [event for event in logged if event["event"] == "restore.server_differed"]
        assert (event["version_then"], event["collation_now"]) == (manifest.server_version, "b C.UTF-8 1")
        with postgres_alone(settings):
            assert_is_ours_now(settings, moved)
    finally:
        embedded_postgres.delete(settings.data_dir)


def assert_is_ours_now(settings: Settings, moved: Moved) -> None:
    """Every row is there, text has this server's order, and what must be unique is kept so."""
    urls = connection_urls(settings)
    refuse_unsafe_role(urls.app)
    with psycopg.connect(urls.backup) as connection:
        here, state = read_server(connection), fingerprint_tables(connection)
        recorded = connection.execute(
            "select datcollversion, pg_database_collation_actual_version(oid) from pg_database where datname = 'pharos'"
        ).fetchone()
        invalid = connection.execute("select indexrelid::regclass from pg_index where not indisvalid").fetchall()
    assert (here.collation, here.version) == (embedded_postgres.COLLATION, embedded_postgres.shipped_version())
    assert (recorded, invalid) == (("1", "1"), [])
    assert {name: state[name] for name in state.keys() - KEPT} == {
        name: moved.state[name] for name in moved.state.keys() - KEPT
    }
    assert by_name_index(urls.backup, moved.tenant) == sorted(moved.names, key=str.encode)
    with psycopg.connect(urls.direct) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(moved.tenant.id)])
        for name in GERMAN:
            found = connection.execute("select count(*) from projects where name = %s", [name]).fetchone()
            assert found == (1,)
        with pytest.raises(psycopg.errors.UniqueViolation, match="uq_projects_name"):
            connection.execute(
                "insert into projects (tenant_id, id, name) values (%s, gen_random_uuid(), 'Äpfel')", [moved.tenant.id]
            )


def test_a_backup_of_18_is_refused_on_16_before_anything_is_changed(moved: Moved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moved.folder, tmp_path / moved.folder.name))
    content = write_manifest(folder, replace(read_manifest(folder), server_version="18.4"))
    write_private(folder / SIGNATURE, signing.sign(moved.settings, content))
    with pytest.raises(Conflict, match="made on Postgres 18 and does not load into 16") as planned:
        prepare(moved.settings, folder, identity=None, signed_by=None, tell=quiet, compares=True)
    with pytest.raises(Conflict) as refused:
        restore(moved.settings, folder, tell=quiet)
    assert planned.value.code == refused.value.code == "older_server"
    with psycopg.connect(moved.server.admin_url) as connection:
        databases = connection.execute("select datname from pg_database where datname like 'house%'").fetchall()
    assert databases == [("house",)]


def test_it_is_verified_and_brought_back_in_its_place(moved: Moved) -> None:
    verify_backup(moved.settings, moved.folder, tell=quiet)
    done = restore(moved.settings, moved.folder, tell=quiet)
    assert done.rollback_point is not None
    again = json.loads(pharos(moved.settings, "restore", "--dry-run", "--json", str(moved.folder)).stdout)
    assert again["collation"]["then"] == again["collation"]["now"]
    assert by_name_index_of_16(moved) == [name for name in moved.names if name in GERMAN]

"""Migrations on a real server: from nothing to the head and back, and a step that fails changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Server

from pharos.infra import migrate
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import Conflict
from pharos.infra.ids import new_id

STEP = '''"""{message}"""

from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("create table note_of_the_test (id uuid primary key)")
    op.execute("{statement}")


def downgrade() -> None:
    op.execute("drop table note_of_the_test")
'''


@pytest.fixture
def urls(database_server: Server) -> Iterator[DatabaseUrls]:
    name = f"migrations_{new_id().hex[-12:]}"
    yield database_server.clone(name)
    database_server.drop(name)


@pytest.fixture(scope="module")
def unchanged(database_server: Server) -> Iterator[DatabaseUrls]:
    """A database that tests of this module leave as they found it."""
    name = f"migrations_{new_id().hex[-12:]}"
    yield database_server.clone(name)
    database_server.drop(name)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the migrations that a test may add a step to."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "MIGRATIONS", copy)
    return copy / "versions"


def tables_of(urls: DatabaseUrls) -> set[str]:
    with psycopg.connect(urls.migrator) as connection:
        rows = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def add_step(steps: Path, *, statement: str) -> str:
    head = migrate.head_revision()
    revision = f"{int(head) + 1:04d}"
    text = STEP.format(message="a step of the test", revision=revision, before=head, statement=statement)
    (steps / f"{revision}_test.py").write_text(text)
    return revision


@pytest.mark.contract("MG-06", part="all steps run on an empty database")
@pytest.mark.contract("MG-14")
def test_the_steps_lead_from_nothing_to_the_head_and_back(urls: DatabaseUrls) -> None:
    whole = tables_of(urls)
    migrate.downgrade(urls.migrator, owner=urls.owner_role, revision="base")
    assert "documents" not in tables_of(urls)
    state = migrate.upgrade(urls.migrator, owner=urls.owner_role)
    assert state.current == migrate.head_revision()
    assert tables_of(urls) == whole
    with psycopg.connect(urls.migrator) as connection:
        open_tables = connection.execute(
            "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' "
            "where c.relkind = 'r' and not a.attisdropped and c.relnamespace = 'public'::regnamespace "
            "and not (c.relrowsecurity and c.relforcerowsecurity)"
        ).fetchall()
    assert open_tables == []


def test_applying_twice_changes_nothing(unchanged: DatabaseUrls) -> None:
    assert migrate.upgrade(unchanged.migrator, owner=unchanged.owner_role).pending == ()
    assert migrate.pending_sql(unchanged.migrator) == []


@pytest.mark.contract("MG-12")
def test_a_failing_step_is_named_leaves_the_schema_as_it_was_and_is_applied_once_mended(
    urls: DatabaseUrls, steps: Path
) -> None:
    before = tables_of(urls)
    revision = add_step(steps, statement="select no_such_function()")
    with pytest.raises(Conflict, match=f"Migration {revision} failed and was rolled back") as failed:
        migrate.upgrade(urls.migrator, owner=urls.owner_role)
    assert failed.value.code == "migration_failed"
    assert tables_of(urls) == before
    assert migrate.schema_state(urls.migrator).pending == (revision,)
    file = steps / f"{revision}_test.py"
    file.write_text(file.read_text().replace("select no_such_function()", "select 1"))
    assert migrate.upgrade(urls.migrator, owner=urls.owner_role).current == revision
    assert "note_of_the_test" in tables_of(urls)


@pytest.mark.contract("MG-16")
def test_a_new_step_is_written_from_the_difference_and_can_be_applied(urls: DatabaseUrls, steps: Path) -> None:
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}")
        connection.execute("alter table projects drop column is_handbook cascade")
    path = migrate.generate(urls.migrator, message="projects: handbook", owner=urls.owner_role)
    assert path.parent == steps
    assert "add_column" in path.read_text()
    assert "is_handbook" in path.read_text()
    assert migrate.schema_state(urls.migrator).pending == (path.name[:4],)


def test_models_and_migrations_agree(unchanged: DatabaseUrls, steps: Path) -> None:
    path = migrate.generate(unchanged.migrator, message="nothing", owner=unchanged.owner_role)
    body = path.read_text().partition("commands auto generated")[2]
    assert "op." not in body, body

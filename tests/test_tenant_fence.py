"""The database keeps tenants apart: proved by its catalog and by trying."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError, ProgrammingError
from tests.make import MadeTenant, make_project
from tests.postgres import Server

from pharos.access.models import Project
from pharos.identity.models import AuditEntry, Membership
from pharos.identity.principal import Principal
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import Database
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict
from pharos.infra.fence import OWN_POLICY, POLICY, refuse_unsafe_role
from pharos.infra.ids import new_id
from pharos.tables import metadata

TENANT_TABLES = sorted(table.name for table in metadata.sorted_tables if "tenant_id" in table.columns)


@pytest.mark.contract("AC-09")
async def test_every_table_of_a_tenant_has_its_fence_forced(db: Database) -> None:
    query = text(
        """
        select c.relname, c.relrowsecurity, c.relforcerowsecurity,
               (select count(*) from pg_policy p where p.polrelid = c.oid and p.polname = 'tenant_fence'
                and p.polqual is not null and p.polwithcheck is not null) as fences,
               pg_has_role(current_user, c.relowner, 'member') as owned
        from pg_class c where c.relname = any(:tables) order by c.relname collate "C"
        """
    )
    async with system_transaction(db) as session:
        rows = (await session.execute(query, {"tables": TENANT_TABLES})).all()
    assert [tuple(row) for row in rows] == [(table, True, True, 1, False) for table in TENANT_TABLES]


@pytest.mark.contract("AC-09")
async def test_without_a_tenant_nothing_is_seen(db: Database, tenant: MadeTenant) -> None:
    await make_project(db, tenant.admin)
    async with system_transaction(db) as session:
        for table in TENANT_TABLES:
            assert (await session.execute(text(f"select count(*) from {table}"))).scalar_one() == 0, table


async def test_the_tenant_ends_with_its_transaction(db: Database, tenant: MadeTenant) -> None:
    async with db.transaction(tenant.id) as session:
        assert (await session.execute(select(Membership))).all() != []
    # the pool hands the same connection out again; its setting reads back as ''
    async with system_transaction(db) as session:
        assert (await session.execute(select(Membership))).all() == []


@pytest.mark.contract("AC-09")
async def test_a_row_of_another_tenant_can_be_neither_written_nor_moved(
    db: Database, tenant: MadeTenant, stranger: Principal
) -> None:
    row = insert(Project).values(tenant_id=stranger.tenant_id, id=new_id(), name="Smuggled")
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with db.transaction(tenant.id) as session:
            await session.execute(row)
    await make_project(db, tenant.admin)
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with db.transaction(tenant.id) as session:
            await session.execute(update(Project).values(tenant_id=stranger.tenant_id))


async def test_a_person_sees_their_own_places_before_a_tenant_is_known(
    db: Database, tenant: MadeTenant, stranger: Principal
) -> None:
    async with system_transaction(db, user_id=tenant.admin.user_id) as session:
        places = (await session.execute(select(Membership.tenant_id))).scalars().all()
    assert places == [tenant.id]
    assert stranger.tenant_id not in places


@pytest.mark.parametrize(
    "statement", ["update audit_log set actor = 'x'", "delete from audit_log", "truncate audit_log"]
)
async def test_the_audit_log_only_grows(db: Database, tenant: MadeTenant, statement: str) -> None:
    async with db.transaction(tenant.id) as session:
        session.add(AuditEntry(tenant_id=tenant.id, actor="a", action="test.made", subject="test:1"))
    with pytest.raises(DBAPIError, match="permission denied"):
        async with db.transaction(tenant.id) as session:
            await session.execute(text(statement))


@pytest.mark.contract("AC-09")
def test_the_start_refuses_a_role_that_could_look_over_the_fence(
    database_server: Server, database_urls: DatabaseUrls
) -> None:
    refuse_unsafe_role(database_urls.app)
    superuser = database_server.admin_url.rpartition("/")[0] + "/" + database_urls.app.rpartition("/")[2]
    for url in (superuser, database_urls.backup):
        with pytest.raises(Conflict) as refusal:
            refuse_unsafe_role(url)
        assert refusal.value.code == "role_can_bypass"


@pytest.fixture(scope="module")
def holed(database_server: Server) -> Iterator[DatabaseUrls]:
    """A database whose fence gets holes, each of which is closed again."""
    name = f"test_hole_{new_id().hex[-12:]}"
    yield database_server.clone(name)
    database_server.drop(name)


def as_owner(urls: DatabaseUrls, *statements: str) -> None:
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}".encode())
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.contract("AC-09")
@pytest.mark.parametrize(
    ("hole", "closed"),
    [
        ("alter table passages no force row level security", "alter table passages force row level security"),
        ("alter table passages disable row level security", "alter table passages enable row level security"),
        (
            "drop policy tenant_fence on passages",
            f"create policy tenant_fence on passages using ({POLICY}) with check ({POLICY})",
        ),
        ("create table forgotten (tenant_id uuid)", "drop table forgotten"),
        (
            "alter policy tenant_fence on passages using (true)",
            f"alter policy tenant_fence on passages using ({POLICY})",
        ),
        ("create policy hole on passages using (true)", "drop policy hole on passages"),
        (
            "alter policy own_memberships on memberships using (true)",
            f"alter policy own_memberships on memberships using ({OWN_POLICY})",
        ),
    ],
)
def test_the_start_refuses_a_hole_in_the_fence(holed: DatabaseUrls, hole: str, closed: str) -> None:
    as_owner(holed, hole)
    with pytest.raises(Conflict) as refusal:
        refuse_unsafe_role(holed.app)
    assert refusal.value.code == "table_without_fence"
    as_owner(holed, closed)
    refuse_unsafe_role(holed.app)


@pytest.mark.contract("AC-09")
def test_the_start_refuses_a_database_that_names_a_tenant_by_itself(
    database_server: Server, holed: DatabaseUrls
) -> None:
    name, tenant_id = holed.app.rpartition("/")[2], new_id()
    as_owner(
        holed,
        f"set pharos.tenant_id = '{tenant_id}'",
        f"insert into tenants (id, slug, name) values ('{tenant_id}', 'a', 'A')",
        f"insert into groups (tenant_id, id, name) values ('{tenant_id}', '{new_id()}', 'G')",
    )
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(f"alter database {name} set pharos.tenant_id = '{tenant_id}'".encode())
        with pytest.raises(Conflict) as refusal:
            refuse_unsafe_role(holed.app)
        connection.execute(f"alter database {name} reset pharos.tenant_id".encode())
    assert refusal.value.code == "fence_leaks"
    assert "groups" in refusal.value.message
    refuse_unsafe_role(holed.app)

"""The fence between tenants as it must stand in the catalog: what of it is missing, and putting it back."""

from __future__ import annotations

import psycopg
from psycopg import sql

from pharos.infra.database_roles import DatabaseUrls, refuse_unsafe_role

POLICY = "tenant_id = nullif(current_setting('pharos.tenant_id', true), '')::uuid"
STORED = "(tenant_id = (NULLIF(current_setting('pharos.tenant_id'::text, true), ''::text))::uuid)"
"""How Postgres writes `POLICY` back."""

OTHER_POLICIES = {("memberships", "own_memberships")}
"""Policies that let more rows through on purpose: a person's own places, before a tenant is known."""

FENCES = """
    select c.relname, c.relrowsecurity and c.relforcerowsecurity as is_forced,
           array(select p.polname || ': ' || coalesce(pg_get_expr(p.polqual, p.polrelid), '') || ' / '
                        || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
                 from pg_policy p where p.polrelid = c.oid and p.polname = 'tenant_fence')::text[] as fences,
           array(select p.polname from pg_policy p
                 where p.polrelid = c.oid and p.polpermissive and p.polname <> 'tenant_fence')::text[] as others
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
    order by 1
    """


def find_faults(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[int, dict[str, str]]:
    """How many tables have a tenant column, and of those whose fence is not whole what is wrong with it."""
    whole = [f"tenant_fence: {STORED} / {STORED}"]
    faults, tables = {}, 0
    for table, is_forced, fences, others in connection.execute(FENCES).fetchall():
        tables += 1
        assert isinstance(others, list)
        strange = [name for name in others if (table, name) not in OTHER_POLICIES]
        if not fences:
            faults[str(table)] = "has no policy"
        elif fences != whole:
            faults[str(table)] = "has another policy than it should"
        elif not is_forced:
            faults[str(table)] = "does not enable and force row security"
        elif strange:
            faults[str(table)] = f"lets more through by {', '.join(strange)}"
    return tables, faults


def check_fence(urls: DatabaseUrls) -> int:
    """The number of tables whose fence is whole. Raises `Conflict` as the start does when the fence does not hold."""
    refuse_unsafe_role(urls.app)
    with psycopg.connect(urls.app, autocommit=True) as connection:
        tables, _ = find_faults(connection)
    return tables


def list_faults(urls: DatabaseUrls) -> dict[str, str]:
    """What is wrong, by table; empty when the fence is whole."""
    with psycopg.connect(urls.app, autocommit=True) as connection:
        return find_faults(connection)[1]


def apply_fence(urls: DatabaseUrls) -> dict[str, str]:
    """Put every fence back that is not whole, in one transaction; what was wrong, by table. Touches no other table."""
    with psycopg.connect(urls.migrator) as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(urls.owner_role)))
        connection.execute("set lock_timeout = '4s'")
        faults = find_faults(connection)[1]
        for table in faults:
            _rebuild(connection, table)
    return faults


def _rebuild(connection: psycopg.Connection[tuple[object, ...]], table: str) -> None:
    named = sql.Identifier(table)
    names = connection.execute("select polname from pg_policy where polrelid = to_regclass(%s)", [table]).fetchall()
    for (name,) in names:
        if (table, name) not in OTHER_POLICIES:
            connection.execute(sql.SQL("drop policy {} on {}").format(sql.Identifier(str(name)), named))
    for statement in (
        "alter table {} enable row level security",
        "alter table {} force row level security",
        f"create policy tenant_fence on {{}} using ({POLICY}) with check ({POLICY})",
    ):
        connection.execute(sql.SQL(statement).format(named))

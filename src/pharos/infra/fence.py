"""The fence between tenants as it must stand in the catalog: what is missing, refusing to serve, putting it back."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import Conflict

POLICY = "tenant_id = nullif(current_setting('pharos.tenant_id', true), '')::uuid"
STORED = "(tenant_id = (NULLIF(current_setting('pharos.tenant_id'::text, true), ''::text))::uuid)"
"""How Postgres writes `POLICY` back."""

OWN_POLICY = "user_id = nullif(current_setting('pharos.user_id', true), '')::uuid"
OWN_STORED = "(user_id = (NULLIF(current_setting('pharos.user_id'::text, true), ''::text))::uuid)"
OTHER_POLICIES = {"memberships": [f"own_memberships r: {OWN_STORED} / "]}
"""Policies that let more rows through on purpose: reading a person's own places, before a tenant is known."""

FENCES = """
    select c.relname, c.relrowsecurity and c.relforcerowsecurity as is_forced,
           array(select p.polname || ' ' || p.polcmd::text || ': ' || coalesce(pg_get_expr(p.polqual, p.polrelid), '')
                        || ' / ' || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
                 from pg_policy p where p.polrelid = c.oid and p.polname = 'tenant_fence'
                      and p.polpermissive and p.polroles = '{0}')::text[] as fences,
           array(select p.polname || ' ' || p.polcmd::text || ': ' || coalesce(pg_get_expr(p.polqual, p.polrelid), '')
                        || ' / ' || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
                 from pg_policy p
                 where p.polrelid = c.oid and p.polpermissive and p.polname <> 'tenant_fence')::text[] as others
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
    order by 1
    """
OWNED_TABLES = """
    select c.relname from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relkind in ('r', 'p') and pg_has_role(current_user, c.relowner, 'member')
    order by 1
    """


def refuse_unsafe_role(app_url: str) -> None:
    """Refuse to serve when the database would not keep tenants apart (AC-09).

    Asks the catalog as the app role itself: neither it nor any role it can become may be superuser, bypass row
    security, or own a table of a tenant; the fence of every such table must be whole; and a look without a tenant must
    show nothing.
    """
    with psycopg.connect(app_url, autocommit=True) as connection:
        name, is_super, bypasses = connection.execute(
            "select current_user, bool_or(rolsuper), bool_or(rolbypassrls) from pg_roles "
            "where pg_has_role(current_user, oid, 'member')"
        ).fetchone() or ("?", True, True)
        if is_super or bypasses:
            raise Conflict(
                f"The role {name} can bypass row-level security, so tenants would not be kept apart. Connect as the "
                "app role that `pharos db init` makes.",
                code="role_can_bypass",
            )
        owned = [row[0] for row in connection.execute(OWNED_TABLES)]
        if owned:
            raise Conflict(
                f"The role {name} owns {', '.join(owned)} and could lift their fence. Run `pharos db init`.",
                code="role_owns_tables",
            )
        tables, faults = find_faults(connection)
        if faults:
            said = "; ".join(f"{table} {fault}" for table, fault in faults.items())
            raise Conflict(
                f"The fence between tenants is not whole: {said}. Put it back: `pharos db rls apply`.",
                code="table_without_fence",
            )
        leaking = [table for table in tables if _shows_rows(connection, table)]
        if leaking:
            raise Conflict(
                f"{', '.join(leaking)} show rows to a session without a tenant. Do not serve; run `pharos db check`.",
                code="fence_leaks",
            )


def find_faults(connection: psycopg.Connection[tuple[Any, ...]]) -> tuple[list[str], dict[str, str]]:
    """The tables with a tenant column, and of those whose fence is not whole what is wrong with it."""
    rows = connection.execute(FENCES).fetchall()
    faults = {table: fault for table, *found in rows if (fault := _fault_of(table, *found)) is not None}
    return [table for table, *_ in rows], faults


def _fault_of(table: str, is_forced: bool, fences: list[str], others: list[str]) -> str | None:
    wanted = OTHER_POLICIES.get(table, [])
    if not fences:
        return "has no policy"
    if fences != [f"tenant_fence *: {STORED} / {STORED}"]:
        return "has another policy than it should"
    if not is_forced:
        return "does not enable and force row security"
    if strange := [policy.split()[0] for policy in others if policy not in wanted]:
        return f"lets more through by {', '.join(strange)}"
    return "lacks its other policy" if others != wanted else None


def check_fence(urls: DatabaseUrls) -> int:
    """The number of tables whose fence is whole. Raises `Conflict` as the start does when the fence does not hold."""
    refuse_unsafe_role(urls.app)
    with psycopg.connect(urls.app, autocommit=True) as connection:
        tables, _ = find_faults(connection)
    return len(tables)


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
        connection.execute(sql.SQL("drop policy {} on {}").format(sql.Identifier(str(name)), named))
    statements = [
        "alter table {} enable row level security",
        "alter table {} force row level security",
        f"create policy tenant_fence on {{}} using ({POLICY}) with check ({POLICY})",
    ]
    if table in OTHER_POLICIES:
        statements.append(f"create policy own_memberships on {{}} for select using ({OWN_POLICY})")
    for statement in statements:
        connection.execute(sql.SQL(statement).format(named))


def _shows_rows(connection: psycopg.Connection[tuple[object, ...]], table: str) -> bool:
    return connection.execute(sql.SQL("select 1 from {} limit 1").format(sql.Identifier(table))).fetchone() is not None

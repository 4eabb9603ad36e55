"""A fence with a hole is named table by table, and put back by one command."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from tests.postgres import Server

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import Conflict
from pharos.infra.fence import apply_fence, check_fence, list_faults

HOLES = {
    "passages": "alter table passages no force row level security",
    "documents": "alter table documents disable row level security",
    "messages": "drop policy tenant_fence on messages",
    "projects": "create policy hole on projects using (true)",
    "groups": "alter policy tenant_fence on groups using (true)",
    "memberships": "alter policy own_memberships on memberships using (true)",
    "mails": "drop policy tenant_fence on mails; create policy tenant_fence on mails as restrictive using (true)",
    "forgotten": "create table forgotten (tenant_id uuid)",
}


@pytest.fixture
def urls(database_server: Server) -> Iterator[DatabaseUrls]:
    name = f"test_{secrets.token_hex(6)}"
    yield database_server.clone(name)
    database_server.drop(name)


@pytest.mark.contract("AC-10")
def test_every_hole_is_named_and_one_command_closes_all(urls: DatabaseUrls) -> None:
    assert list_faults(urls) == {}
    tables = check_fence(urls)
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}")
        for hole in HOLES.values():
            connection.execute(hole)
    assert set(list_faults(urls)) == set(HOLES)
    with pytest.raises(Conflict):
        check_fence(urls)
    assert set(apply_fence(urls)) == set(HOLES)
    assert list_faults(urls) == {}
    assert check_fence(urls) == tables + 1
    assert apply_fence(urls) == {}

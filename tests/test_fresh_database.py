"""The database that many tests use in turn is new to each of them."""

from __future__ import annotations

import psycopg
from tests.postgres import FreshDatabase

from pharos.infra.ids import new_id


def test_what_was_written_is_gone_and_what_was_there_is_back(fresh_database: FreshDatabase) -> None:
    urls = fresh_database.urls
    with psycopg.connect(urls.app) as connection:
        connection.execute("insert into tenants (id, slug, name) values (%s, 'a', 'A')", [new_id()])
        connection.execute("update bootstrap_state set is_initialized = true")
    fresh_database.renew()
    assert fresh_database.urls == urls
    with psycopg.connect(urls.app) as connection:
        assert connection.execute("select count(*) from tenants").fetchone() == (0,)
        assert connection.execute("select is_initialized from bootstrap_state").fetchone() == (False,)


def test_a_changed_table_makes_it_another_clone(fresh_database: FreshDatabase) -> None:
    urls = fresh_database.urls
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}".encode())
        connection.execute("alter table groups alter column name drop not null")
    fresh_database.renew()
    assert fresh_database.urls != urls
    fresh_database.renew()

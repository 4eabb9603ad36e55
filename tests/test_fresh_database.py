"""The database that many tests use in turn is new to each of them."""

from __future__ import annotations

import psycopg
import pytest
from tests.postgres import FreshDatabase

from pharos.infra.ids import new_id


def test_what_was_written_is_gone_and_what_was_there_is_back(fresh_database: FreshDatabase) -> None:
    urls = fresh_database.urls
    with psycopg.connect(urls.app) as connection:
        connection.execute("insert into tenants (id, slug, name) values (%s, 'a', 'A')", [new_id()])
        connection.execute("update bootstrap_state set is_initialized = true")
        numbers = connection.execute("select nextval('procrastinate_jobs_id_seq')").fetchone()
    fresh_database.renew()
    assert fresh_database.urls == urls
    with psycopg.connect(urls.app) as connection:
        assert connection.execute("select count(*) from tenants").fetchone() == (0,)
        assert connection.execute("select is_initialized from bootstrap_state").fetchone() == (False,)
        assert connection.execute("select nextval('procrastinate_jobs_id_seq')").fetchone() == numbers


@pytest.mark.parametrize(
    "change",
    [
        "alter table groups alter column name drop not null",
        "alter table departments rename constraint fk_departments_tenant_id_tenants to another_name",
        "alter table groups disable trigger drop_grants",
        "alter function drop_grants() cost 99",
        "alter database {} set statement_timeout = '1min'",
    ],
)
def test_a_changed_schema_makes_it_another_clone(fresh_database: FreshDatabase, change: str) -> None:
    urls, address = fresh_database.urls, fresh_database.server.admin_url.rpartition("/")[0]
    with psycopg.connect(f"{address}/{fresh_database.name}", autocommit=True) as connection:
        connection.execute(change.format(fresh_database.name).encode())
    fresh_database.renew()
    assert fresh_database.urls != urls
    fresh_database.renew()

"""The roles of a database: made as often as one likes, each with the rights it needs, and refused where unsafe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from tests.postgres import PASSWORDS, Server

from pharos.infra import database_roles
from pharos.infra.database_roles import connection_urls, initialise_database, make_database
from pharos.infra.errors import Conflict, Invalid, Unavailable
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.ids import new_id
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings


@pytest.fixture
def name(database_server: Server) -> Iterator[str]:
    """A name nobody uses; its database and roles are gone afterwards."""
    name = f"roles_{new_id().hex[-12:]}"
    yield name
    database_server.drop(name)
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        for (role,) in connection.execute("select rolname from pg_roles where starts_with(rolname, %s)", [name]):
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def settings_for(server: Server, data_dir: Path, *, database: str, login: str) -> Settings:
    address = server.admin_url.rpartition("@")[2].partition("/")[0]
    return Settings(
        _env_file=None,
        data_dir=data_dir,
        database_url=f"postgresql://{login}@{address}/{database}",
        database_admin_url=server.admin_url,
    )


def rights_of(server: Server, database: str) -> dict[str, tuple[bool, ...]]:
    """Kind of role -> may log in, is superuser, bypasses row security, may replicate."""
    rights = "rolcanlogin, rolsuper, rolbypassrls, rolreplication"
    query = f"select rolname, {rights} from pg_roles where starts_with(rolname, %s)"
    with psycopg.connect(server.admin_url) as connection:
        rows = connection.execute(query.encode(), [f"{database}_"]).fetchall()
    return {name.removeprefix(f"{database}_"): tuple(rights) for name, *rights in rows}


def test_each_role_has_the_rights_it_needs_and_no_more(database_server: Server, name: str) -> None:
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert rights_of(database_server, name) == {
        "owner": (False, False, False, False),
        "migrator": (True, False, False, False),
        "app": (True, False, False, False),
        "backup": (True, False, True, True),
        "monitor": (True, False, False, False),
    }


def test_making_it_again_keeps_the_data_and_takes_back_rights_that_crept_in(database_server: Server, name: str) -> None:
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    before = rights_of(database_server, name)
    inside = database_server.admin_url.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(inside, autocommit=True) as connection:
        connection.execute("create table kept (id int)")
        connection.execute(sql.SQL("alter role {} superuser bypassrls").format(sql.Identifier(f"{name}_app")))
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert rights_of(database_server, name) == before
    with psycopg.connect(inside) as connection:
        assert connection.execute("select to_regclass('kept') is not null").fetchone() == (True,)


def test_the_app_role_makes_no_tables_and_plans_for_each_tenant(database_server: Server, name: str) -> None:
    settings = settings_for(database_server, Path("/nonexistent"), database=name, login=f"{name}_app:app-of-the-tests")
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as connection:
        assert connection.execute("show plan_cache_mode").fetchone() == ("force_custom_plan",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create table mine (id int)")


@pytest.mark.contract("AC-09")
@pytest.mark.parametrize("right", ["superuser", "bypassrls"])
def test_the_start_refuses_an_app_role_that_was_given_a_right_to_bypass(
    database_server: Server, name: str, right: str
) -> None:
    settings = settings_for(database_server, Path("/nonexistent"), database=name, login=f"{name}_app:app-of-the-tests")
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert settings.database_url is not None
    refuse_unsafe_role(settings.database_url)
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("alter role {} {}").format(sql.Identifier(f"{name}_app"), sql.SQL(right)))
    with pytest.raises(Conflict, match=f"{name}_app can bypass") as refusal:
        refuse_unsafe_role(settings.database_url)
    assert refusal.value.code == "role_can_bypass"


@pytest.mark.contract("AC-09")
def test_the_start_refuses_an_app_role_that_owns_a_table_of_tenants(database_server: Server, name: str) -> None:
    urls = database_server.clone(name)
    with psycopg.connect(database_server.admin_url.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        connection.execute("alter table documents owner to pharos_template_app")
    with pytest.raises(Conflict, match="owns documents") as refusal:
        refuse_unsafe_role(urls.app)
    assert refusal.value.code == "role_owns_tables"


@pytest.mark.contract("AC-09")
def test_the_start_refuses_an_app_role_that_can_become_the_owner(database_server: Server, name: str) -> None:
    settings = settings_for(database_server, Path("/nonexistent"), database=name, login=f"{name}_app:app-of-the-tests")
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    inside = database_server.admin_url.rpartition("/")[0] + f"/{name}"
    assert settings.database_url is not None
    with psycopg.connect(inside, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                "create table rows (tenant_id uuid); alter table rows enable row level security, "
                "force row level security; create policy tenant_fence on rows using (false);"
                "alter table rows owner to {owner}; grant select on rows to {app}; grant {owner} to {app}"
            ).format(owner=sql.Identifier(f"{name}_owner"), app=sql.Identifier(f"{name}_app"))
        )
    with pytest.raises(Conflict, match="owns rows"):
        refuse_unsafe_role(settings.database_url)


def test_an_installation_on_a_server_of_its_own_choice_gets_its_roles_and_addresses(
    database_server: Server, name: str, tmp_path: Path
) -> None:
    settings = settings_for(database_server, tmp_path, database=name, login=f"{name}_app:chosen%20word")
    urls = initialise_database(settings)
    assert initialise_database(settings) == urls == connection_urls(settings)
    assert ((tmp_path / "secrets" / "database-roles.json").stat().st_mode & 0o777) == 0o600
    for kind in ("app", "migrator", "backup", "monitor"):
        with psycopg.connect(getattr(urls, kind)) as connection:
            assert connection.execute("select current_user").fetchone() == (f"{name}_{kind}",)


def test_preparing_a_foreign_server_asks_for_what_it_needs(database_server: Server, tmp_path: Path) -> None:
    settings = settings_for(database_server, tmp_path, database="pharos", login="postgres:x")
    with pytest.raises(Invalid, match="must name the role pharos_app"):
        initialise_database(settings)
    with pytest.raises(Invalid, match="set PHAROS_DATABASE_ADMIN_URL"):
        initialise_database(settings.model_copy(update={"database_admin_url": None}))
    with pytest.raises(Invalid, match="small letters"):
        make_database(database_server.admin_url, database="Robert'; --", passwords=PASSWORDS)


@pytest.mark.contract("AC-09")
def test_the_start_refuses_an_app_role_that_can_become_one_that_bypasses(database_server: Server, name: str) -> None:
    settings = settings_for(database_server, Path("/nonexistent"), database=name, login=f"{name}_app:app-of-the-tests")
    make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert settings.database_url is not None
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        roles = {"backup": sql.Identifier(f"{name}_backup"), "app": sql.Identifier(f"{name}_app")}
        connection.execute(sql.SQL("grant {backup} to {app}").format(**roles))
    with pytest.raises(Conflict) as refusal:
        refuse_unsafe_role(settings.database_url)
    assert refusal.value.code == "role_can_bypass"


def test_a_server_that_cannot_do_it_is_refused_before_anything_is_made(
    database_server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_roles, "MIN_VECTOR", (99, 0, 0))
    with pytest.raises(Conflict, match=r"pgvector 99\.0\.0 or newer .* Install the package postgresql-18-pgvector"):
        make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    monkeypatch.setattr(database_roles, "MAX_SERVER", 17)
    with pytest.raises(Conflict, match="This server is Postgres 18; Pharos runs on 16 to 17"):
        make_database(database_server.admin_url, database=name, passwords=PASSWORDS)
    assert rights_of(database_server, name) == {}


def test_without_a_database_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="pharos up"):
        connection_urls(Settings(_env_file=None, data_dir=tmp_path))


def test_a_secret_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "word"
    write_secret(file, "first")
    write_secret(file, "second")
    assert file.read_text() == "second"
    assert [path.name for path in file.parent.iterdir()] == ["word"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_only_the_app_goes_through_a_pooler(tmp_path: Path) -> None:
    urls = connection_urls(
        Settings(
            _env_file=None,
            data_dir=tmp_path,
            database_url="postgresql://pharos_app:word@pooler:6432/pharos",
            database_direct_url="postgresql://pharos_app:word@db:5432/pharos?sslmode=require",
        )
    )
    assert "@pooler:6432/" in urls.app
    for url in (urls.direct, urls.migrator, urls.backup, urls.monitor):
        assert url.endswith("@db:5432/pharos?sslmode=require")
    assert urls.migrator.startswith("postgresql://pharos_migrator:")

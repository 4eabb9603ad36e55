"""Bring the schema to what this code expects, and say where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from pharos.infra.db import sqlalchemy_url
from pharos.infra.errors import Conflict

if TYPE_CHECKING:  # loaded when the schema is asked for: commands that never do would wait a tenth of a second for it
    from alembic.config import Config
    from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).parent.parent / "migrations"
MIGRATION_LOCK = 0x5048_4152_4F53  # "PHAROS": the advisory lock that lets one process migrate at a time


@dataclass(frozen=True)
class SchemaState:
    """`current` is the revision of the database (None: empty), `head` that of this code."""

    current: str | None
    head: str
    pending: tuple[str, ...]


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def _script(config: Config) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config)


@contextmanager
def _connection(url: str, owner: str | None) -> Iterator[sa.Connection]:
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool, connect_args={"prepare_threshold": None})
    with engine.connect() as connection:
        if owner is not None:
            quoted = engine.dialect.identifier_preparer.quote(owner)
            connection.exec_driver_sql(f"set role {quoted}")
            connection.commit()  # alembic opens its own transactions, one a step
        yield connection
    engine.dispose()


def upgrade(url: str, *, owner: str | None = None, revision: str = "head") -> SchemaState:
    """Apply what is pending, one transaction a step; a failing step leaves the schema as it was before it.

    `url` is the migrator's; `owner` is the role that shall own what is made. Raises `Conflict` naming the step.
    """
    from alembic import command

    config = _config()
    with _connection(url, owner) as connection:
        connection.execute(sa.text("select pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
        config.attributes["connection"] = connection
        before = _state(connection, config)
        try:
            command.upgrade(config, revision)
        except (sa.exc.DBAPIError, RuntimeError) as error:
            after = _state(connection, config)
            failed = after.pending[0] if after.pending else "unknown"
            reason = str(error).splitlines()[0]
            raise Conflict(
                f"Migration {failed} failed and was rolled back ({reason}). Mend the cause it names and run "
                "`pharos migrate --apply`; applied migrations are never edited.",
                code="migration_failed",
                revision=failed,
            ) from error
        finally:
            connection.rollback()
            connection.execute(sa.text("select pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            connection.commit()
        return SchemaState(current=_state(connection, config).current, head=before.head, pending=before.pending)


def downgrade(url: str, *, owner: str | None = None, revision: str) -> None:
    """Run the steps backwards down to `revision` ("base": an empty schema)."""
    from alembic import command

    config = _config()
    with _connection(url, owner) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def schema_state(url: str) -> SchemaState:
    """Where the database stands; any role that may connect can ask."""
    with _connection(url, None) as connection:
        return _state(connection, _config())


def pending_sql(url: str) -> list[tuple[str, str]]:
    """(revision, its own text) of each step that would run, for review before it does."""
    script = _script(_config())
    steps = [script.get_revision(name) for name in schema_state(url).pending]
    return [(step.revision, Path(step.path).read_text()) for step in steps]


def generate(url: str, *, message: str, owner: str | None = None) -> Path:
    """Write a new step from the difference between models and database; it must be read before it is committed."""
    from alembic import command

    config = _config()
    with _connection(url, owner) as connection:
        config.attributes["connection"] = connection
        number = f"{int(_script(config).get_current_head() or '0') + 1:04d}"
        made = command.revision(config, message=message, autogenerate=True, rev_id=number)
    script = made[0] if isinstance(made, list) else made
    assert script is not None
    return Path(script.path)


def knows_revision(revision: str) -> bool:
    """Whether this code has the migration; a database at another one was made by a newer version."""
    return revision in {step.revision for step in _script(_config()).walk_revisions()}


def steps_after(revision: str) -> tuple[str, ...]:
    """The migrations that a database at `revision` still lacks, in their order."""
    script = _script(_config())
    return tuple(reversed([step.revision for step in script.iterate_revisions("head", revision)]))


def head_revision() -> str:
    """The revision this code was written for."""
    return _script(_config()).get_current_head() or ""


def _state(connection: sa.Connection, config: Config) -> SchemaState:
    from alembic.runtime.migration import MigrationContext

    script = _script(config)
    head = script.get_current_head() or ""
    current = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    pending = [step.revision for step in script.iterate_revisions(head, current or "base")]
    return SchemaState(current=current, head=head, pending=tuple(reversed(pending)))

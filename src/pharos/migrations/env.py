"""Alembic's entry: runs on the connection that `pharos.infra.migrate` opened."""

from alembic import context

from pharos.tables import metadata

# Large indexes and the queue's tables are not compared with the models: the library owns the latter.
QUEUE_PREFIX = "procrastinate_"


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return not (kind == "table" and name is not None and name.startswith(QUEUE_PREFIX))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=_is_ours,
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

"""`pharos migrate`: show what is pending, apply it, write a new step."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Invalid
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, echo_json, echo_line, error_console, run_async
from pharos.ops.upgrade_schema import record_skipped_backup, upgrade_schema

app = typer.Typer()
migrate_app = typer.Typer(help="Bring the database's schema to what this code expects.", invoke_without_command=True)
app.add_typer(migrate_app, name="migrate")


@migrate_app.callback()
def apply_or_plan(
    context: typer.Context,
    plan: Annotated[bool, typer.Option("--plan", "--dry-run", help="Only show the pending steps.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Apply without asking.")] = False,
    skip_backup: Annotated[bool, typer.Option("--skip-backup", help="Make no backup first; audited.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the pending steps and, on a terminal, ask whether to apply them; a backup is made before."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings()
    pending = migrate.pending_sql(connection_urls(settings).migrator)
    if as_json:
        echo_json({"pending": [revision for revision, _ in pending], "head": migrate.head_revision()})
    else:
        _show(pending)
    if plan or not pending:
        return
    if not apply:
        if not sys.stdin.isatty():
            raise Invalid("Nobody is here to ask. Read the plan with `--plan`, then run `pharos migrate --apply`.")
        typer.confirm("Apply them now?", abort=True)
    with error_console.status("Applying, after a backup"):
        state, backup = upgrade_schema(settings, skip_backup=skip_backup)
    if skip_backup:
        run_async(record_skipped_backup(settings, state))
    if not as_json:
        echo_line(f"The backup {backup.name} holds what was before." if backup else "No backup was made.")
        echo_line(f"The schema is at {state.current}.")


@migrate_app.command("new")
def new_step(message: Annotated[str, typer.Argument(help="What the step does, in a few words.")]) -> None:
    """Write a new step from the difference between models and schema; read it before you commit it."""
    urls = connection_urls(Settings())
    path = migrate.generate(urls.migrator, message=message, owner=urls.owner_role)
    echo_line(f"Wrote {path}. Read it: is it nullable or defaulted, fenced, and able to run under the old code?")


def _show(pending: list[tuple[str, str]]) -> None:
    if not pending:
        echo_line(f"Nothing is pending: the schema is at {migrate.head_revision()}.")
    for revision, source in pending:
        echo_line(f"-- pending: {revision}\n{source}")

"""The `pharos` command: every slice's commands in one place, and errors turned into exit codes."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from pharos import __version__
from pharos.infra.errors import PharosError, StorageFull, Unavailable
from pharos.infra.logs import configure_at_first_event, configure_logs

COMMANDS = {
    "pharos.ops.commands": ("up", "down", "status", "restart"),
    "pharos.ops.config_commands": ("config", "db"),
    "pharos.ops.doctor_commands": ("doctor",),
    "pharos.ops.log_commands": ("logs",),
    "pharos.ops.limit_commands": ("ratelimit",),
    "pharos.ops.smoke_commands": ("smoke",),
    "pharos.ops.provider_commands": ("provider", "breaker"),
    "pharos.ops.migrate_commands": ("migrate",),
    "pharos.ops.secrets_commands": ("secrets",),
    "pharos.ops.backup.commands": ("backup",),
    "pharos.ops.restore_commands": ("restore",),
    "pharos.ops.backup.drill_commands": ("drill",),
    "pharos.ops.wipe_commands": ("wipe", "cache"),
    "pharos.identity.commands": ("seed", "setup-link", "user"),
    "pharos.identity.account_commands": ("bootstrap-admin", "apikey"),
    "pharos.identity.people_commands": ("tenant", "department", "group"),
    "pharos.identity.mail_commands": ("mail",),
    "pharos.identity.audit_commands": ("audit", "security"),
    "pharos.access.commands": ("access",),
    "pharos.library.commands": ("ingest", "documents"),
    "pharos.library.queue_commands": ("queue",),
    "pharos.retrieval.commands": ("search", "eval"),
    "pharos.chat.commands": ("ask",),
    "pharos.chat.chat_commands": ("chat",),
    "pharos.library.models_commands": ("models",),
    "pharos.providers.embedder.commands": ("embedder",),
    "pharos.cli.processes": ("web", "worker"),
}
"""Where each command is, in the order of the help. A module is imported when one of its commands is asked for: all of
them together take longer than most commands."""
MORE = {
    "user": ("pharos.identity.account_commands", "pharos.identity.people_commands", "pharos.identity.mail_commands"),
    "backup": ("pharos.ops.backup.make_commands", "pharos.ops.backup.offsite_commands"),
}
"""Modules that add commands to a group another module makes."""


class Commands(TyperGroup):
    """The commands of every slice, each imported when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*(name for names in COMMANDS.values() for name in names), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module = next((module for module, names in COMMANDS.items() if cmd_name in names), None)
        if module is None:
            return super().get_command(ctx, cmd_name)
        for more in MORE.get(cmd_name, ()):
            importlib.import_module(more)
        return get_group(importlib.import_module(module).app).get_command(ctx, cmd_name)


app = typer.Typer(
    name="pharos",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def pharos() -> None:
    """A private knowledge base that an organisation runs itself."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run a command; an expected failure is one sentence on stderr and the exit code of its kind."""
    # By default all objects are looked through after every 700 new ones: a tenth of a start, for modules that stay.
    gc.set_threshold(50_000)
    configure_at_first_event(_log_to_file)
    try:
        app()
    except SystemExit:
        raise  # how a command ends; what is below is looked up for failures only
    except PharosError as error:
        _fail(error)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else Unavailable
        _fail(kind(f"{error.strerror or error} ({error.filename or 'no file'}). Check it with `pharos doctor`."))
    except KeyboardInterrupt:
        sys.exit(130)
    except expected_elsewhere() as error:
        found = as_pharos_error(error)
        if found is None:
            raise
        _fail(found)


def _log_to_file() -> None:
    """What a command logs is not what it says: it goes beside the parts' logs, and to stderr where it cannot be kept.

    A directory that is not there is not made for it, and a log that another user began is not ours to write.
    """
    from pharos.infra.settings import Settings
    from pharos.ops.log_files import COMMANDS_LOG, open_log

    settings = Settings()
    try:
        kept = open_log(settings.data_dir, COMMANDS_LOG) if settings.data_dir.is_dir() else None
    except OSError:
        kept = None
    if kept is None:
        configure_logs("WARNING")
    else:
        configure_logs(settings.log_level, stream=io.TextIOWrapper(kept, encoding="utf-8", line_buffering=True))


def expected_elsewhere() -> tuple[type[Exception], ...]:
    """What libraries raise for a setting or a database that is wrong; looked up only when something was raised."""
    from psycopg import Error
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    return ValidationError, Error, SQLAlchemyError


def as_pharos_error(error: Exception) -> PharosError | None:
    """The kind and the sentence such an error stands for; None for one that only a fault of ours can cause."""
    from pydantic import ValidationError

    from pharos.infra import database_errors
    from pharos.infra.settings import Settings, setting_error

    if isinstance(error, ValidationError):
        return setting_error(error) if error.title == Settings.__name__ else None
    found = database_errors.as_pharos_error(error)
    return _not_running() or found if found is not None and found.code == "database_unavailable" else found


def _not_running() -> Unavailable | None:
    """Why the embedded database does not answer when nobody has started it."""
    from pharos.infra.settings import Settings
    from pharos.ops.running import supervisor_pid

    settings = Settings()
    if settings.database_url is not None or supervisor_pid(settings) is not None:
        return None
    return Unavailable(f"Pharos is not running on {settings.data_dir}. Start it with `pharos up`.", code="not_running")


def _fail(error: PharosError) -> None:
    from pharos.infra.terminal import error_console

    error_console.print(f"[bold red]Error[/] ({error.code}): ", end="")
    error_console.print(error.message, markup=False)
    sys.exit(error.exit_code)

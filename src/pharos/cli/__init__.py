"""The `pharos` command: every slice's commands in one place, and errors turned into exit codes."""

from __future__ import annotations

import errno
import sys

import psycopg
import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from pharos import __version__
from pharos.access import commands as access
from pharos.chat import commands as chat
from pharos.cli import processes
from pharos.identity import account_commands as accounts
from pharos.identity import audit_commands as audit
from pharos.identity import commands as identity
from pharos.identity import mail_commands as mail
from pharos.identity import people_commands as people
from pharos.infra.database_errors import as_pharos_error
from pharos.infra.errors import PharosError, StorageFull, Unavailable
from pharos.infra.settings import Settings, setting_error
from pharos.infra.terminal import error_console
from pharos.library import commands as library
from pharos.ops import commands as ops
from pharos.ops import limit_commands as limits
from pharos.ops import log_commands as logs
from pharos.ops import migrate_commands as migrate
from pharos.ops import secrets_commands as secrets
from pharos.providers.embedder import commands as embedder
from pharos.retrieval import commands as retrieval

app = typer.Typer(
    name="pharos",
    help="A private knowledge base that an organisation runs itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for slice_commands in (
    ops,
    logs,
    limits,
    migrate,
    secrets,
    identity,
    accounts,
    people,
    mail,
    audit,
    access,
    library,
    retrieval,
    chat,
    embedder,
    processes,
):
    app.add_typer(slice_commands.app)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run a command; an expected failure is one sentence on stderr and the exit code of its kind."""
    try:
        app()
    except PharosError as error:
        _fail(error)
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        _fail(setting_error(error))
    except (SQLAlchemyError, psycopg.Error) as error:
        found = as_pharos_error(error)
        if found is None:
            raise
        _fail(found)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else Unavailable
        _fail(kind(f"{error.strerror or error} ({error.filename or 'no file'}). Check it with `pharos doctor`."))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: PharosError) -> None:
    error_console.print(f"[bold red]Error[/] ({error.code}): ", end="")
    error_console.print(error.message, markup=False)
    sys.exit(error.exit_code)

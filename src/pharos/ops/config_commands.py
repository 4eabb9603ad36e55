"""`pharos config` and `pharos db`: what the operator says, and the database it is said about."""

from __future__ import annotations

import asyncio
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import AliasChoices, SecretStr, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.identity.tenants import DEFAULT_SLUG, find_tenant
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.errors import Invalid, PharosError
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings, is_secret, setting_error, unknown_variables, variables_given
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, run_async
from pharos.ops.fence_commands import rls_app
from pharos.ops.running import start_of_running
from pharos.runtime import open_runtime

app = typer.Typer()
config_app = typer.Typer(help="Settings in pharos.env and the environment.", no_args_is_help=True)
db_app = typer.Typer(help="The database's roles and fence.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(db_app, name="db")
db_app.add_typer(rls_app, name="rls")

ENV_FILE = Path("pharos.env")
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./:@%+,=-]+")
AUDIT_SECONDS = 5.0


@config_app.command("list")
def list_settings(as_json: AsJson = False) -> None:
    """Every setting with its value; secrets are shown as set or unset."""
    settings = read_settings()
    rows = {_variable(name): _shown(getattr(settings, name)) for name in Settings.model_fields}
    if as_json:
        echo_json(rows)
    else:
        echo_table(["setting", "value"], list(rows.items()), empty="There are no settings.")


@config_app.command("set")
def set_setting(
    name: Annotated[str, typer.Argument(help="For instance PHAROS_PORT.")],
    value: Annotated[
        str | None, typer.Argument(help="Its new value; a secret is asked for or read from stdin.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Write one setting into pharos.env after checking it."""
    field = name.removeprefix("PHAROS_").lower()
    if field not in Settings.model_fields:
        raise Invalid(f"There is no setting {name}. `pharos config list` names them all.", code="no_such_setting")
    value = _given_value(field, value)
    _refuse_bad_value(field, value)
    text = with_variable(ENV_FILE.read_text() if ENV_FILE.exists() else "", name=_variable(field), value=value)
    file, hindrances = ENV_FILE.absolute(), _hindrances(field)
    if dry_run:
        echo_line(f"Would set {_variable(field)} in {file}.")
    else:
        write_secret(file, text)
        echo_line(f"Set {_variable(field)} in {file}. It counts from the next start: `pharos down`, then `pharos up`.")
    for sentence in hindrances:
        echo_line(sentence)
    if not dry_run and not run_async(_record_change(field)):
        echo_line("No database answers, so the audit log does not have it.")


def _hindrances(field: str) -> list[str]:
    """Why what is written into the file here is not what counts, a sentence each."""
    found, here = [], variables_given(field)
    if here:
        found.append(f"{' and '.join(here)} is set in the environment, which counts more than the file: unset it.")
    try:
        started = start_of_running(Settings())
    except (ValidationError, PharosError, OSError):
        return found  # a setting is being mended, or Pharos is another user's: nothing can be said of what runs
    if started is None:
        return found
    directory, environment = started
    if directory != Path.cwd():
        found.append(
            f"The Pharos that runs was started in {directory} and reads {directory / ENV_FILE}, not this file. Set it "
            "there, or start Pharos here."
        )
    given = [name for name in variables_given(field, environment=environment) if name not in here]
    if given and field != "data_dir":  # which every Pharos that was started detached is given
        found.append(
            f"The Pharos that runs has {' and '.join(given)} from its environment, which counts more than a file. "
            "Change it there, too."
        )
    return found


def _given_value(field: str, value: str | None) -> str:
    """The value of the command line; a secret only by hand or by stdin, where no other user sees it."""
    if value is not None:
        if is_secret(field):
            raise Invalid(
                f"{_variable(field)} is a secret, and a command line is seen by every user of the machine and kept in "
                f"the shell's history. Run `pharos config set {_variable(field)}` and type it, or give it on stdin.",
                code="secret_in_arguments",
            )
        return value
    if sys.stdin.isatty():
        return str(typer.prompt(_variable(field), hide_input=is_secret(field)))
    return sys.stdin.read().removesuffix("\n")


def _refuse_bad_value(field: str, value: str) -> None:
    """Raise `Invalid` when this setting cannot have this value; others that cannot be read are no reason to refuse."""
    try:
        Settings(**{field: value})  # type: ignore[arg-type]
    except ValidationError as error:
        alias = Settings.model_fields[field].validation_alias
        names = {field, *(alias.choices if isinstance(alias, AliasChoices) else ())}
        for problem in error.errors():
            if problem["loc"][:1] and problem["loc"][0] in names:
                shown = "that" if is_secret(field) else repr(value)
                words = f"{_variable(field)} cannot be {shown}: {problem['msg']}."
                raise Invalid(words, code="bad_value") from error


def with_variable(text: str, *, name: str, value: str) -> str:
    """The env file's text with one variable set, its other lines as they are.

    Raises `Invalid` for a value that would not be read back as it is: the file knows no sign for a literal `${`.
    """
    kept = "".join(line.original.string for line in parse_stream(StringIO(text)) if line.key != name)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    made = f"{kept}{name}={_quoted(value)}\n"
    as_written = {**_variables(kept, interpolate=False), name: value}
    is_kept = _variables(made, interpolate=False) == as_written and _variables(made)[name] == value
    if not is_kept or len(value.splitlines()) > 1:
        raise Invalid(
            f"{name} cannot hold a line break or ${{ in {ENV_FILE}. Set it in the environment instead.",
            code="unwritable_value",
        )
    return made


def _variables(text: str, *, interpolate: bool = True) -> dict[str, str | None]:
    return dotenv_values(stream=StringIO(text), interpolate=interpolate)


def _quoted(value: str) -> str:
    if PLAIN_VALUE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


async def _record_change(field: str) -> bool:
    """Tell the audit log of the database in use; False when none answers."""
    try:
        async with asyncio.timeout(AUDIT_SECONDS), open_runtime(read_settings()) as runtime:
            principal = operator(await find_tenant(runtime, DEFAULT_SLUG))
            async with runtime.db.transaction(principal.tenant_id) as session:
                subject = f"setting:{_variable(field)}"
                await record_audit(session, principal, action="settings.changed", subject=subject)
    except (PharosError, SQLAlchemyError, OSError):  # TimeoutError is one of these
        return False
    return True


@config_app.command("check")
def check_settings() -> None:
    """Say whether every setting can be read; exit 2 and the name of the one that cannot."""
    settings = read_settings()
    for name in unknown_variables():
        echo_line(f"{name} is no setting and has no effect.")
    echo_line(f"{len(Settings.model_fields)} settings can be read; data lies in {settings.data_dir}.")


@db_app.command("init")
def init_database() -> None:
    """Make the database, its roles and the vector extension; safe to repeat."""
    urls = initialise_database(read_settings())
    echo_line(f"The database is prepared; its owner is {urls.owner_role}. Next: pharos migrate --apply")


@db_app.command("check")
def check_database() -> None:
    """Prove the fence: the app role bypasses nothing, owns nothing, and sees nothing without a tenant."""
    refuse_unsafe_role(connection_urls(read_settings()).app)
    echo_line("The fence holds: the app role bypasses nothing, owns no table, and sees no row without a tenant.")


def read_settings() -> Settings:
    """The settings. Raises `Invalid` naming the first one that cannot be read."""
    try:
        return Settings()
    except ValidationError as error:
        raise setting_error(error) from error


def _variable(field: str) -> str:
    return f"PHAROS_{field.upper()}"


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "(set)"
    text = "" if value is None else str(value)
    return text if "@" not in text else text.rpartition("@")[2]

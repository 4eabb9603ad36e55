"""`pharos config` and `pharos db`: what the operator says, and the database it is said about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr, ValidationError

from pharos.infra.database_roles import connection_urls, initialise_database, refuse_unsafe_role
from pharos.infra.errors import Invalid
from pharos.infra.settings import Settings, setting_error, unknown_variables
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table

app = typer.Typer()
config_app = typer.Typer(help="Settings in pharos.env and the environment.", no_args_is_help=True)
db_app = typer.Typer(help="The database's roles and fence.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(db_app, name="db")

ENV_FILE = Path("pharos.env")


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
    value: Annotated[str, typer.Argument(help="Its new value.")],
    dry_run: DryRun = False,
) -> None:
    """Write one setting into pharos.env after checking it."""
    field = name.removeprefix("PHAROS_").lower()
    if field not in Settings.model_fields:
        raise Invalid(f"There is no setting {name}. `pharos config list` names them all.", code="no_such_setting")
    try:
        Settings(**{field: value})  # type: ignore[arg-type]
    except ValidationError as error:
        raise Invalid(
            f"{_variable(field)} cannot be {value!r}: {error.errors()[0]['msg']}.", code="bad_value"
        ) from error
    if dry_run:
        echo_line(f"Would set {_variable(field)} in {ENV_FILE.absolute()}.")
        return
    lines = ENV_FILE.read_text().splitlines() if ENV_FILE.exists() else []
    kept = [line for line in lines if not line.startswith(f"{_variable(field)}=")]
    fresh = ENV_FILE.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text("\n".join([*kept, f"{_variable(field)}={value}"]) + "\n")
    fresh.replace(ENV_FILE)
    echo_line(f"Set {_variable(field)}. It counts from the next start: `pharos down`, then `pharos up`.")


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

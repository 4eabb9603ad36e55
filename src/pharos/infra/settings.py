"""What the operator must say. Everything a tenant may choose is a row, not a setting."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import get_args

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pharos.infra.errors import Invalid

REDIS_ADDRESS = re.compile(
    r"(rediss?://([^/?#]*@)?(\[[0-9a-fA-F:.]+\]|[^/?#@:\[\]]+)(:\d{1,5})?(/\d*)?(\?.*)?|unix://([^/]*@)?/.+)$"
)
TWO_NAMED_SECRETS = ("secret_key", "session_secret", "encryption_key")


def _alias(name: str, *others: str) -> AliasChoices:
    return AliasChoices(f"PHAROS_{name}", *others)


class Settings(BaseSettings):
    """Read from the environment and from `pharos.env` in the working directory; frozen after that.

    A variable `NAME_FILE` gives the value of a secret as a file (SE-10).
    """

    model_config = SettingsConfigDict(
        env_prefix="PHAROS_", env_file="pharos.env", extra="ignore", frozen=True, populate_by_name=True
    )

    data_dir: Path = Field(default=Path(".data"), description="Everything that must not be lost lives below it.")
    host: str = Field(default="127.0.0.1", description="Address the web process listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port the web process listens on.")
    public_url: str | None = Field(default=None, description="Address people use; links are built from it.")

    trusted_proxies: str = Field(
        default="",
        description="Networks of reverse proxies (CIDR, separated by commas) whose `X-Forwarded-For` is believed.",
    )

    database_url: str | None = Field(
        default=None,
        validation_alias=_alias("DATABASE_URL", "DATABASE_URL"),
        description="A Postgres 16-18 with pgvector >= 0.8.1, as the app role; unset: the embedded one.",
    )
    database_admin_url: SecretStr | None = Field(
        default=None,
        description="An administrator of that server; used by `pharos db init`, by `pharos restore` in all its forms "
        "and by the worker, which removes the databases that restores left.",
    )
    database_direct_url: str | None = Field(
        default=None,
        description="The same database past a pooler, for LISTEN, migrations and backups; unset: `database_url`.",
    )
    database_pool_size: int = Field(default=10, ge=1, le=200, description="Connections of one process.")
    redis_url: str | None = Field(
        default=None,
        validation_alias=_alias("REDIS_URL", "REDIS_URL"),
        description="Redis or Valkey that counts rate limits, `redis://:password@host:6379/0` (`rediss://` for TLS); "
        "unset: the database counts. Nothing that would be missed lives there.",
    )

    llm_url: str | None = Field(default=None, description="Base URL of an OpenAI-compatible server.")
    llm_key: SecretStr | None = Field(default=None, description="Its key, where it wants one.")
    llm_model: str | None = Field(default=None, description="The model to ask there.")
    allow_private_providers: bool = Field(
        default=False,
        description="Whether providers entered by tenants may lie on this machine or in private networks, such as a "
        "local Ollama; the one of `llm_url` always may.",
    )
    models_dir: Path = Field(
        default=Path(sys.prefix) / "share" / "pharos" / "models", description="Where the local models lie."
    )
    embedder_url: str | None = Field(
        default=None, description="The embedder elsewhere; unset: a socket in the data directory."
    )

    secret_key: SecretStr | None = Field(
        default=None,
        validation_alias=_alias("SECRET_KEY", "JWT_SECRET", "SECRET_KEY", "AUTH_SECRET"),
        description="Signs access tokens, >= 32 bytes; unset: generated once into the data directory.",
    )
    session_secret: SecretStr | None = Field(
        default=None,
        validation_alias=_alias("SESSION_SECRET", "SESSION_SECRET"),
        description="Signs cookie sessions, >= 16 characters; unset: generated once into the data directory.",
    )
    encryption_key: SecretStr | None = Field(
        default=None,
        validation_alias=_alias("ENCRYPTION_KEY", "ENCRYPTION_KEY"),
        description="Encrypts stored secrets: 32 bytes as base64 or hex; further ones after a comma only read.",
    )
    encryption_key_file: Path | None = Field(
        default=None,
        validation_alias=_alias("ENCRYPTION_KEY_FILE", "ENCRYPTION_KEY_FILE"),
        description="The file it lies in; unset: generated once as `secrets/encryption_key` in the data directory.",
    )
    access_token_minutes: int = Field(default=30, ge=1, description="Life of an access token.")
    refresh_token_days: int = Field(default=7, ge=1, le=365, description="Life of a refresh token that is not used.")

    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server, `smtp://user:password@host:587` (STARTTLS) or `smtps://…`; unset: mail lies as files "
        "in `outbox` of the data directory.",
    )
    mail_from: str | None = Field(
        default=None,
        validation_alias=_alias("MAIL_FROM", "SMTP_FROM"),
        description="Visible sender, `Name <address>`; needed with `smtp_url`.",
    )

    upload_root: Path | None = Field(
        default=None,
        validation_alias=_alias("UPLOAD_ROOT", "UPLOAD_ROOT"),
        description="Where uploaded files lie; unset: `blobs` in the data directory.",
    )
    max_upload_bytes: int = Field(default=100 * 1024 * 1024, ge=1, description="Largest document accepted.")
    ingest_paths: str = Field(default="", description="Folders `POST /ingest` reads, separated by colons.")
    backup_dir: Path | None = Field(
        default=None, description="Where backups lie, best on another disk; unset: `backups` in the data directory."
    )
    backup_at: str = Field(
        default="03:00",
        description="Local time of the daily backup, `HH:MM`; it is restored and compared at once. Empty: none.",
    )
    offsite_at: str = Field(
        default="03:30",
        description="Local time at which the newest verified backup is copied to `PHAROS_OFFSITE`, `HH:MM`; one of "
        "before that is verified later is copied then. Empty: by hand only.",
    )
    backup_keep_days: int = Field(
        default=7, ge=1, le=3650, description="Days a backup is kept; the newest good one is kept anyway."
    )
    backup_recipient: str | None = Field(
        default=None,
        description="Public key (`age1…`) whose private half, kept elsewhere, opens the secrets in a backup; several "
        "after commas.",
    )
    offsite: str | None = Field(
        default=None,
        description="Where copies of backups go: `restic:` with a directory, `sftp:user@host:/path` or "
        "`s3:https://host/bucket`, or `rsync:` with a directory or `user@host:/path`.",
    )
    offsite_password_file: Path | None = Field(
        default=None, description="File with the restic repository's password; unset: generated once."
    )
    offsite_s3_key_id: str | None = Field(default=None, description="Id of the access key of an S3 server.")
    offsite_s3_key: SecretStr | None = Field(default=None, description="That access key.")
    offsite_ssh_key_file: Path | None = Field(
        default=None, description="Private key for copies over SSH; unset: those of this user in `~/.ssh`."
    )
    offsite_ssh_known_hosts_file: Path | None = Field(
        default=None, description="Keys of the hosts that copies may go to; unset: `~/.ssh/known_hosts`."
    )
    offsite_ssh_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of SSH there; unset: as in `~/.ssh/config`, else 22."
    )
    rollback_keep_days: int = Field(
        default=7, ge=1, le=365, description="Days the database from before a restore is kept to swap back to."
    )
    drill_every_days: int = Field(
        default=30, ge=0, le=366, description="Days between two restore drills, which run by themselves; 0: none."
    )
    worker_concurrency: int = Field(default=4, ge=1, le=64, description="Jobs one worker runs at a time.")
    metrics_aliases: str = Field(
        default="",
        description="Prefixes, separated by commas, under which `pharos_` metrics are given as well, so that the "
        "dashboards of another installation go on: `nyxcore`.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator(
        "data_dir",
        "models_dir",
        "upload_root",
        "encryption_key_file",
        "backup_dir",
        "offsite_password_file",
        "offsite_ssh_key_file",
        "offsite_ssh_known_hosts_file",
        mode="after",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None

    @field_validator("redis_url", mode="after")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        if url and not REDIS_ADDRESS.match(url):
            msg = "a Redis address is redis://host:port/0, rediss://… or unix:///path"
            raise ValueError(msg)
        return url or None

    @field_validator("backup_at", "offsite_at", mode="after")
    @classmethod
    def _time_of_day(cls, text: str) -> str:
        if text and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
            msg = "it is a time of the day, HH:MM, or empty"
            raise ValueError(msg)
        return text

    @field_validator("trusted_proxies", mode="after")
    @classmethod
    def _networks(cls, text: str) -> str:
        for part in filter(None, map(str.strip, text.split(","))):
            ipaddress.ip_network(part)
        return text

    @field_validator("metrics_aliases", mode="after")
    @classmethod
    def _prefixes(cls, text: str) -> str:
        if not re.fullmatch(r"([a-z][a-z0-9_]*(,\s*|$))*", text.strip()):
            msg = "a prefix has small letters, digits and _, and several are separated by commas"
            raise ValueError(msg)
        return text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then `*_FILE` variables, then `pharos.env`."""
        return (init_settings, env_settings, _FileVariables(settings_cls), dotenv_settings)

    @cached_property
    def blob_root(self) -> Path:
        return self.upload_root or self.data_dir / "blobs"

    @cached_property
    def backup_root(self) -> Path:
        return self.backup_dir or self.data_dir / "backups"

    @cached_property
    def base_url(self) -> str:
        host = {"0.0.0.0": "localhost", "127.0.0.1": "localhost", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @cached_property
    def metric_prefixes(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.metrics_aliases.split(",") if part.strip())

    @cached_property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.ip_network(part.strip()) for part in self.trusted_proxies.split(",") if part.strip())

    @cached_property
    def ingest_folders(self) -> tuple[Path, ...]:
        return tuple(Path(part) for part in self.ingest_paths.split(":") if part)

    @cached_property
    def embedder_socket(self) -> Path:
        return self.data_dir / "run" / "embedder.sock"


class _FileVariables(PydanticBaseSettingsSource):
    """`PHAROS_SECRET_KEY_FILE=/run/secrets/key` stands for the content of that file."""

    names = (
        "secret_key",
        "session_secret",
        "llm_key",
        "database_url",
        "database_admin_url",
        "redis_url",
        "smtp_url",
        "offsite_s3_key",
    )

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        file = os.environ.get(f"PHAROS_{field_name.upper()}_FILE")
        return (Path(file).read_text().strip() if file else None), field_name, False

    def __call__(self) -> dict[str, str]:
        fields = self.settings_cls.model_fields
        values = {name: self.get_field_value(fields[name], name)[0] for name in self.names}
        return {name: value for name, value in values.items() if value is not None}


def is_secret(field: str) -> bool:
    """Whether a setting's value must not be shown, nor given where other users of the machine see it."""
    return field in _FileVariables.names or SecretStr in get_args(Settings.model_fields[field].annotation)


def setting_error(error: ValidationError, *, file: str = "pharos.env") -> Invalid:
    """What `Settings()` raised, as a sentence naming the first setting that cannot be read; never its value. `file` is
    the one that was read, as whoever reads the sentence finds it."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    wanted = first["msg"].removeprefix("Value error, ")
    if (field := Settings.model_fields.get(name)) is not None and field.annotation is int:
        limits = {kind: getattr(one, kind) for one in field.metadata for kind in ("ge", "le") if hasattr(one, kind)}
        wanted = f"it is a whole number from {limits.get('ge', 0)}" + (f" to {limits['le']}" if "le" in limits else "")
    place = f"Mend it in the environment or in {file}."
    return Invalid(f"{_as_typed(name) if name else 'A setting'} cannot be read: {wanted}. {place}")


def _as_typed(name: str) -> str:
    """The variable that gives a setting as somebody wrote it: capitals do not matter and it may name a file."""
    variable = f"PHAROS_{name.upper()}" if name in Settings.model_fields else name
    given = [*os.environ, *dotenv_values(str(Settings.model_config["env_file"]))]
    return next((one for one in given if one.upper() in (variable, f"{variable}_FILE")), variable)


def variable_of(field: str) -> str:
    """The variable that gives a setting, by the name somebody chose of those it has; the first one if nobody did."""
    names = _names_of(field)
    given = [*os.environ, *dotenv_values(str(Settings.model_config["env_file"]))]
    return next((one for name in names for one in given if one.upper() == name), names[0])


def _names_of(field: str) -> list[str]:
    """All names of a setting's variables, in capitals, ours first and the one that names a file last."""
    alias = Settings.model_fields[field].validation_alias
    names = [str(one) for one in alias.choices] if isinstance(alias, AliasChoices) else []
    return [*(names or [f"PHAROS_{field.upper()}"]), f"PHAROS_{field.upper()}_FILE"]


def variables_given(field: str | None = None, *, environment: Mapping[str, str] | None = None) -> list[str]:
    """The variables of an environment, this process's unless another is named, that give settings, or that setting."""
    names = {name for one in ([field] if field else Settings.model_fields) for name in _names_of(one)}
    return sorted(name for name in (os.environ if environment is None else environment) if name.upper() in names)


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings and are none: misspelt, or of another version."""
    names = (name for name in os.environ if name.startswith("PHAROS_"))
    return sorted(
        name
        for name in names
        if name.removeprefix("PHAROS_").removesuffix("_FILE").lower() not in Settings.model_fields
    )


def refuse_two_values() -> None:
    """Raise `Invalid` when a secret is set under two names with different values: nobody can know which one counts."""
    file = dotenv_values(str(Settings.model_config["env_file"]))
    given = {**{name: value for name, value in file.items() if value}, **os.environ}
    for field in TWO_NAMED_SECRETS:
        alias = Settings.model_fields[field].validation_alias
        assert isinstance(alias, AliasChoices)
        found = {name: given[name] for choice in alias.choices if (name := str(choice)) in given}
        if file_name := given.get(f"PHAROS_{field.upper()}_FILE"):
            found[f"PHAROS_{field.upper()}_FILE"] = Path(file_name).read_text().strip()
        if len(set(found.values())) > 1:
            raise Invalid(
                f"{' and '.join(found)} are set and differ. Keep the one whose value is in use and unset the other.",
                code="two_values",
            )


def child_environment(settings: Settings) -> dict[str, str]:
    """What a process that belongs to this installation is started with."""
    return {**os.environ, "PHAROS_DATA_DIR": str(settings.data_dir), "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def settings_in(directory: Path, environment: Mapping[str, str] | None = None) -> Iterator[Settings]:
    """The settings of a process started in that directory with that environment, or with this one's.

    For the block this process is such a one, so that what it starts inherits both: only for a command's single thread.
    Raises `Invalid` naming the file in that directory when a setting cannot be read.
    """
    home, before = Path.cwd(), dict(os.environ)
    try:
        os.chdir(directory)
        _become(before if environment is None else environment)
        try:
            settings = Settings()
        except ValidationError as error:
            raise setting_error(error, file=str(directory / str(Settings.model_config["env_file"]))) from error
        yield settings
    finally:
        _become(before)
        os.chdir(home)  # last: it may have been removed meanwhile


def _become(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)

"""`pharos doctor`: why it does not start or answer, and the exact next command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import psycopg
import typer

from pharos.identity.signing_keys import refuse_bad_signing_secrets
from pharos.infra import embedded_postgres, migrate
from pharos.infra.counts import CountsGone, RedisCounts
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, Invalid, PharosError, StorageFull, Unavailable
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.settings import Settings
from pharos.infra.smtp import NO_SERVER, MailDelayed, MailFailed, MailTransport
from pharos.infra.terminal import AsJson, echo_json, echo_table, run_async
from pharos.ops.backup.restore_journal import read_unfinished
from pharos.ops.check_data import DataReport, check_data, describe, repair_data
from pharos.ops.config_commands import read_settings
from pharos.ops.disk import find_disks
from pharos.ops.listen import local_url, refuse_busy_port
from pharos.ops.provider_check import check_providers
from pharos.ops.running import read_state
from pharos.ops.secrets_check import (
    find_overdue,
    list_known_secrets,
    refuse_wrong_secrets,
)
from pharos.ops.socket_probe import probe_socket
from pharos.ops.standing import Standing, read_standing
from pharos.runtime import Runtime, open_runtime

app = typer.Typer()
Found = TypeVar("Found")

PLACEHOLDER_EMAIL = "admin@example.com"
"""What `pharos user create-admin` takes where nobody says otherwise (ID-08)."""


@dataclass(frozen=True)
class Finding:
    """One check: PASS, WARN or FAIL with cause and fix, or SKIP when what it needs has failed before."""

    check: str
    result: Literal["PASS", "WARN", "FAIL", "SKIP"]
    cause: str = ""


class Doubt(Exception):
    """Pharos works, and something should still be changed: the message says what and how."""


def check_variables() -> str:
    settings = read_settings()
    refuse_bad_signing_secrets(settings)
    return f"data lies in {settings.data_dir}"


def check_database() -> str:
    settings = Settings()
    if settings.database_url is None:
        cluster = embedded_postgres.find(settings.data_dir)
        if cluster is None:
            raise Unavailable(f"There is no database in {settings.data_dir} yet. Start Pharos: pharos up")
        if embedded_postgres.running_pid(cluster) is None:
            raise Unavailable("Postgres is not running. Start it: pharos up --only postgres")
    url = connection_urls(settings).app
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return f"Postgres {connection.info.server_version // 10000} answers"
    except psycopg.OperationalError as error:
        raise Unavailable(
            f"The database refuses: {str(error).strip().splitlines()[-1]} Is it running, is the host name right, can "
            "this machine reach it? See PHAROS_DATABASE_URL in `pharos config list`."
        ) from error


def check_redis() -> str:
    url = Settings().redis_url
    if url is None:
        return "none is configured: the database counts rate limits"
    try:
        run_async(_count_in_redis(url))
    except CountsGone as gone:
        raise Doubt(
            f"Redis does not count: {type(gone.__cause__).__name__}. Sign-ins are limited by each process for itself "
            "and all else is let through. Start it, mend PHAROS_REDIS_URL, or unset it: then the database counts."
        ) from gone
    return "Redis counts rate limits"


async def _count_in_redis(url: str) -> None:
    counts = RedisCounts(url)
    try:
        await counts.hit("probe", 1.0)
    finally:
        await counts.close()


def check_migrations() -> str:
    state = migrate.schema_state(connection_urls(Settings()).app)
    if state.pending:
        raise Unavailable(f"Migrations have not run: {', '.join(state.pending)}. Run: pharos migrate --apply")
    return f"the schema is at {state.current}"


def check_fence() -> str:
    refuse_unsafe_role(connection_urls(Settings()).app)
    return "tenants are kept apart by the database"


def check_port() -> str:
    settings = Settings()
    state = read_state(settings)
    if state is not None and state.port == settings.port:
        return f"port {settings.port} is ours"
    refuse_busy_port(settings)
    return f"port {settings.port} is free"


def check_uploads() -> str:
    settings = Settings()
    settings.blob_root.mkdir(parents=True, exist_ok=True, mode=0o700)
    probe = settings.blob_root / ".doctor"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise Unavailable(
            f"{settings.blob_root} cannot be written: {error.strerror}. Give it to the user who runs Pharos, or set "
            "UPLOAD_ROOT."
        ) from error
    return f"{settings.blob_root} can be written"


def check_models() -> str:
    settings = Settings()
    if not any(settings.models_dir.glob("*/manifest.json")):
        raise Unavailable(f"The models are not in {settings.models_dir}. Run: pharos models prepare")
    return "the local models are installed"


def check_providers_of_models() -> str:
    found = run_async(_with_runtime(check_providers))
    if found.troubles:
        raise Doubt(f"{' '.join(found.troubles)} Without a model questions are answered with quotations.")
    if not found.number:
        return "no model may be asked: answers are quotations"
    return f"{found.number} may be asked, and the last call of each was answered, where there was one"


def check_secrets() -> str:
    settings = Settings()
    refuse_bad_signing_secrets(settings)
    run_async(_refuse_wrong_secrets(settings))
    overdue = [f"{line.name} is {line.age_days} days old: {line.rotate}" for line in find_overdue(settings)]
    names = ", ".join(f"{line.name} ({line.source})" for line in list_known_secrets(settings))
    return "; ".join([f"they fit: {names}", *overdue])


async def _refuse_wrong_secrets(settings: Settings) -> None:
    async with open_runtime(settings) as runtime:
        await refuse_wrong_secrets(runtime)


def check_people() -> str:
    with psycopg.connect(connection_urls(Settings()).app, connect_timeout=5) as connection:
        found = connection.execute("select from users where email = %s", [PLACEHOLDER_EMAIL]).fetchone()
    if found is not None:
        raise Doubt(
            f"An account has the address {PLACEHOLDER_EMAIL}, which no mail reaches. Change it, or make an "
            "administrator with an address of their own: pharos user create-admin --email"
        )
    return "nobody has a placeholder for an address"


def check_mail() -> str:
    settings = Settings()
    try:
        words: str = run_async(MailTransport(settings).probe())
    except (MailFailed, MailDelayed) as error:
        raise Doubt(f"{error.message} All else works; mail waits.") from error
    if settings.smtp_url is None:
        raise Doubt(f"{NO_SERVER} To send it, set PHAROS_SMTP_URL and PHAROS_MAIL_FROM.")
    return words


def check_disk() -> str:
    disks = find_disks(Settings())
    said = "; ".join(disk.describe() for disk in disks)
    if any(disk.is_full for disk in disks):
        raise StorageFull(f"The disk is full. {said}. Make room now: see the runbook's page on a disk that is full.")
    if any(disk.is_low for disk in disks):
        raise Doubt(f"The disk runs low. {said}. Make room, or move backups elsewhere with PHAROS_BACKUP_DIR.")
    return said


def check_backup() -> str:
    settings = Settings()
    if settings.database_url is None and embedded_postgres.find(settings.data_dir) is None:
        raise Doubt(f"Pharos was never started here, so there is nothing to back up. {_first_backup(settings)}")
    standing = run_async(_with_runtime(_fresh_standing))
    words = " ".join(notice.words for notice in standing.notices)
    if standing.is_failing:
        raise Doubt(words)
    if words:
        raise Doubt(f"{_newest_backup(settings, standing)}. What is still to be done: {words}")
    return _newest_backup(settings, standing)


def _newest_backup(settings: Settings, standing: Standing) -> str:
    if standing.good is not None:
        hours = (standing.at - standing.good.made_at).total_seconds() / 3600
        return f"{standing.good.name}, {hours:.0f} h old, was restored and compared"
    if standing.backups:
        return f"{standing.backups[0].name} was made, and counts once it was restored: `pharos backup verify`"
    return f"There is no backup yet, and none is due. {_first_backup(settings)}"


def _first_backup(settings: Settings) -> str:
    when = (
        f"The first one is made and restored by itself at {settings.backup_at} while Pharos runs"
        if settings.backup_at
        else "None is made by itself, for PHAROS_BACKUP_AT is empty"
    )
    return f"{when}; `pharos up` starts it, `pharos backup nightly` makes one now"


async def _fresh_standing(runtime: Runtime) -> Standing:
    return await read_standing(runtime, fresh=True)


def check_restore() -> str:
    left = read_unfinished(Settings())
    if left is not None:
        raise Doubt(left.words)
    return "none was broken off"


def check_data_fits() -> str:
    return _judge_data(run_async(_with_runtime(check_data)))


def repair_data_that_is_torn() -> str:
    return _judge_data(run_async(_with_runtime(repair_data)))


def _judge_data(reports: list[DataReport]) -> str:
    said = describe(reports)
    if any(report.unrepairable for report in reports):
        raise Conflict(f"{said}. Only a backup has these files: pharos restore --uploads-only latest")
    if any(report.faults for report in reports):
        raise Conflict(f"{said}. Put it right, nothing is lost by it: pharos doctor data --repair")
    return said


def check_socket() -> str:
    """The one word is what the runbooks promise of this check (RE-01)."""
    run_async(probe_socket(local_url(Settings())))
    return "OK"


async def _with_runtime(look: Callable[[Runtime], Awaitable[Found]]) -> Found:
    async with open_runtime(Settings()) as runtime:
        return await look(runtime)


CHECKS: dict[str, Callable[[], str]] = {
    "variables": check_variables,
    "db": check_database,
    "redis": check_redis,
    "migrations": check_migrations,
    "fence": check_fence,
    "secrets": check_secrets,
    "people": check_people,
    "mail": check_mail,
    "port": check_port,
    "uploads": check_uploads,
    "models": check_models,
    "providers": check_providers_of_models,
    "disk": check_disk,
    "backup": check_backup,
    "restore": check_restore,
    "data": check_data_fits,
    "ws": check_socket,
}
NEEDS = {
    "migrations": "db",
    "fence": "migrations",
    "secrets": "migrations",
    "people": "migrations",
    "providers": "migrations",
    "backup": "migrations",
    "data": "migrations",
}
ONLY_BY_NAME = ("data", "ws")
"""`data` reads every row of the index: minutes where there are millions of passages. `ws` wants a running server."""


def examine(names: list[str], checks: Mapping[str, Callable[[], str]] = CHECKS) -> list[Finding]:
    """Run checks in their order; one whose ground has failed is skipped."""
    findings: dict[str, Finding] = {}
    for name in names:
        ground = findings.get(NEEDS.get(name, ""))
        if ground is not None and ground.result != "PASS":
            findings[name] = Finding(name, "SKIP", f"needs {ground.check}")
            continue
        try:
            findings[name] = Finding(name, "PASS", checks[name]())
        except Doubt as doubt:
            findings[name] = Finding(name, "WARN", str(doubt))
        except PharosError as error:
            findings[name] = Finding(name, "FAIL", error.message)
        except (psycopg.Error, OSError) as error:
            findings[name] = Finding(name, "FAIL", f"{type(error).__name__}: {error}".strip())
    return list(findings.values())


@app.command()
def doctor(
    check: Annotated[str | None, typer.Argument(help=f"One of {', '.join(CHECKS)}; all if left out.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="With `data`: put right what can be without loss.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what keeps Pharos from starting or answering; every failure names the next command."""
    if check is not None and check not in CHECKS:
        raise Invalid(f"There is no check {check}. The checks are {', '.join(CHECKS)}.", code="no_such_check")
    if repair and check != "data":
        raise Invalid("Only data can be repaired: pharos doctor data --repair", code="not_repairable")
    names = [check] if check else [name for name in CHECKS if name not in ONLY_BY_NAME]
    findings = examine(names, CHECKS | ({"data": repair_data_that_is_torn} if repair else {}))
    if as_json:
        echo_json(findings)
    else:
        echo_table(
            ["check", "result", "cause and next step"], [[f.check, f.result, f.cause] for f in findings], empty=""
        )
    if any(finding.result == "FAIL" for finding in findings):
        raise typer.Exit(Unavailable.exit_code)

"""What is kept of a drill: its checks, its log as Markdown beside the backups, its row, and when the next is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pharos import __version__
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.ids import new_id
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.infra.terminal import size_text, time_text
from pharos.ops.backup.manifest import write_private
from pharos.ops.backup.store import StoredBackup

log = get_logger(__name__)

OVERDUE_DAYS = 92
"""A quarter."""
FIRST_AFTER = timedelta(hours=24)
"""An installation that never had a drill gets its first one when its oldest good backup is a day old."""
DATABASE_SECONDS = 3


@dataclass(frozen=True)
class DrillCheck:
    """One step; a failed one has the error's `code`, the likely cause and the next command."""

    name: str
    result: Literal["PASS", "FAIL", "SKIP"]
    said: str
    cause: str = ""
    next_step: str = ""
    seconds: float = 0.0
    code: str = ""


@dataclass(frozen=True)
class DrillReport:
    """A whole drill. `source` says where the backup came from; `tables` are (as the manifest says, in all)."""

    name: str
    started_at: datetime
    by: str
    backup_name: str
    backup_bytes: int
    source: str
    target: str
    tables: tuple[int, int]
    checks: tuple[DrillCheck, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> tuple[DrillCheck, ...]:
        return tuple(check for check in self.checks if check.result == "FAIL")


DISK = ("the disk, or the copy, has damaged the backup", "pharos doctor disk; then pharos backup verify")
CUT = (
    "the dump was cut off: a full disk, or Postgres stopped while it was made",
    "pharos doctor; then pharos backup now",
)
KEYS = (
    "the keys in the backup are not those of its secrets, or the drill identity was replaced since",
    "pharos secrets check; then pharos backup now and pharos drill",
)
STARTS = ("what was restored does not start", "pharos doctor; the end of the log says more")
CAUSES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("missing_file", "wrong_size", "damaged_file", "misnamed_blob", "wrong_blobs", "bad_manifest"), DISK
    ),
    **dict.fromkeys(("bad_signature", "no_signature", "no_manifest", "foreign_file", "document_without_file"), DISK),
    **dict.fromkeys(("unreadable_dump", "missing_table", "dump_not_loaded"), CUT),
    **dict.fromkeys(("escrow_not_opened", "wrong_escrow", "secrets_not_opened", "bad_identity_file"), KEYS),
    **dict.fromkeys(("drill_not_ready", "drill_web_failed"), STARTS),
    "no_such_backup": ("no backup was verified yet: is the daily one made at all?", "pharos backup list --log"),
    "no_such_copy": ("no copy has reached the place of PHAROS_OFFSITE", "pharos backup push"),
    "backup_differs": (
        "tables changed while it was dumped, or afterwards in the dump: it is not what was there when it was made",
        "pharos backup now; then pharos backup verify, and pharos drill again",
    ),
    "newer_schema": ("the backup was made by a newer version than this one", "update Pharos; then pharos drill"),
    "unknown_signer": ("another installation made the backup", "pharos backup list; push one of this installation"),
    "smoke_failed": ("the restored Pharos runs, but does not do what people ask of it", "pharos smoke; pharos doctor"),
    "canary_failed": (
        "passages or vectors are not those of the documents, or the models differ",
        "pharos doctor data; then pharos drill",
    ),
    "offsite_unreachable": ("the place of PHAROS_OFFSITE does not answer", "pharos backup pull --list"),
    "offsite_refused": ("the place of PHAROS_OFFSITE does not let this machine in", "pharos backup pull --list"),
    "offsite_unknown_host": ("the key of the host of PHAROS_OFFSITE is not known here", "pharos backup pull --list"),
    "offsite_host_changed": ("the host of PHAROS_OFFSITE shows another key", "pharos backup pull --list"),
    "offsite_damaged": ("the repository's disk damages what lies on it", "pharos backup pull --list; a new repository"),
    "storage_full": ("no room for a second copy of everything", "pharos doctor disk"),
}
"""Likely cause and next command for each way a drill fails (DR-09); any other error names its next step itself."""


def explain(error: PharosError) -> tuple[str, str]:
    """(likely cause, next command) of what stopped a drill."""
    return CAUSES.get(error.code, ("its own words say it", "pharos doctor"))


def to_markdown(report: DrillReport, *, for_web: bool = False) -> str:
    """The log of a drill, as a page to be filed; what is shown to administrators has codes for what failed.

    They belong to one tenant, and an error's words may name another one's files and this machine's folders.
    """
    if for_web:
        checks = (replace(one, said=one.code) if one.result == "FAIL" else one for one in report.checks)
        report = replace(report, checks=tuple(checks))
    result = "passed" if report.passed else "FAILED"
    same, tables = report.tables
    facts = [
        ("date", f"{report.started_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("result", result),
        ("backup", f"{report.backup_name or 'none'}, {size_text(report.backup_bytes)}, {report.source}"),
        ("target", report.target),
        ("duration", time_text(report.seconds)),
        ("tables", f"{same}/{tables}"),
        ("row counts match", "yes" if tables and same == tables else "no"),
        ("issues", "; ".join(f"{check.name}: {check.said}" for check in report.failed) or "none"),
        ("corrective actions", "; ".join(check.next_step for check in report.failed) or "none"),
        ("by whom", report.by),
        ("version", __version__),
    ]
    lines = [f"# {report.name}: {result}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts]
    lines += ["", "| check | result | seconds | what was seen |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.result} | {one.seconds:.1f} | {_cell(one.said)} |" for one in report.checks]
    for check in report.failed:
        lines += ["", f"**{check.name}.** Likely cause: {check.cause}. Next: `{check.next_step}`."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def save_report(settings: Settings, report: DrillReport) -> Path:
    """Keep the log below the backups and as a row; the file's place. Without a database the file is all there is."""
    folder = settings.backup_root / "drills"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{report.name}-{report.started_at:%H%M%S}.md"
    write_private(file, to_markdown(report).encode())
    values = {
        "id": new_id(),
        **{key: getattr(report, key) for key in ("name", "backup_name", "started_at", "seconds", "passed", "by")},
        "report": to_markdown(report, for_web=True),
        "checks": Jsonb([asdict(check) for check in report.checks]),
    }
    statement = """
        insert into drills (id, name, backup_name, started_at, seconds, passed, by, report, checks)
        values (%(id)s, %(name)s, %(backup_name)s, %(started_at)s, %(seconds)s, %(passed)s, %(by)s, %(report)s,
                %(checks)s)
    """
    try:
        with _connect(settings) as connection:
            connection.execute(statement, values)
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, Unavailable) as failure:
        log.warning("drill.row_not_written", drill=report.name, reason=str(failure).splitlines()[0])
    return file


def list_drills(settings: Settings, *, limit: int = 50) -> list[dict[str, Any]]:
    """The rows of past drills, newest first: name, backup_name, started_at, seconds, passed, by, report, checks."""
    query = (
        "select name, backup_name, started_at, seconds, passed, by, report, checks from drills "
        "order by started_at desc limit %s"
    )
    with _connect(settings) as connection:
        return connection.execute(query, [limit]).fetchall()


def days_since_passed(drills: Sequence[dict[str, Any]], *, now: datetime) -> int | None:
    """Whole days since a drill passed; None when none ever has. Overdue from `OVERDUE_DAYS` on."""
    passed = [one["started_at"] for one in drills if one["passed"]]
    return (now - max(passed)).days if passed else None


def is_drill_due(
    drills: Sequence[dict[str, Any]], backups: Sequence[StoredBackup], *, every_days: int, now: datetime
) -> bool:
    """Whether the worker starts a drill now: `every_days` after the last attempt, 0 for never.

    An attempt that failed counts too: it was told, and repeating it every hour would only keep the machine busy.
    """
    good = [backup.made_at for backup in backups if backup.is_good]
    if every_days == 0 or not good:
        return False
    last = max((one["started_at"] for one in drills), default=None)
    return now - min(good) >= FIRST_AFTER if last is None else now - last >= timedelta(days=every_days)


def _connect(settings: Settings) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(
        connection_urls(settings).app,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=DATABASE_SECONDS,
        prepare_threshold=None,
    )

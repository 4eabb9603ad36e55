"""Which backups there are, what is known of each, and which one somebody means.

The folders are the truth: a wiped or lost database still has its backups. Rows add what a folder cannot hold: attempts
that failed and when a copy left the machine. Where the database does not answer, the folders alone are listed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from pharos import __version__
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, Invalid, NotFound, PharosError, Unavailable
from pharos.infra.ids import new_id
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import MANIFEST, VERIFIED, Manifest, read_manifest, write_private

log = get_logger(__name__)

NAME = re.compile(r"pharos-(\d{8})-(\d{6})")
PULLING = ".pulling-"
"""How the folder of a copy that is being fetched begins."""
MOMENT = re.compile(
    r"(?:pharos-)?(\d{4})-?(\d{2})-?(\d{2})(?:[T _-]?(\d{2}):?(\d{2})(?::?(\d{2})(?:\.\d+)?)?(?:Z|\+00:00)?)?"
)
FAILED, WRITTEN, VERIFIED_STATE, OFFSITE = "failed", "written", "verified", "offsite"
GOOD = (VERIFIED_STATE, OFFSITE)
CLOCK_IS_WRONG = timedelta(days=1)
FUTURE_WORDS = (
    "By its own words it was made on a day to come: the clock was wrong then. It may be restored by its name; remove "
    "its folder when a later one is good."
)
"""Called good, it would be the newest one until that day: no alert would say that none is made any more."""
DATABASE_SECONDS = 3
"""How long the rows are waited for: a list of backups is asked for when the database is ill."""


@dataclass(frozen=True)
class StoredBackup:
    """`state` is failed, written, verified or offsite; `folder` is None for an attempt that left none, or one removed.

    A folder that was copied here from elsewhere has no `id`: no row tells of it. `sealed_to` and
    `installation_id` are those of its manifest, "" without one; `pulled_at` is when it was fetched from offsite.
    """

    name: str
    made_at: datetime
    state: str
    folder: Path | None
    bytes: int = 0
    documents: int = 0
    seconds: float = 0.0
    id: UUID | None = None
    verified_at: datetime | None = None
    offsite_at: datetime | None = None
    error_code: str | None = None
    error: str | None = None
    sealed_to: tuple[str, ...] = ()
    installation_id: str = ""
    pulled_at: datetime | None = None

    @property
    def is_good(self) -> bool:
        """Whether it has been restored and compared since it was made."""
        return self.folder is not None and self.state in GOOD


@dataclass(frozen=True)
class Verification:
    """`verified.json`: how the last verification of this very manifest ended."""

    passed: bool
    at: datetime
    version: str
    seconds: float
    manifest_sha256: str
    error_code: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Found:
    """The backup somebody means, and others that their words fit too, newest first."""

    backup: StoredBackup
    others: tuple[StoredBackup, ...] = ()

    @property
    def folder(self) -> Path:
        assert self.backup.folder is not None
        return self.backup.folder

    @property
    def remark(self) -> str | None:
        """What to say when there was a choice."""
        if not self.others:
            return None
        names = ", ".join(f"{other.name} ({other.state})" for other in self.others)
        return f"{len(self.others) + 1} backups fit; taking {self.backup.name}. The others: {names}."


def list_backups(settings: Settings, *, removed: bool = False) -> list[StoredBackup]:
    """Every backup, newest first: folders with what rows add, and attempts that failed without leaving a folder.

    `removed` adds those that were there once and are gone.
    """
    rows = {row["name"]: row for row in _read_rows(settings)}
    folders = [_with_row(describe_folder(folder), rows.pop(folder.name, None)) for folder in _folders(settings)]
    gone = [_from_row(row) for row in rows.values() if removed or row["state"] == FAILED]
    return sorted(folders + gone, key=lambda backup: (backup.made_at, backup.name), reverse=True)


def describe_folder(folder: Path) -> StoredBackup:
    """A backup as its folder shows it; `failed` with the reason is one whose manifest cannot be read, one of a day to
    come, and a verified one that lost a file since, or part of one: their sizes are looked at, not their content."""
    try:
        manifest = read_manifest(folder)
    except PharosError as error:
        return StoredBackup(folder.name, _moment_of(folder), FAILED, folder, error_code=error.code, error=error.message)
    found = read_verification(folder)
    known = StoredBackup(
        name=folder.name,
        made_at=manifest.made_at,
        state=WRITTEN,
        folder=folder,
        bytes=manifest.bytes,
        documents=manifest.documents,
        seconds=manifest.seconds,
        sealed_to=tuple(manifest.sealed_to),
        installation_id=manifest.installation_id,
        pulled_at=_pulled_at(folder),
    )
    if manifest.made_at > datetime.now(UTC) + CLOCK_IS_WRONG:
        return replace(known, state=FAILED, error_code="made_in_the_future", error=FUTURE_WORDS)
    if found is None:
        return known
    if not found.passed:
        return replace(known, state=FAILED, error_code=found.error_code, error=found.error)
    if fault := _lost_since(folder, manifest):
        return replace(known, state=FAILED, verified_at=found.at, error_code=fault[0], error=fault[1])
    return replace(known, state=VERIFIED_STATE, verified_at=found.at)


def pulled_file(folder: Path) -> Path:
    """Beside a backup that was fetched from offsite: when, as ISO 8601. Inside it would be a file no manifest names."""
    return folder.with_name(f".pulled-{folder.name}")


def _pulled_at(folder: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(pulled_file(folder).read_text())
    except (OSError, ValueError):
        return None  # half a file says nothing: its age counts from when it was made


def installation_file(settings: Settings) -> Path:
    """Where the id lies that the backups of this installation bear."""
    return settings.data_dir / "secrets" / "installation_id"


def is_made_here(settings: Settings, backup: StoredBackup) -> bool:
    """Whether the manifest of a backup names this installation, or there is none that could."""
    file = installation_file(settings)
    return backup.installation_id in ("", file.read_text().strip() if file.exists() else None)


def _lost_since(folder: Path, manifest: Manifest) -> tuple[str, str] | None:
    """Code and words for the first file of the manifest that is not there, or has another size."""
    for path, state in manifest.files.items():
        try:
            size = (folder / path).stat().st_size
        except OSError as error:
            code, said = "missing_file", f"cannot be found ({error.strerror})"
        else:
            if size == state.bytes:
                continue
            code, said = "wrong_size", f"is {size} bytes long instead of {state.bytes}"
        return code, f"{path} {said}. Take another backup, or copy this one again from where it is whole."
    return None


def find_backup(settings: Settings, what: str, *, usable: bool = False) -> Found:
    """The backup that `latest`, a date, a moment (UTC), a name, an id or a path means (C-17).

    Where a date fits several the newest is taken and `remark` says so; with `usable` the failed ones only when nothing
    else fits. Raises `NotFound` (`no_such_backup`) with what there is, `Conflict` for a path that is being written.
    """
    path = Path(what).expanduser()
    if "/" in what or (path / MANIFEST).exists():
        return Found(_at_path(path.parent if path.name == MANIFEST else path))
    present = [backup for backup in list_backups(settings) if backup.folder is not None]
    fitting = [backup for backup in present if _fits(backup, what)]
    if usable:
        fitting.sort(key=lambda backup: backup.state == FAILED)  # stable: the newest stays first among equals
    if not fitting:
        raise _no_such_backup(settings, what, present)
    return Found(fitting[0], () if what == "latest" else tuple(fitting[1:]))


def newest_good(backups: Iterable[StoredBackup]) -> StoredBackup | None:
    """The newest that has been restored and compared; None when there is none."""
    return max((one for one in backups if one.is_good), key=lambda one: one.made_at, default=None)


def read_verification(folder: Path) -> Verification | None:
    """How the last verification ended; None when there was none, or it was of another manifest."""
    try:
        found = json.loads((folder / VERIFIED).read_bytes())
        kept = Verification(**{**found, "at": datetime.fromisoformat(found["at"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # half a file says nothing: the backup counts as never verified
    return kept if kept.manifest_sha256 == _manifest_sha256(folder) else None


def record_verification(settings: Settings, folder: Path, *, seconds: float, error: PharosError | None = None) -> None:
    """Keep beside a backup, and in its row if it lies among ours, that it was restored and compared, or why not.

    A copy elsewhere that cannot be written, a read-only disk, is not told how it did.
    """
    result = Verification(
        passed=error is None,
        at=datetime.now(UTC),
        version=__version__,
        seconds=round(seconds, 3),
        manifest_sha256=_manifest_sha256(folder),
        error_code=error.code if error else None,
        error=error.message if error else None,
    )
    content = json.dumps({**asdict(result), "at": result.at.isoformat()}, indent=1).encode() + b"\n"
    is_here = folder.parent == settings.backup_root
    fresh = folder.with_name(f".{VERIFIED}-{folder.name}")  # beside it: a kill must leave no foreign file inside
    try:
        write_private(fresh, content)
        fresh.replace(folder / VERIFIED)
    except OSError as failure:
        if is_here:
            raise
        log.warning("backup.verification_not_kept", folder=str(folder), reason=str(failure))
    if is_here:
        _write_row(settings, describe_folder(folder), state=FAILED if error else VERIFIED_STATE, error=error)


def record_offsite(settings: Settings, folder: Path) -> None:
    """Keep in the row of a backup that a copy of it left the machine just now."""
    backup = describe_folder(folder)
    _write_row(settings, backup, state=backup.state, error=None)
    statement = """
        update backups set offsite_at = now(), state = case when state = 'verified' then 'offsite' else state end
        where name = %s
    """
    try:
        with _connect(settings) as connection:
            connection.execute(statement, [backup.name])
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, Unavailable) as failure:
        log.warning("backup.row_not_written", backup=backup.name, reason=str(failure).splitlines()[0])


def record_offsite_failure(settings: Settings, folder: Path, error: PharosError) -> None:
    """Keep in the row of a backup, which stays a good one, why it could not be copied; the next copy takes it away."""
    backup = describe_folder(folder)
    _write_row(settings, backup, state=backup.state, error=error)


def record_written(settings: Settings, folder: Path) -> None:
    """Keep in a row that a backup was made; it has not been restored yet."""
    _write_row(settings, describe_folder(folder), state=WRITTEN, error=None)


def record_failure(settings: Settings, name: str, error: PharosError, *, made_at: datetime, seconds: float) -> None:
    """Keep in a row that an attempt to make a backup failed; its folder is gone."""
    attempt = StoredBackup(name, made_at, FAILED, None, seconds=seconds)
    _write_row(settings, attempt, state=FAILED, error=error)


def forget_attempts(settings: Settings, attempts: Sequence[StoredBackup]) -> None:
    """Drop the rows of attempts that failed and left no folder."""
    names = [attempt.name for attempt in attempts]
    try:
        with _connect(settings) as connection:
            connection.execute("delete from backups where state = 'failed' and name = any(%s)", [names])
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, Unavailable) as failure:
        log.warning("backup.rows_not_removed", reason=str(failure).splitlines()[0])


def _at_path(folder: Path) -> StoredBackup:
    if not folder.is_dir():
        raise NotFound(
            f"There is no backup at {folder}. `pharos backup list` shows those of this installation.",
            code="no_such_backup",
        )
    if folder.name.startswith("."):
        raise Conflict(
            f"{folder} is a backup that was not finished. Take another: `pharos backup list`.", code="unfinished_backup"
        )
    return describe_folder(folder.absolute())


def _fits(backup: StoredBackup, what: str) -> bool:
    if what in ("latest", backup.name) or (backup.id is not None and what.lower() == str(backup.id)):
        return True
    wanted = MOMENT.fullmatch(what)
    return wanted is not None and f"{backup.made_at.astimezone(UTC):%Y%m%d%H%M%S}".startswith(
        "".join(filter(None, wanted.groups()))
    )


def _no_such_backup(settings: Settings, what: str, present: Sequence[StoredBackup]) -> PharosError:
    if not present:
        return NotFound(
            f"There is no backup in {settings.backup_root}. Make one with `pharos backup now`, or name the folder of a "
            "copy by its path.",
            code="no_such_backup",
        )
    there = ", ".join(backup.name for backup in present[:5]) + (" and older ones" if len(present) > 5 else "")
    is_readable = what == "latest" or MOMENT.fullmatch(what) or NAME.fullmatch(what) or _is_id(what)
    kind = NotFound if is_readable else Invalid
    return kind(
        f"No backup is meant by “{what}”. Say `latest`, a date (2025-12-24), a moment in UTC (20251224-030000), "
        f"a name, an id or a path. There are: {there}.",
        code="no_such_backup",
    )


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _folders(settings: Settings) -> list[Path]:
    """Finished backups: what begins with a point is being written or removed."""
    try:
        return [path for path in settings.backup_root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []


def _moment_of(folder: Path) -> datetime:
    """When a backup was made by its name alone; the folder's own time for another name."""
    if found := NAME.fullmatch(folder.name):
        try:
            return datetime.strptime(found[1] + found[2], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            pass  # digits that are no date
    return datetime.fromtimestamp(folder.stat().st_mtime, UTC)


def _manifest_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _with_row(backup: StoredBackup, row: dict[str, Any] | None) -> StoredBackup:
    if row is None:
        return backup
    backup = replace(backup, id=row["id"], offsite_at=row["offsite_at"])
    if backup.state == VERIFIED_STATE and row["state"] in GOOD:  # then what failed is its copy
        backup = replace(backup, error_code=row["error_code"], error=row["error"])
    is_offsite = backup.state == VERIFIED_STATE and backup.offsite_at is not None
    return replace(backup, state=OFFSITE) if is_offsite else backup


def _from_row(row: dict[str, Any]) -> StoredBackup:
    return StoredBackup(**row, folder=None)


def _read_rows(settings: Settings) -> list[dict[str, Any]]:
    query = (
        "select id, name, made_at, state, bytes, documents, seconds, verified_at, offsite_at, error_code, error "
        "from backups"
    )
    try:
        with _connect(settings) as connection:
            return connection.execute(query).fetchall()
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, Unavailable):
        return []  # no database, or one from before backups had rows: the folders say what there is


def _write_row(settings: Settings, backup: StoredBackup, *, state: str, error: PharosError | None) -> None:
    """Insert or change the row of a backup. A database that does not answer has its folder's file instead.

    One of another installation has its folder's file alone: once that folder is gone, a row would count as one of ours.
    """
    if not is_made_here(settings, backup):
        return
    values = {
        **asdict(backup),
        "id": new_id(),
        "state": state,
        "error_code": error.code if error else None,
        "error": error.message if error else None,
    }
    statement = """
        insert into backups (id, name, made_at, state, bytes, documents, seconds, verified_at, error_code, error)
        values (%(id)s, %(name)s, %(made_at)s, %(state)s, %(bytes)s, %(documents)s, %(seconds)s, %(verified_at)s,
                %(error_code)s, %(error)s)
        on conflict (name) do update set
            state = case when excluded.state = 'verified' and backups.offsite_at is not null then 'offsite'
                         else excluded.state end,
            verified_at = excluded.verified_at, error_code = excluded.error_code, error = excluded.error
    """
    try:
        with _connect(settings) as connection:
            connection.execute(statement, values)
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, Unavailable) as failure:
        log.warning("backup.row_not_written", backup=backup.name, state=state, reason=str(failure).splitlines()[0])


def _connect(settings: Settings) -> psycopg.Connection[dict[str, Any]]:
    """As the app role; the rows belong to no tenant. Raises `Unavailable` where no database was made yet."""
    return psycopg.connect(
        connection_urls(settings).app,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=DATABASE_SECONDS,
        prepare_threshold=None,
    )

"""What a restore would do, found out without changing anything; nothing is written before all of this holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pharos.infra import embedded_postgres, migrate
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, PharosError, StorageFull
from pharos.infra.settings import Settings
from pharos.ops.backup.check import check_backup, check_escrow
from pharos.ops.backup.dump import client_programs
from pharos.ops.backup.escrow import Escrow, drill_identity_file, read_identities
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.fingerprints import ServerFacts, count_rows, read_server
from pharos.ops.backup.manifest import DATABASE_FOLDER, Manifest
from pharos.ops.backup.restore_blobs import BlobChanges, compare_blobs
from pharos.ops.backup.restore_compare import Comparison, compare_content
from pharos.ops.backup.restore_keys import KeyStep, plan_keys
from pharos.ops.running import read_state

LOADED_PER_COMPRESSED, LOADED_PER_PLAIN = 8, 3
"""A compressed dump grows when loaded: rows by about three, indexes by as much again, and the server's log. What was
not compressed grows by the last two."""
EMPTY_DATABASE_BYTES = 64 * 2**20

Tell = Callable[[str, str], None]
"""Told each step as it begins: its name and a sentence."""


@dataclass(frozen=True)
class Live:
    """What is live. `rows` is None where nobody counted or no database answers; `server`, where nobody asked or a
    server that is somebody else's does not answer; `why_not` says why nothing is compared."""

    rows: dict[str, int] | None = None
    server: ServerFacts | None = None
    compared: Comparison | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A backup that may be restored; `migrations` would follow."""

    folder: Path
    manifest: Manifest
    escrow: Escrow
    keys: KeyStep
    blobs: BlobChanges
    migrations: tuple[str, ...]
    live: Live
    bytes_needed: int
    seconds_to_check: float

    @property
    def lost_rows(self) -> dict[str, int]:
        """By table, how many rows there are now more than then; only tables that grew."""
        then = self.manifest.tables
        grown = {name: rows - (then[name].rows if name in then else 0) for name, rows in (self.live.rows or {}).items()}
        return {name: more for name, more in grown.items() if more > 0}


def prepare(
    settings: Settings,
    folder: Path,
    *,
    identity: Path | None,
    signed_by: str | None,
    tell: Tell,
    compares: bool = False,
) -> Prepared:
    """Check the whole backup and what it needs here. With `compares` also what is live; counting its rows takes
    long where there are many.

    Raises the error of the first check that fails (see `check.py`), `StorageFull` where there is no room.
    """
    started = time.monotonic()
    tell("check", f"Checking every file of {folder.name}")
    refuse_no_identity(settings, identity)
    with remember_faults(settings, folder):
        manifest = check_backup(settings, folder, signed_by=signed_by, identity=identity)
    blobs = compare_blobs(settings, folder)
    live = _look_at_live(settings, folder) if compares else Live()
    if live.server is not None:
        _refuse_older_server(manifest, _major(live.server.version))
    needed = blobs.bytes + bytes_to_load(manifest)
    refuse_no_room(settings, needed)
    return Prepared(
        folder=folder,
        manifest=manifest,
        escrow=check_escrow(settings, folder, manifest, identity=identity),
        keys=plan_keys(settings, manifest),
        blobs=blobs,
        migrations=migrate.steps_after(manifest.schema),
        live=live,
        bytes_needed=needed,
        seconds_to_check=round(time.monotonic() - started, 3),
    )


def refuse_no_room(settings: Settings, needed: int) -> None:
    """Raise `StorageFull` with figures unless `needed` bytes fit where the data lies."""
    if (free := free_bytes(settings)) < needed:
        raise StorageFull(
            f"The restore needs about {needed // 2**20 + 1} MiB where the data lies, and {free // 2**20} MiB are free. "
            "Nothing was changed. Free some space (`pharos restore --list` shows rollback points) and run it again.",
            needed_bytes=needed,
            free_bytes=free,
        )


def free_bytes(settings: Settings) -> int:
    """What is free where the data lies, the less of database and uploads."""
    home = settings.data_dir
    if settings.database_url is None and (cluster := embedded_postgres.find(settings.data_dir)) is not None:
        home = cluster.home
    return min(shutil.disk_usage(_existing(place)).free for place in (home, settings.blob_root))


def refuse_no_room_to_load(settings: Settings, manifest: Manifest) -> None:
    """The same for the database of a backup alone."""
    refuse_no_room(settings, bytes_to_load(manifest))


def programs_for(settings: Settings, admin_url: str, manifest: Manifest) -> Path:
    """The folder with a `pg_restore` that reads this backup's dump and speaks to this server. Raises `Conflict`
    (`older_server`) where the server is of an older major version than the backup's."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        here = connection.info.server_version // 10000
    _refuse_older_server(manifest, here)
    return client_programs(settings, here)


def _refuse_older_server(manifest: Manifest, here: int) -> None:
    if here < (made_on := _major(manifest.server_version)):
        raise Conflict(
            f"{manifest.name} was made on Postgres {made_on} and does not load into {here}. Nothing was changed. "
            f"Restore it on a server of version {made_on} or newer, or on a machine without PHAROS_DATABASE_URL, with "
            "the server that comes with Pharos.",
            code="older_server",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def server_differences(manifest: Manifest, here: ServerFacts) -> tuple[str, ...]:
    """What is another one than where the backup was made, as sentences: the server's major version, and the rules by
    which it sorts text. Indexes are never copied but built by loading, so neither makes one wrong."""
    said = []
    if _major(manifest.server_version) != _major(here.version):
        said.append(f"It was made on Postgres {manifest.server_version}, and this is {here.version}.")
    if manifest.collation_version != here.collation:
        said.append(
            f"Text was sorted by {manifest.collation_version}, and is by {here.collation} here: indexes are rebuilt by "
            "loading."
        )
    return tuple(said)


def refuse_no_identity(settings: Settings, identity: Path | None) -> None:
    """Raise `Conflict` (`no_identity`) or `Invalid` (`bad_identity_file`) unless there is a file that may open the
    escrow; whether it does is seen later."""
    if identity is not None:
        read_identities(identity)
    elif not drill_identity_file(settings).exists():
        raise Conflict(
            "This machine has nothing that opens the keys in the backup. Name the file of the offline identity, whose "
            "public half was PHAROS_BACKUP_RECIPIENT: `--identity FILE`.",
            code="no_identity",
        )


def bytes_to_load(manifest: Manifest) -> int:
    """What the database of a backup takes on the disk, rather too much than too little."""
    return EMPTY_DATABASE_BYTES + sum(
        state.bytes * (LOADED_PER_COMPRESSED if name.endswith(".gz") else LOADED_PER_PLAIN)
        for name, state in manifest.files.items()
        if name.startswith(f"{DATABASE_FOLDER}/")
    )


def _look_at_live(settings: Settings, folder: Path) -> Live:
    """A restore is asked for when there is no database, too; then its server is the one that a restore would start."""
    try:
        url = connection_urls(settings).backup
    except PharosError as error:
        return _nothing_live(settings, error.message)
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            with remember_faults(settings, folder):
                compared = compare_content(connection, folder)
            why_not = None if compared else "The database that answers here holds no tables of Pharos."
            return Live(count_rows(connection), read_server(connection), compared, why_not)
    except psycopg.Error as error:
        if settings.database_url is None and read_state(settings) is None:
            return _nothing_live(
                settings, "Pharos does not run. `pharos up --detach --only postgres` starts its database."
            )
        return _nothing_live(settings, f"The live database cannot be read: {str(error).strip().splitlines()[0]}.")


def _nothing_live(settings: Settings, why_not: str) -> Live:
    if settings.database_url is not None:
        return Live(why_not=why_not)
    return Live(server=ServerFacts(embedded_postgres.shipped_version(), embedded_postgres.COLLATION), why_not=why_not)


def _existing(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place

"""Make one backup while people work: database, every file its snapshot names, secrets, and a signed manifest.

One transaction of the backup role exports its snapshot. pg_dump reads from it; counts, fingerprints and the list of
blobs come from the same one. Blobs never change, and a lease keeps the sweep away, so they can be copied afterwards.
All of it happens in a folder `.writing-…` that gets its name at the very end: a kill leaves nothing that is listed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from pharos import __version__
from pharos.infra.blobs import CHUNK_BYTES, BlobStore, flush_disk
from pharos.infra.database_roles import DatabaseUrls, connection_urls
from pharos.infra.errors import Conflict, PharosError, StorageFull, Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.secret_files import read_or_make_secret
from pharos.infra.settings import Settings
from pharos.infra.terminal import size_text
from pharos.ops.backup import signing
from pharos.ops.backup.blob_lease import backup_lease
from pharos.ops.backup.check import check_dump, check_files
from pharos.ops.backup.dump import client_programs, dumping, finish_dump
from pharos.ops.backup.escrow import collect_escrow, offline_recipients, seal_escrow
from pharos.ops.backup.fingerprints import count_by_tenant, fingerprint_tables, read_server
from pharos.ops.backup.manifest import (
    BLOBS_FOLDER,
    DATABASE_FOLDER,
    ESCROW,
    SIGNATURE,
    BlobState,
    FileState,
    Manifest,
    TableState,
    merkle_root,
    write_manifest,
    write_private,
)
from pharos.ops.backup.named_blobs import NamedBlob, named_blobs
from pharos.ops.backup.priority import backends_give_way
from pharos.ops.backup.store import PULLING, installation_file, record_failure, record_written
from pharos.ops.operation_lock import hold_operation_lock

log = get_logger(__name__)

WRITING = ".writing-"
PULL_SECONDS = 24 * 3600
"""No copy is fetched for longer."""
SPARE_BYTES = 64 * 2**20
"""Beside what is copied: the manifest, the escrow, and other writers of the disk."""
NOT_INSIDE = [
    "the offline age identity: with whoever made it; without it and without this machine the escrow cannot be opened",
    "the password of a restic repository offsite: `secrets/offsite_password` of the data directory; sealed for the "
    "offline identity as `secrets/offsite_password.age`, and `pharos-offsite-password.age` in a repository's directory",
    "TLS certificates and their keys: with the reverse proxy",
    "passwords of the database's roles and its superuser: `secrets/` of the data directory; `pharos db init` makes new",
    "the models: they come with the install",
    "logs: `logs/` of the data directory",
    "operator.conf of the embedded server: `postgres/data/` of the data directory",
    "what Redis holds: counts of rate limits, which begin anew",
    "this machine's backups and their signing key: elsewhere by `pharos backup push`",
]

KEYS = """
    select k.id from encryption_keys k where exists (select 1 from data_keys d where d.encryption_key_id = k.id)
    order by k.retired_at nulls first, k.created_at desc
    """
SPACES = "select model, dimension, table_name, state from vector_spaces order by created_at"

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many of it are done."""


@dataclass(frozen=True)
class Seen:
    """What the snapshot shows beside the dump."""

    facts: dict[str, Any]
    tables: dict[str, TableState]
    tenants: dict[str, dict[str, int]]
    keys: list[str]
    spaces: list[dict[str, Any]]


@dataclass(frozen=True)
class BackupPlan:
    """What a backup would hold; `needed_bytes` is the most it can take, before compression and with indexes."""

    documents: int
    blobs: int
    needed_bytes: int
    free_bytes: int


def plan_backup(settings: Settings) -> BackupPlan:
    """What `make_backup` would write now, and the room there is; writes nothing."""
    folder = settings.backup_root
    while not folder.exists():
        folder = folder.parent
    with _snapshot(connection_urls(settings)) as (connection, _):
        return _plan(connection, folder, named_blobs(connection))


def make_backup(settings: Settings, *, progress: Progress | None = None, plain: bool = False) -> Path:
    """Make a backup now and return its folder; holds the lock of operations. `plain` leaves the dump uncompressed.

    Raises `Conflict` while another operation runs, and what `write_backup` raises.
    """
    with hold_operation_lock(settings, "backup"):
        return write_backup(settings, progress=progress, plain=plain)


def write_backup(settings: Settings, *, progress: Progress | None = None, plain: bool = False) -> Path:
    """The same for a caller that holds the lock of operations: a wipe, a migration, a restore.

    A failure leaves no folder, and a row that says why. Raises `StorageFull` with the room it needs, `Conflict` when a
    blob or a key is missing or damaged or the dump fails, `Unavailable` when a part does not answer.
    """
    root, started, made_at = settings.backup_root, time.monotonic(), datetime.now(UTC).replace(microsecond=0)
    while (root / f"pharos-{made_at:%Y%m%d-%H%M%S}").exists():
        made_at += timedelta(seconds=1)
    name = f"pharos-{made_at:%Y%m%d-%H%M%S}"
    writing = root / f"{WRITING}{name}"
    try:
        with _words_for_failures(root):
            _clean(root)
            writing.mkdir(mode=0o700)
            with backup_lease(connection_urls(settings).direct):
                manifest = _fill(
                    settings, writing, made_at=made_at, name=name, progress=progress or _silent, plain=plain
                )
            flush_disk(writing)
            check_files(writing, manifest)  # read back what was written, before it has a name that is listed
            writing.rename(root / name)
            _flush_names(root)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, PharosError):
            record_failure(settings, name, error, made_at=made_at, seconds=time.monotonic() - started)
            log.error("backup.failed", backup=name, code=error.code, reason=error.message)
        raise
    record_written(settings, root / name)
    log.info("backup.written", backup=name, bytes=manifest.bytes, seconds=manifest.seconds)
    return root / name


def _fill(
    settings: Settings, folder: Path, *, made_at: datetime, name: str, progress: Progress, plain: bool
) -> Manifest:
    started, urls = time.monotonic(), connection_urls(settings)
    with _snapshot(urls) as (connection, snapshot):
        blobs = named_blobs(connection)
        needed = _refuse_full_disk(_plan(connection, folder, blobs), folder.parent)
        programs = client_programs(settings, connection.info.server_version // 10000)
        with tempfile.NamedTemporaryFile() as said:
            target, pg_dump = folder / DATABASE_FOLDER, programs / "pg_dump"
            with dumping(pg_dump, urls.backup, snapshot=snapshot, into=target, log=said.file, plain=plain) as dump:
                progress("database", 0, 1)
                backends_give_way(settings, connection, is_dumping=lambda: dump.poll() is None)
                seen = _look(connection)
                files = _copy_blobs(settings, folder, blobs, progress)
                finish_dump(dump, Path(said.name), needed=needed)
                progress("database", 1, 1)
    _refuse_missing_keys(settings, seen.keys)
    write_private(folder / ESCROW, seal_escrow(settings))
    files |= {path: _hash_file(folder / path) for path in _other_files(folder)}
    manifest = Manifest(
        **seen.facts,
        name=name,
        made_at=made_at,
        version=__version__,
        installation_id=read_or_make_secret(installation_file(settings)),
        tables=seen.tables,
        tenants=seen.tenants,
        spaces=seen.spaces,
        blobs=BlobState(
            len(blobs), sum(files[f"{BLOBS_FOLDER}/{blob.relative}"].bytes for blob in blobs), _root_of(blobs)
        ),
        keys=seen.keys,
        files=files,
        not_inside=NOT_INSIDE,
        seconds=round(time.monotonic() - started, 3),
        signed_by=signing.public_key(settings),
        sealed_to=[str(recipient) for recipient in offline_recipients(settings)],
    )
    content = write_manifest(folder, manifest)
    write_private(folder / SIGNATURE, signing.sign(settings, content))
    check_dump(folder, manifest)
    return manifest


@contextmanager
def _snapshot(urls: DatabaseUrls) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A reading transaction of every tenant, and the name under which pg_dump sees the same."""
    with psycopg.connect(urls.backup, autocommit=True) as connection:
        # helpers would be processes of their own, which nobody told to step back behind others
        connection.execute("set max_parallel_workers_per_gather = 0")
        connection.execute("begin isolation level repeatable read read only")
        row = connection.execute("select pg_export_snapshot()").fetchone()
        assert row is not None
        yield connection, row[0]


def _look(connection: psycopg.Connection[Any]) -> Seen:
    return Seen(
        facts=_facts(connection),
        tables=fingerprint_tables(connection),
        tenants=count_by_tenant(connection),
        keys=[row[0] for row in connection.execute(KEYS)] if _has(connection, "encryption_keys") else [],
        spaces=[
            {"model": model, "dimension": dimension, "table": table, "state": state}
            for model, dimension, table, state in connection.execute(SPACES)
        ],
    )


def _facts(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The fields of the manifest that the catalog gives."""
    row = connection.execute(
        "select (select version_num from alembic_version), "
        "(select extversion from pg_extension where extname = 'vector'), "
        "current_database()"
    ).fetchone()
    assert row is not None
    facts = dict(zip(("schema", "vector_version", "database"), map(str, row), strict=True))
    server = read_server(connection)
    return {**facts, "server_version": server.version, "collation_version": server.collation}


def _has(connection: psycopg.Connection[Any], table: str) -> bool:
    return connection.execute("select to_regclass(%s)", [table]).fetchone() != (None,)


def _plan(connection: psycopg.Connection[Any], folder: Path, blobs: list[NamedBlob]) -> BackupPlan:
    row = connection.execute("select pg_database_size(current_database()), (select count(*) from documents)").fetchone()
    assert row is not None
    needed = row[0] + sum(blob.size_bytes for blob in blobs) + SPARE_BYTES
    return BackupPlan(row[1], len(blobs), needed, shutil.disk_usage(folder).free)


def _refuse_full_disk(plan: BackupPlan, root: Path) -> str:
    """Refuse before anything is written when the disk cannot hold database and blobs; returns what to say later."""
    said = (
        f"This backup needs up to {size_text(plan.needed_bytes)}; {root} had {size_text(plan.free_bytes)} free. Make "
        "room there or set PHAROS_BACKUP_DIR to another disk, then run `pharos backup now`."
    )
    if plan.free_bytes < plan.needed_bytes:
        raise StorageFull(said, needed_bytes=plan.needed_bytes, free_bytes=plan.free_bytes)
    return said


def _copy_blobs(settings: Settings, folder: Path, blobs: list[NamedBlob], progress: Progress) -> dict[str, FileState]:
    """Copy every blob, hashing what is written; one that is missing or is not what its name says fails the backup."""
    store, states = BlobStore(settings.blob_root), {}
    (folder / BLOBS_FOLDER).mkdir(mode=0o700)
    for done, blob in enumerate(blobs, start=1):
        target = folder / BLOBS_FOLDER / blob.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        source = store.path(TenantId(blob.tenant_id), blob.sha256)
        try:
            state = _copy_file(source, target)
        except FileNotFoundError as error:
            raise _bad_blob(blob, source, "is missing", code="missing_blob") from error
        if state.sha256 != blob.sha256:
            raise _bad_blob(blob, source, "is damaged: its bytes are not those its name stands for", code="wrong_blob")
        states[f"{BLOBS_FOLDER}/{blob.relative}"] = state
        progress("files", done, len(blobs))
    return states


def _bad_blob(blob: NamedBlob, source: Path, how: str, *, code: str) -> Conflict:
    return Conflict(
        f"The file {source} of tenant {blob.tenant_id} {how}, so no backup was kept. Bring it back from an older "
        "backup (`pharos restore --uploads-only latest`) or delete its document; then run `pharos backup now`.",
        code=code,
        tenant_id=str(blob.tenant_id),
        sha256=blob.sha256,
    )


def _copy_file(source: Path, target: Path) -> FileState:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as writer:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
                size += len(chunk)
    return FileState(size, digest.hexdigest())


def _refuse_missing_keys(settings: Settings, needed: list[str]) -> None:
    """The escrow must open the snapshot's secrets, or the backup is of no use on another machine."""
    held = {key.id for key in collect_escrow(settings).keys}
    if missing := [key for key in needed if key not in held]:
        raise Conflict(
            f"Secrets are encrypted with the key {', '.join(missing)}, which is not here, so no backup was kept. Put "
            "it back (`pharos doctor secrets` says where it belongs) and run `pharos backup now`.",
            code="missing_encryption_key",
        )


def _other_files(folder: Path) -> list[str]:
    """The escrow and the dump's files, made private on the way: pg_dump writes as the umask says."""
    dump = sorted((folder / DATABASE_FOLDER).iterdir())
    for file in dump:
        file.chmod(0o600)
    for directory, _, _ in os.walk(folder):
        Path(directory).chmod(0o700)
    return [ESCROW, *(f"{DATABASE_FOLDER}/{file.name}" for file in dump)]


def _hash_file(file: Path) -> FileState:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileState(stream.tell(), digest.hexdigest())


def _root_of(blobs: list[NamedBlob]) -> str:
    return merkle_root(f"{blob.tenant_id}/{blob.sha256}" for blob in blobs)


def _clean(root: Path) -> None:
    """Remove what killed backups left; whoever calls holds the lock, so nobody writes there now.

    Fetching a copy needs no lock: what of it has not changed for a day was left by a kill.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in root.glob(f"{WRITING}*"):
        shutil.rmtree(leftover)
    for leftover in root.glob(f"{PULLING}*"):
        if leftover.stat().st_mtime < time.time() - PULL_SECONDS:
            shutil.rmtree(leftover)


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _words_for_failures(root: Path) -> Iterator[None]:
    """What the disk and the database raise, as the kinds that are recorded and shown."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"The disk of {root} became full; nothing of the backup was kept. Make room there or set "
                "PHAROS_BACKUP_DIR to another disk, then run `pharos backup now`."
            ) from error
        raise Unavailable(
            f"{error.strerror or error} ({error.filename or root}); no backup was kept. Mend it and run "
            "`pharos backup now`.",
            code="backup_not_written",
        ) from error
    except psycopg.Error as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(
            f"The database failed while it was backed up ({reason}); no backup was kept. `pharos doctor` says more.",
            code="database_failed",
        ) from error


def _silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""

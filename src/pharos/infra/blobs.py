"""The bytes of documents: content-addressed, immutable files, written once and never changed.

A blob's name is the SHA-256 of its content, below its tenant and two levels of folders: `<tenant>/ab/cd/abcd…`. Tenants
share no blob, so nobody learns from a fast upload what others hold. A file under its final name is complete: it was
written under a temporary name, flushed to the disk and renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pharos.infra.errors import StorageFull, TooLarge, Unavailable
from pharos.infra.ids import TenantId

_libc = ctypes.CDLL(None, use_errno=True)
CHUNK_BYTES = 1024 * 1024
FILES_AT_ONCE = 5000
"""They lie among what is coming in until all of them are on the disk, which is waited for once."""
BYTES_AT_ONCE = 1024**3
"""The same; a slow disk takes minutes for them, and after an hour the sweep holds them for left behind."""
ASIDE = "aside-"
"""How a folder of blobs begins that a wipe took out of use and that is removed a day later."""
UPLOAD_ALIVE_SECONDS = 60.0
"""A sender that was silent for longer has gone, or its process was killed."""


@dataclass(frozen=True)
class Blob:
    """What was stored: `sha256` in hex, `size_bytes`, and whether these bytes were there already."""

    sha256: str
    size_bytes: int
    was_known: bool


class BlobStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, tenant_id: TenantId, sha256: str) -> Path:
        """Where a blob lies, whether or not it is there."""
        return self.root / str(tenant_id) / sha256[:2] / sha256[2:4] / sha256

    async def write(self, tenant_id: TenantId, chunks: AsyncIterator[bytes], *, max_bytes: int) -> Blob:
        """Store a stream; a stream that fails, is too long or meets a full disk leaves nothing.

        Raises `TooLarge`, `StorageFull`, or `Unavailable` when the folder cannot be written.
        """
        with self._temporary(max_bytes) as temporary:
            async for chunk in chunks:
                await asyncio.to_thread(temporary.add, chunk)
            return await asyncio.to_thread(self._keep, temporary, tenant_id)

    def write_file(self, tenant_id: TenantId, source: Path, *, max_bytes: int) -> Blob:
        """The same with a local file, for a thread. Raises also `OSError` when the file cannot be read."""
        with self._temporary(max_bytes) as temporary:
            temporary.add_file(source)
            return self._keep(temporary, tenant_id)

    def write_files(self, sources: Sequence[tuple[TenantId, Path]]) -> Iterator[Blob]:
        """The same with many, in their order: alone, each of them would wait for the disk, a thousand for seconds.

        None has its name before its bytes are on the disk; the names are, once all were taken from here.
        """
        for batch in _batches(sources):
            with contextlib.ExitStack() as stack:
                written = []
                for tenant_id, source in batch:
                    temporary = stack.enter_context(self._temporary(source.stat().st_size))
                    temporary.add_file(source)
                    temporary.close()
                    written.append((tenant_id, temporary))
                self._flush()
                for tenant_id, temporary in written:
                    yield self._keep(temporary, tenant_id, flushed=True)
        if sources:
            self._flush()

    def touch(self, tenant_id: TenantId, sha256: str) -> bool:
        """Whether the blob is there; if so, the sweep leaves it alone as long as a new one."""
        with _storage_errors(self.root), self._lock():
            try:
                os.utime(self.path(tenant_id, sha256))
            except FileNotFoundError:
                return False
        return True

    def _flush(self) -> None:
        with _storage_errors(self.root):
            flush_disk(self.root)

    def _keep(self, temporary: _Temporary, tenant_id: TenantId, *, flushed: bool = False) -> Blob:
        """Give it its name. Where its bytes are `flushed` already, whoever calls sees to the name, too.

        A known one may have been named by somebody who has not flushed the name yet, so that is not skipped.
        """
        target = self.path(tenant_id, temporary.digest.hexdigest())
        with _storage_errors(self.root), self._lock():
            was_known = True
            try:
                os.utime(target)  # starts the sweep's grace anew: a row that names it is about to be written
            except FileNotFoundError:
                was_known = False
                if not flushed:
                    os.fsync(temporary.descriptor)
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.path.replace(target)
            if not flushed:
                _flush_folder(target.parent)
        return Blob(sha256=target.name, size_bytes=temporary.size_bytes, was_known=was_known)

    @contextlib.contextmanager
    def _lock(self, *, exclusive: bool = False) -> Iterator[None]:
        """Uploads among themselves are free; the sweep, between looking at a file's age and removing it, is alone."""
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _temporary(self, max_bytes: int) -> Iterator[_Temporary]:
        with _storage_errors(self.root):
            folder = self.root / "incoming"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=folder)
        temporary = _Temporary(self.root, Path(name), descriptor, max_bytes)
        try:
            yield temporary
        finally:
            temporary.close()
            temporary.path.unlink(missing_ok=True)

    def delete_older_than(self, tenant_id: TenantId, hashes: Iterable[str], seconds: float, *, now: float) -> int:
        """Remove blobs that no row names any more, except those sent again meanwhile; returns how many."""
        deleted = 0
        for sha256 in hashes:
            path = self.path(tenant_id, sha256)
            with self._lock(exclusive=True), contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime >= seconds:
                    path.unlink()
                    deleted += 1
        return deleted

    def older_than(self, tenant_id: TenantId, seconds: float, *, now: float) -> list[str]:
        """Hashes of the tenant's blobs last written at least `seconds` before `now` (Unix time)."""
        files = (self.root / str(tenant_id)).glob("??/??/*")
        return [path.name for path in files if now - path.stat().st_mtime >= seconds]

    def tenant_files(self, tenant_id: TenantId) -> Iterator[tuple[str, int]]:
        """(hash, bytes) of every blob of the tenant, in no order."""
        for path in (self.root / str(tenant_id)).glob("??/??/*"):
            with contextlib.suppress(FileNotFoundError):  # swept while we look
                yield path.name, path.stat().st_size

    def open_uploads(self, *, now: float) -> int:
        """How many files somebody is sending right now: half-written ones that grew within `UPLOAD_ALIVE_SECONDS`."""
        alive = 0
        for path in (self.root / "incoming").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                alive += now - path.stat().st_mtime < UPLOAD_ALIVE_SECONDS
        return alive

    def set_aside(self, tenant_ids: Iterable[TenantId], *, stamp: str) -> int:
        """Move all blobs of these tenants into `aside-<stamp>`, where only a person finds them; returns how many.

        Again with the same stamp after an interruption: it moves what is left. `library.delete` removes them for good.
        """
        aside, moved = self.root / f"{ASIDE}{stamp}", 0
        with _storage_errors(self.root), self._lock(exclusive=True):
            for tenant_id in tenant_ids:
                source, count = self.root / str(tenant_id), sum(1 for _ in self.tenant_files(tenant_id))
                if count:
                    aside.mkdir(mode=0o700, exist_ok=True)
                    source.rename(aside / source.name)
                    moved += count
            _flush_folder(self.root)
        return moved

    def aside_for(self, seconds: float, *, now: float) -> list[Path]:
        """Folders of what was set aside at least `seconds` before `now` (Unix time), as a tree of tenants each."""
        return [path for path in sorted(self.root.glob(f"{ASIDE}*")) if now - path.stat().st_mtime > seconds]

    def sweep_incoming(self, *, older_than_seconds: float, now: float) -> int:
        """Remove what killed processes left half-written; returns how many files."""
        incoming = (self.root / "incoming").glob("*")
        leftovers = [path for path in incoming if now - path.stat().st_mtime > older_than_seconds]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)


def _batches(sources: Sequence[tuple[TenantId, Path]]) -> Iterator[list[tuple[TenantId, Path]]]:
    batch, size_bytes = list[tuple[TenantId, Path]](), 0
    for each in sources:
        batch.append(each)
        size_bytes += each[1].stat().st_size
        if len(batch) >= FILES_AT_ONCE or size_bytes >= BYTES_AT_ONCE:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


class _Temporary:
    """A file that is being written, with the hash and the size of what it holds."""

    def __init__(self, root: Path, path: Path, descriptor: int, max_bytes: int) -> None:
        self.root, self.path, self.descriptor, self.max_bytes = root, path, descriptor, max_bytes
        self.digest, self.size_bytes, self.is_closed = hashlib.sha256(), 0, False

    def add(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self.size_bytes > self.max_bytes:
            raise TooLarge(
                f"The file is larger than the {self.max_bytes // 2**20} MiB allowed. Split it, or ask the operator "
                "to raise PHAROS_MAX_UPLOAD_BYTES.",
                limit_bytes=self.max_bytes,
            )
        self.digest.update(chunk)
        with _storage_errors(self.root):
            view = memoryview(chunk)
            while view:
                view = view[os.write(self.descriptor, view) :]

    def close(self) -> None:
        """No more is added; a second time does nothing."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self.descriptor)

    def add_file(self, source: Path) -> None:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.add(chunk)


def flush_disk(folder: Path) -> None:
    """All that was written to a folder's file system is on the disk afterwards, names included; `OSError` when not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """A rename survives a power loss only once its folder has been flushed too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    """Our own disk's errors become words; errors of the sender's stream never pass through here."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                "The disk is full; nothing of the file was kept. Free some space and send it again."
            ) from error
        raise Unavailable(
            f"The upload folder cannot be written ({error.strerror}). Check UPLOAD_ROOT with `pharos doctor`.",
            code="server_misconfigured",
            folder=str(root),
        ) from error

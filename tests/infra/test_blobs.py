"""The store keeps whole files under the hash of their bytes, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pharos.infra import blobs
from pharos.infra.blobs import BlobStore
from pharos.infra.errors import StorageFull, TooLarge, Unavailable
from pharos.infra.ids import TenantId, new_id

TENANT = TenantId(new_id())


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_a_stored_file_lies_under_the_hash_of_its_bytes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = await store.write(TENANT, stream(b"light", b"house"), max_bytes=100)
    assert blob.sha256 == hashlib.sha256(b"lighthouse").hexdigest()
    assert store.path(TENANT, blob.sha256).read_bytes() == b"lighthouse"
    assert (await store.write(TENANT, stream(b"lighthouse"), max_bytes=100)).was_known
    assert files_below(tmp_path) == [store.path(TENANT, blob.sha256)]


@pytest.mark.contract("FI-06", part="size limit while streaming")
async def test_a_file_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="PHAROS_MAX_UPLOAD_BYTES"):
        await BlobStore(tmp_path).write(TENANT, stream(b"x" * 60, b"x" * 60), max_bytes=100)
    assert files_below(tmp_path) == []


async def test_a_sender_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"half of it"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await BlobStore(tmp_path).write(TENANT, breaks_off(), max_bytes=100)
    assert files_below(tmp_path) == []


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    # The kernel refuses files beyond this size with the same path through the code as a full disk (EFBIG, ENOSPC).
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageFull, match="nothing of the file was kept") as refused:
            await BlobStore(tmp_path).write(TENANT, stream(b"x" * 10_000), max_bytes=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused.value.http_status == 507
    assert files_below(tmp_path) == []


@pytest.mark.contract("FI-01")
@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc as a folder nobody can write to")
async def test_a_folder_that_cannot_be_written_is_a_misconfiguration_and_no_crash() -> None:
    with pytest.raises(Unavailable, match="UPLOAD_ROOT") as refused:
        await BlobStore(Path("/proc/pharos")).write(TENANT, stream(b"x"), max_bytes=10)
    assert refused.value.code == "server_misconfigured"


async def test_two_senders_of_the_same_bytes_keep_one_whole_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    body = os.urandom(300_000)
    (tmp_path / "sent").write_bytes(body)
    blobs = await asyncio.gather(
        *(asyncio.to_thread(store.write_file, TENANT, tmp_path / "sent", max_bytes=10**6) for _ in range(8))
    )
    assert {blob.sha256 for blob in blobs} == {hashlib.sha256(body).hexdigest()}
    assert store.path(TENANT, blobs[0].sha256).read_bytes() == body


@pytest.mark.parametrize(("bound", "value"), [("FILES_AT_ONCE", 20), ("BYTES_AT_ONCE", 40)])
def test_many_files_have_their_names_only_once_their_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    store, number = BlobStore(tmp_path / "blobs"), 41
    sources = [tmp_path / f"{each:02}" for each in range(number)]
    for source in sources:
        source.write_text(source.name)
    flush, named = blobs.flush_disk, list[int]()

    def count_names(folder: Path) -> None:
        named.append(len(list(folder.glob("*-*/??/??/*"))))
        flush(folder)

    monkeypatch.setattr(blobs, "flush_disk", count_names)
    monkeypatch.setattr(blobs, bound, value)
    kept = list(store.write_files([(TENANT, source) for source in sources]))
    assert named == [0, 20, 40, 41]
    assert [store.path(TENANT, blob.sha256).read_text() for blob in kept] == [source.name for source in sources]
    assert list((store.root / "incoming").iterdir()) == []
    assert list(store.write_files([])) == []


async def test_bytes_that_are_there_are_not_acknowledged_before_their_name_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever named them may be in the middle of many files, whose names are flushed once all have theirs."""
    source = tmp_path / "source"
    source.write_bytes(b"same")
    store, flushed = BlobStore(tmp_path / "blobs"), list[str]()
    flush = os.fsync

    def note(descriptor: int) -> None:
        flush(descriptor)
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", note)
    many = store.write_files([(TENANT, source)])
    named = next(many)
    assert flushed == []
    sent = await store.write(TENANT, stream(b"same"), max_bytes=10)
    assert (sent.was_known, flushed) == (True, [named.sha256[2:4]])
    assert list(many) == []


async def test_tenants_share_no_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    other = TenantId(new_id())
    first = await store.write(TENANT, stream(b"same"), max_bytes=10)
    second = await store.write(other, stream(b"same"), max_bytes=10)
    assert not second.was_known
    store.delete_older_than(TENANT, [first.sha256], 0, now=time.time())
    assert store.path(other, second.sha256).exists()


async def test_the_sweep_takes_old_leftovers_and_spares_what_is_being_written(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "old").write_bytes(b"half")
    os.utime(incoming / "old", (0, 0))
    (incoming / "fresh").write_bytes(b"half")
    assert store.sweep_incoming(older_than_seconds=3600, now=time.time()) == 1
    assert [path.name for path in incoming.iterdir()] == ["fresh"]


async def test_bytes_that_were_sent_again_outlive_a_sweep_that_had_listed_them(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = await store.write(TENANT, stream(b"lighthouse"), max_bytes=100)
    path = store.path(TENANT, blob.sha256)
    os.utime(path, (0, 0))
    listed = store.older_than(TENANT, 3600, now=time.time())
    assert listed == [blob.sha256]
    await store.write(TENANT, stream(b"lighthouse"), max_bytes=100)
    assert store.delete_older_than(TENANT, listed, 3600, now=time.time()) == 0
    assert path.read_bytes() == b"lighthouse"
    os.utime(path, (0, 0))
    assert store.delete_older_than(TENANT, listed, 3600, now=time.time()) == 1


async def test_uploads_and_sweeps_at_once_never_leave_an_empty_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)

    def sweep_always() -> None:
        for _ in range(300):
            store.delete_older_than(TENANT, [hashlib.sha256(b"lighthouse").hexdigest()], 0, now=time.time() + 1)

    sweeping = asyncio.create_task(asyncio.to_thread(sweep_always))
    while not sweeping.done():
        await store.write(TENANT, stream(b"lighthouse"), max_bytes=100)
        for path in files_below(tmp_path / str(TENANT)):
            with contextlib.suppress(FileNotFoundError):
                assert path.read_bytes() == b"lighthouse"
    await sweeping

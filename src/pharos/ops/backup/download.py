"""`GET /backups/download/{token}`: one backup as a tar archive, for whoever holds a link made on the machine itself.

A backup holds every tenant's data, so no administrator of a tenant may fetch one. The link is made by `pharos backup
link`, by whoever can use this machine's files anyway; it is for one backup and ends by itself.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from pharos.identity.current import CurrentRuntime
from pharos.identity.signing_keys import JWT, current_key, verifying_keys
from pharos.infra.blobs import CHUNK_BYTES
from pharos.infra.errors import NotFound
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import MANIFEST, VERIFIED
from pharos.ops.backup.store import NAME

log = get_logger(__name__)

router = APIRouter(include_in_schema=False)

ALGORITHM = "HS256"
AUDIENCE = "pharos-backup"
"""A token for something else, an access token above all, opens nothing here; nor this one anything else."""
TAR_BLOCK = 512


def make_link(settings: Settings, folder: Path, *, lives: timedelta) -> str:
    """An address that gives this backup to anybody who has it, until its time is over."""
    claims = {"aud": AUDIENCE, "sub": folder.name, "exp": datetime.now(UTC) + lives}
    token = jwt.encode(claims, current_key(settings, JWT), algorithm=ALGORITHM)
    return f"{settings.base_url}/backups/download/{token}"


@router.get("/backups/download/{token}")
def download(token: str, runtime: CurrentRuntime) -> StreamingResponse:
    """The backup of a link, with its length; not how it was verified here.

    Raises `NotFound` for a link that is not ours, or whose time is over.
    """
    folder = runtime.settings.backup_root / read_link(runtime.settings, token)
    if not (folder / MANIFEST).is_file():
        raise NotFound("This backup is gone. `pharos backup list` shows those there are.", code="no_such_backup")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / VERIFIED)
    log.info("backup.downloaded", backup=folder.name)
    headers = {
        "Content-Disposition": f'attachment; filename="{folder.name}.tar"',
        "Content-Length": str(tar_bytes(folder, files)),
        "Cache-Control": "no-store",
    }
    return StreamingResponse(tar_chunks(folder, files), media_type="application/x-tar", headers=headers)


def read_link(settings: Settings, token: str) -> str:
    """The name of the backup a token is for."""
    for key in verifying_keys(settings, JWT):
        try:
            claims = jwt.decode(
                token, key, algorithms=[ALGORITHM], audience=AUDIENCE, options={"require": ["exp", "sub"]}
            )
        except jwt.InvalidTokenError:
            continue
        if NAME.fullmatch(claims["sub"]):
            return str(claims["sub"])
    raise NotFound("This link has ended. Make another with `pharos backup link`.", code="link_ended")


def tar_chunks(folder: Path, files: list[Path]) -> Iterator[bytes]:
    """A tar archive of these files below the folder's name, without a copy of it anywhere."""
    for path in files:
        header = _header(folder, path)
        yield header
        left = path.stat().st_size
        padding = -left % TAR_BLOCK
        with path.open("rb") as file:
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk
        yield bytes(padding)
    yield bytes(2 * TAR_BLOCK)


def tar_bytes(folder: Path, files: list[Path]) -> int:
    """How long that archive is."""
    sizes = [path.stat().st_size for path in files]
    padded = sum(size + -size % TAR_BLOCK for size in sizes)
    return padded + sum(len(_header(folder, path)) for path in files) + 2 * TAR_BLOCK


def _header(folder: Path, path: Path) -> bytes:
    about = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
    stat = path.stat()
    about.size, about.mtime, about.mode = stat.st_size, int(stat.st_mtime), 0o600
    return about.tobuf(tarfile.PAX_FORMAT)

"""`GET /backups/download/{token}`: one backup as a tar archive, for whoever holds a link made on the machine itself.

A backup holds every tenant's data, so no administrator of a tenant may fetch one. The link is made by `pharos backup
link`, by whoever can use this machine's files anyway; it is for one backup and ends by itself.
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.audit import record_audit
from pharos.identity.current import CurrentRuntime, origin_of
from pharos.identity.principal import operator
from pharos.identity.security import record_security_event
from pharos.identity.sign_in import Origin
from pharos.identity.signing_keys import JWT, current_key, verifying_keys
from pharos.identity.tenants import list_tenants
from pharos.infra.blobs import CHUNK_BYTES
from pharos.infra.errors import Conflict, NotFound, PharosError
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import MANIFEST, VERIFIED
from pharos.ops.backup.store import FAILED, NAME, StoredBackup, describe_folder
from pharos.runtime import Runtime

log = get_logger(__name__)

router = APIRouter(include_in_schema=False)

ALGORITHM = "HS256"
AUDIENCE = "pharos-backup"
"""A token for something else, an access token above all, opens nothing here; nor this one anything else."""
LINK_MADE, DOWNLOADED = "backup_link_made", "backup_downloaded"
NOWHERE = Origin()
"""Of whoever sits at this machine."""
TAR_BLOCK = 512


def make_link(settings: Settings, folder: Path, *, lives: timedelta) -> str:
    """An address that gives this backup to anybody who has it, until its time is over."""
    claims = {"aud": AUDIENCE, "sub": folder.name, "exp": datetime.now(UTC) + lives}
    token = jwt.encode(claims, current_key(settings, JWT), algorithm=ALGORITHM)
    return f"{settings.base_url}/backups/download/{token}"


async def record_way_out(runtime: Runtime, event_type: str, name: str, origin: Origin = NOWHERE) -> None:
    """Tell every tenant, for each one's data is in it: a link was made, or somebody fetched the backup by one.

    A database that does not answer keeps no backup from leaving: that is when one is needed most.
    """
    subject = f"backup:{name}"
    try:
        for tenant in await list_tenants(runtime):
            tenant_id = TenantId(tenant.id)
            async with runtime.db.transaction(tenant_id) as session:
                await record_security_event(
                    *(session, tenant_id),
                    event_type=event_type,
                    severity="high",
                    subject=subject,
                    ip=origin.ip,
                    agent=origin.agent,
                )
                if event_type == LINK_MADE:
                    await record_audit(session, operator(tenant_id), action="backup.link_made", subject=subject)
    except (SQLAlchemyError, OSError, PharosError) as error:
        log.warning("backup.way_out_not_recorded", backup=name, error=type(error).__name__)


@router.get("/backups/download/{token}")
async def download(token: str, request: Request, runtime: CurrentRuntime) -> StreamingResponse:
    """The backup of a link, with its length; not how it was verified here.

    Raises `NotFound` for a link that is not ours, or whose time is over, and `Conflict` for a damaged backup.
    """
    folder = runtime.settings.backup_root / read_link(runtime.settings, token)
    if not (folder / MANIFEST).is_file():
        raise NotFound("This backup is gone. `pharos backup list` shows those there are.", code="no_such_backup")
    refuse_damaged(await asyncio.to_thread(describe_folder, folder))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / VERIFIED)
    log.info("backup.downloaded", backup=folder.name)
    await record_way_out(runtime, DOWNLOADED, folder.name, origin_of(request))
    headers = {
        "Content-Disposition": f'attachment; filename="{folder.name}.tar"',
        "Content-Length": str(tar_bytes(folder, files)),
        "Cache-Control": "no-store",
    }
    return StreamingResponse(tar_chunks(folder, files), media_type="application/x-tar", headers=headers)


def refuse_damaged(backup: StoredBackup) -> None:
    """Raise `Conflict` for a backup that was found damaged: whoever fetched it would rely on it. One whose clock was
    wrong may be whole."""
    if backup.state == FAILED and backup.error_code != "made_in_the_future":
        raise Conflict(
            f"{backup.name} is not whole ({backup.error_code}) and is not handed out. Why is said by "
            "`pharos backup list`, which shows the others too.",
            code="damaged_backup",
        )


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

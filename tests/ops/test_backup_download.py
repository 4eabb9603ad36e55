"""A backup reaches another machine over HTTP by a link that only the machine itself can make."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import jwt
import pytest
from tests.conftest import open_client
from tests.make import MadeTenant, make_token
from tests.ops.backups import make_folder
from typer.testing import CliRunner

from pharos.cli import app
from pharos.identity.security import list_security_events
from pharos.identity.signing_keys import JWT, current_key
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.db import create_database
from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings
from pharos.ops.backup.download import ALGORITHM, AUDIENCE, LINK_MADE, make_link, record_way_out
from pharos.ops.backup.store import record_verification
from pharos.runtime import Runtime

HOUR = timedelta(hours=1)


@pytest.fixture
def folder(settings: Settings) -> Path:
    """A backup with files of sizes around a tar block and a read, and one with a name that an old tar cannot hold."""
    made = make_folder(settings, made_at=datetime(2026, 3, 1, 3, tzinfo=UTC))
    for size in (0, 1, 511, 512, 513, 2**20, 2**20 + 1):
        path = made / "blobs" / ("f" * 60) / ("0" * 64) / f"{size}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(index % 251 for index in range(size)))
    return made


def path_of(address: str) -> str:
    return "/" + address.split("/", 3)[3]


@pytest.mark.contract("BK-14", part="a download that needs no account, by a link made on the machine")
async def test_a_link_gives_the_whole_backup_as_an_archive(
    client: httpx.AsyncClient, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    answer = await client.get(path_of(make_link(settings, folder, lives=HOUR)))
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == f'attachment; filename="{folder.name}.tar"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert contents(tmp_path / folder.name) == {
        name: content for name, content in contents(folder).items() if name != "verified.json"
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_nothing_but_such_a_link_fetches_a_backup(
    runtime: Runtime, settings: Settings, folder: Path, tenant: MadeTenant
) -> None:
    good = make_link(settings, folder, lives=HOUR)

    def forged(**changed: object) -> str:
        claims = {"aud": AUDIENCE, "sub": folder.name, "exp": datetime.now(UTC) + HOUR, **changed}
        key = changed.pop("key", current_key(settings, JWT))
        return jwt.encode({k: v for k, v in claims.items() if v and k != "key"}, key, algorithm=ALGORITHM)  # type: ignore[arg-type]

    tokens = [
        forged(exp=datetime.now(UTC) - HOUR),
        forged(exp=None),
        forged(aud="pharos-api"),
        forged(sub="../../secrets"),
        forged(sub="."),
        forged(key=b"another key of thirty-two bytes!!"),
        good.rpartition("/")[2][:-4],
        jwt.encode({"aud": AUDIENCE, "sub": folder.name, "exp": datetime.now(UTC) + HOUR}, "", algorithm="none"),
        await make_token(runtime, tenant.admin),
        folder.name,
    ]
    async with open_client(runtime, tenant.admin) as administrator:
        for token in tokens:
            answer = await administrator.get(f"/backups/download/{token}", headers={"Accept": "application/json"})
            assert (answer.status_code, answer.json()["error"]) == (404, "link_ended"), token
        assert (await administrator.get(path_of(good))).status_code == 200
        (folder / "manifest.json").unlink()
        answer = await administrator.get(path_of(good), headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()["error"]) == (404, "no_such_backup")


@pytest.mark.contract("BK-14", part="a damaged one is not handed out")
async def test_a_link_to_a_backup_that_was_found_damaged_is_refused(
    client: httpx.AsyncClient, settings: Settings, folder: Path
) -> None:
    address = path_of(make_link(settings, folder, lives=HOUR))
    record_verification(settings, folder, seconds=1, error=Conflict("It is damaged.", code="damaged_file"))
    answer = await client.get(address, headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (409, "damaged_backup")
    assert f"{folder.name} is not whole (damaged_file)" in answer.json()["message"]
    environment = {"PHAROS_DATA_DIR": str(settings.data_dir), "PHAROS_DATABASE_URL": settings.database_url}
    assert isinstance(CliRunner().invoke(app, ["backup", "link", folder.name], env=environment).exception, Conflict)
    record_verification(settings, folder, seconds=1)
    (folder / "database" / "toc.dat").write_bytes(b"half")
    assert (await client.get(address)).status_code == 409


async def test_a_link_is_no_access_token(runtime: Runtime, settings: Settings, folder: Path) -> None:
    token = make_link(settings, folder, lives=HOUR).rpartition("/")[2]
    async with open_client(runtime) as nobody:
        answer = await nobody.get("/admin/stats", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


async def test_every_organisation_is_told_that_its_data_left(
    runtime: Runtime, client: httpx.AsyncClient, settings: Settings, folder: Path, tenant: MadeTenant
) -> None:
    tenants = (tenant.id, await ensure_default_tenant(runtime))
    await record_way_out(runtime, LINK_MADE, folder.name)
    await client.get(path_of(make_link(settings, folder, lives=HOUR)))
    for tenant_id in tenants:
        async with runtime.db.transaction(tenant_id) as session:
            told = [line for line in await list_security_events(session) if line.subject == f"backup:{folder.name}"]
        assert {line.event_type for line in told[:2]} == {"backup_link_made", "backup_downloaded"}
        assert {line.severity for line in told} == {"high"}


async def test_without_a_database_a_backup_can_still_be_fetched(
    runtime: Runtime, settings: Settings, folder: Path
) -> None:
    db = create_database("postgresql://nobody:nothing@127.0.0.1:1/nowhere")
    try:
        async with open_client(replace(runtime, db=db)) as client:
            assert (await client.get(path_of(make_link(settings, folder, lives=HOUR)))).status_code == 200
    finally:
        await db.dispose()


def test_the_command_prints_the_address(settings: Settings, folder: Path) -> None:
    make_folder(settings, made_at=datetime(2026, 3, 2, 3, tzinfo=UTC), verified=False)
    environment = {
        "PHAROS_DATA_DIR": str(settings.data_dir),
        "PHAROS_DATABASE_URL": settings.database_url,
        "PHAROS_PUBLIC_URL": "https://pharos.example.org",
    }
    result = CliRunner().invoke(app, ["backup", "link", "2026-03-01"], env=environment)
    assert result.output.startswith("https://pharos.example.org/backups/download/ey"), result.output
    latest = CliRunner().invoke(app, ["backup", "link", "--json"], env=environment)
    assert json.loads(latest.stdout)["name"] == folder.name, "the newer one was never restored"

"""`pharos secrets`: a wrong key stops the start, rotations end what they promise and lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import jwt
import psycopg
import pytest
from sqlalchemy import select, text, update
from tests.conftest import ENCRYPTION_KEY, make_runtime, open_client
from tests.make import MadeTenant, make_tenant, make_token
from typer.testing import CliRunner

from pharos.cli import app
from pharos.identity.current import COOKIE
from pharos.identity.models import AuditEntry, BootstrapState, SecurityEvent
from pharos.identity.sign_in import open_session
from pharos.identity.signing_keys import JWT, SESSION, key_id, previous_file, secret_file
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Conflict, PharosError
from pharos.infra.keyring import encryption_secret, key_file, read_keys, write_keys
from pharos.infra.mail import get_mail, queue_mail, retry_mail
from pharos.infra.models import EncryptionKey, Secret
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings
from pharos.ops.secrets_check import count_unreadable, find_overdue, list_known_secrets
from pharos.runtime import Runtime

Counts = tuple[int, int]
"""Secrets of the two tenants of the kills; a batch holds 50."""


@dataclass
class Installation:
    """A database and a data directory of its own, whose secrets are all generated."""

    runtime: Runtime
    tenant: MadeTenant

    @property
    def settings(self) -> Settings:
        return self.runtime.settings

    def variables(self, **more: str) -> dict[str, str]:
        return {
            "PHAROS_DATABASE_URL": str(self.settings.database_url),
            "PHAROS_DATA_DIR": str(self.settings.data_dir),
            "PHAROS_PORT": str(free_port()),
            **more,
        }

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """A `pharos` command as a process of its own."""
        environment = {"PATH": os.environ["PATH"], **self.variables(**variables)}
        command = [sys.executable, "-m", "pharos", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=environment, cwd=self.settings.data_dir, stdout=pipe, stderr=pipe, text=True
        )

    def wait(self, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and stderr of a process that ends by itself."""
        with self.start(*words, **variables) as process:
            _, complained = process.communicate(timeout=60)
        return process.returncode, complained

    async def run(self, *words: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout and the refusal of a command, run in this process."""
        runner = CliRunner()
        done = await asyncio.to_thread(lambda: runner.invoke(app, words, env=self.variables(**variables)))
        if isinstance(done.exception, PharosError):
            return done.exception.exit_code, done.stdout, done.exception.message
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, ""


@pytest.fixture
async def installation(fresh_urls: DatabaseUrls, tmp_path: Path, warm_python: None) -> AsyncIterator[Installation]:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    settings = Settings(_env_file=None, data_dir=data_dir, database_url=fresh_urls.app)
    db = create_database(fresh_urls.app, pool_size=5)
    async with system_transaction(db) as session:
        await session.execute(update(BootstrapState).values(is_initialized=True))
    yield Installation(make_runtime(settings, db), await make_tenant(db))
    await db.dispose()


async def seal(place: Installation, *, count: int = 1, tenant: MadeTenant | None = None) -> None:
    tenant = tenant or place.tenant
    async with place.runtime.db.transaction(tenant.id) as session:
        for number in range(count):
            name = f"key {number:04d}"
            await place.runtime.vault.seal(session, tenant_id=tenant.id, kind="llm", name=name, text=f"text of {name}")


async def read_all(place: Installation, tenant: MadeTenant) -> list[str]:
    """Every text of a tenant; fails when one is not what was sealed."""
    read = []
    async with place.runtime.db.transaction(tenant.id) as session:
        for secret_id, name in (await session.execute(select(Secret.id, Secret.name))).all():
            opened = await place.runtime.vault.open(session, tenant_id=tenant.id, secret_id=secret_id)
            assert opened == f"text of {name}"
            read.append(opened)
    return read


class TestWrongKey:
    @pytest.mark.slow
    @pytest.mark.contract("LP-12", part="`pharos secrets check` counts unreadable rows and names the fix")
    @pytest.mark.contract("SE-04", part="fingerprint check at start")
    async def test_check_and_start_say_the_same_and_the_old_key_as_second_mends_it(
        self, installation: Installation
    ) -> None:
        await seal(installation, count=3)
        old, new = key_file(installation.settings).read_text().strip(), secrets.token_hex(32)

        code, said, complained = await installation.run("secrets", "check", PHAROS_ENCRYPTION_KEY=new)
        assert code == 5
        assert said.split()[-3:] == [installation.tenant.slug, "3", "3"]
        assert "Put the old key back" in complained
        for part in ("web", "worker"):
            code, refusal = await asyncio.to_thread(partial(installation.wait, part, PHAROS_ENCRYPTION_KEY=new))
            assert code == 5
            assert complained in refusal
        both = f"{new},{old}"
        code, said, _ = await installation.run("secrets", "check", "--json", PHAROS_ENCRYPTION_KEY=both)
        assert code == 0
        assert json.loads(said)["tenants"] == [{"tenant": installation.tenant.slug, "secrets": 3, "unreadable": 0}]

    @pytest.mark.slow
    @pytest.mark.contract("ID-13", part="boot refuses a session secret of fewer than 16 characters")
    async def test_a_short_session_secret_stops_the_start(self, installation: Installation) -> None:
        for part in ("web", "worker"):
            wait = partial(installation.wait, part, PHAROS_SESSION_SECRET="fifteen letters")
            code, complained = await asyncio.to_thread(wait)
            assert code == 2
            assert "PHAROS_SESSION_SECRET must be at least 16" in complained

    @pytest.mark.contract("ID-13", part="two set names with different values are both named")
    async def test_a_short_a_default_or_a_doubled_secret_is_refused(self, installation: Installation) -> None:
        cases: list[tuple[dict[str, str], list[str]]] = [
            ({"SESSION_SECRET": "fifteen letters"}, ["SESSION_SECRET must", "16"]),
            (
                {"JWT_SECRET": "changeme-changeme-changeme-changeme"},
                ["JWT_SECRET must", "pharos secrets generate jwt"],
            ),
            ({"JWT_SECRET": "a" * 20 + "b" * 20, "AUTH_SECRET": "c" * 40}, ["JWT_SECRET and AUTH_SECRET"]),
            ({"ENCRYPTION_KEY": "0" * 64}, ["PHAROS_ENCRYPTION_KEY", "pharos secrets generate encryption"]),
        ]
        for variables, names in cases:
            code, _, complained = await installation.run("secrets", "check", **variables)
            assert code == 2
            assert all(name in complained for name in names)
            assert not any(value in complained for value in variables.values())

    async def test_a_missing_key_file_is_refused_and_stays_missing(self, installation: Installation) -> None:
        await seal(installation)
        key_file(installation.settings).unlink()
        code, _, complained = await installation.run("secrets", "check")
        assert code == 5
        assert "Put the file back from a backup" in complained
        assert not key_file(installation.settings).exists()

    async def test_a_key_lost_for_good_can_be_given_up_with_what_it_opens(self, installation: Installation) -> None:
        await seal(installation, count=2)
        tenant_id, vault = installation.tenant.id, installation.runtime.vault
        async with installation.runtime.db.transaction(tenant_id) as session:
            words = {"recipient": "ada@example.org", "subject": "Your link", "text": "Open it."}
            mail_id = await queue_mail(session, vault, tenant_id=tenant_id, **words)
        (lost,) = read_keys(installation.settings)
        key_file(installation.settings).unlink()

        code, said, _ = await installation.run("secrets", "forget", lost.id, "--yes", "--json")
        assert (code, len(json.loads(said)["lost"])) == (0, 3)
        async with installation.runtime.db.transaction(tenant_id) as session:
            mail = await get_mail(session, tenant_id=tenant_id, mail_id=mail_id)
            assert (mail.state, mail.reason) == ("failed", f"Its text is lost with the encryption key {lost.id}.")
            with pytest.raises(Conflict, match="is lost"):
                await retry_mail(session, tenant_id=tenant_id, mail_id=mail_id)
        assert (await installation.run("secrets", "check"))[0] == 0
        assert await count_unreadable(installation.runtime) == []
        assert read_keys(installation.settings)[0].id != lost.id

    async def test_a_row_that_was_changed_is_counted_though_the_key_is_right(self, installation: Installation) -> None:
        await seal(installation, count=2)
        async with installation.runtime.db.transaction(installation.tenant.id) as session:
            changed = update(Secret).where(Secret.name == "key 0001")
            await session.execute(changed.values(ciphertext=text("ciphertext || 'x'::bytea")))
        code, said, complained = await installation.run("secrets", "check", "--json")
        assert code == 5
        assert json.loads(said)["tenants"][0]["unreadable"] == 1
        assert "Restore them from a backup" in complained


class TestSigningSecrets:
    @pytest.mark.contract("ID-15", "SE-02")
    async def test_rotating_the_jwt_secret_ends_every_token_in_the_running_process_and_no_cookie(
        self, installation: Installation
    ) -> None:
        runtime, admin = installation.runtime, installation.tenant.admin
        old = await open_session(runtime, admin, holder="program")
        async with open_client(runtime) as client:
            headers = {"Authorization": f"Bearer {old.access_token}"}
            assert (await client.get("/projects", headers=headers)).status_code == 200
            code, _, complained = await installation.run("secrets", "rotate", "jwt")
            assert code == 0, complained
            assert (await client.get("/projects", headers=headers)).status_code == 401
            answer = await client.post("/auth/refresh", json={"refresh_token": old.refresh_token})
            assert answer.status_code == 401
            new = {"Authorization": f"Bearer {await make_token(runtime, admin)}"}
            assert (await client.get("/projects", headers=new)).status_code == 200
        async with runtime.db.transaction(installation.tenant.id) as session:
            events = (await session.execute(select(SecurityEvent.event_type))).scalars().all()
            entries = (await session.execute(select(AuditEntry.action))).scalars().all()
        assert "signing_key_rotated" in events
        assert "signing_key.rotated" in entries

    @pytest.mark.contract("SE-03", part="`--grace`: the previous secret only verifies, until its tokens have expired")
    async def test_with_a_grace_old_tokens_verify_until_it_ends(self, installation: Installation) -> None:
        runtime, admin = installation.runtime, installation.tenant.admin
        session = await open_session(runtime, admin, holder="program")
        old, refresh_token = session.access_token, session.refresh_token
        before = secret_file(installation.settings, JWT).read_text()
        code, _, complained = await installation.run("secrets", "rotate", "jwt", "--grace")
        assert code == 0, complained
        previous = json.loads(previous_file(installation.settings, JWT).read_text())
        assert previous["secret"] == before != secret_file(installation.settings, JWT).read_text()
        ends = datetime.fromisoformat(previous["until"])
        assert timedelta(days=6.9) < ends - datetime.now(UTC) <= timedelta(days=7)
        async with open_client(runtime) as client:
            headers = {"Authorization": f"Bearer {old}"}
            assert (await client.get("/projects", headers=headers)).status_code == 200
            refreshed = (await client.post("/auth/refresh", json={"refresh_token": refresh_token})).json()
            renewed = jwt.get_unverified_header(refreshed["accessToken"])["kid"]
            assert renewed == key_id(secret_file(installation.settings, JWT).read_bytes())
            over = {**previous, "until": datetime.now(UTC).isoformat()}
            previous_file(installation.settings, JWT).write_text(json.dumps(over))
            assert (await client.get("/projects", headers=headers)).status_code == 401

    @pytest.mark.contract("ID-13", part="rotating it logs everyone out")
    async def test_rotating_the_session_secret_ends_cookies_and_no_access_token(
        self, installation: Installation
    ) -> None:
        runtime, admin = installation.runtime, installation.tenant.admin
        browser = await open_session(runtime, admin, holder="browser")
        token = await make_token(runtime, admin)
        async with open_client(runtime) as client:
            client.cookies.set(COOKIE, browser.session_token)
            assert (await client.get("/auth/session")).status_code == 200
            code, _, complained = await installation.run("secrets", "rotate", "session")
            assert code == 0, complained
            assert (await client.get("/auth/session")).status_code == 401
            client.cookies.clear()
            answer = await client.get("/auth/session", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200

    async def test_with_a_grace_a_cookie_goes_on(self, installation: Installation) -> None:
        runtime, admin = installation.runtime, installation.tenant.admin
        browser = await open_session(runtime, admin, holder="browser")
        code, *_ = await installation.run("secrets", "rotate", "session", "--grace")
        assert code == 0
        async with open_client(runtime) as client:
            client.cookies.set(COOKIE, browser.session_token)
            assert (await client.get("/auth/session")).status_code == 200
        assert previous_file(installation.settings, SESSION).stat().st_mode & 0o777 == 0o600

    async def test_a_secret_held_by_the_operator_is_not_touched(self, installation: Installation) -> None:
        given = secrets.token_hex(32)
        code, said, complained = await installation.run("secrets", "rotate", "jwt", JWT_SECRET=given)
        assert code == 5
        assert len(said.strip()) == 44
        assert "nothing was changed" in complained
        assert given not in said + complained


@pytest.mark.contract("SE-01")
def test_generated_secrets_are_32_random_bytes_in_the_form_their_use_wants() -> None:
    made = {kind: CliRunner().invoke(app, ["secrets", "generate", *kind]).stdout.strip() for kind in [(), ("api-key",)]}
    assert len(made[()]) == 44
    assert len(bytes.fromhex(made[("api-key",)])) == 32


@pytest.mark.contract("AU-05", part="the checklist")
@pytest.mark.contract("SE-03", part="a reminder after a quarter")
async def test_the_checklist_names_source_and_age_but_no_value(installation: Installation) -> None:
    await make_token(installation.runtime, installation.tenant.admin)
    await seal(installation)
    file = secret_file(installation.settings, JWT)
    long_ago = time.time() - 100 * 86400
    os.utime(file, (long_ago, long_ago))
    lines = {line.name: line for line in list_known_secrets(installation.settings)}
    assert (lines["jwt"].source, lines["jwt"].age_days) == (str(file), 100)
    assert lines["encryption"].age_days == 0
    assert [line.name for line in find_overdue(installation.settings)] == ["jwt"]
    values = [path.read_text().strip() for path in file.parent.iterdir()]
    assert not any(value in str(lines) for value in values)
    code, said, _ = await installation.run("doctor", "secrets", "--json")
    assert code == 0
    assert "jwt is 100 days old: pharos secrets rotate jwt" in json.loads(said)[0]["cause"]


class TestRotateEncryption:
    @pytest.mark.contract("SE-04", part="online rotation: re-encrypts, then retires the old key")
    async def test_it_leaves_nothing_that_the_old_key_opens(self, installation: Installation) -> None:
        await seal(installation, count=5)
        (old,) = read_keys(installation.settings)
        code, said, complained = await installation.run("secrets", "rotate", "encryption", "--json")
        assert code == 0, complained
        rotation = json.loads(said)
        (new,) = read_keys(installation.settings)
        assert (rotation["new_key"], rotation["old_keys"]) == (new.id, [old.id])
        assert (rotation["secrets"], rotation["data_keys"], rotation["tried"]) == (5, 1, 6)
        assert len(await read_all(installation, installation.tenant)) == 5
        async with installation.runtime.db.transaction(installation.tenant.id) as session:
            events = (await session.execute(select(SecurityEvent.event_type))).scalars().all()
            entries = (await session.execute(select(AuditEntry.action))).scalars().all()
            keys = {key.id: key.retired_at for key in (await session.execute(select(EncryptionKey))).scalars()}
        assert (events.count("encryption_key_rotated"), entries.count("encryption_key.rotated")) == (1, 1)
        assert keys[old.id] is not None
        assert keys[new.id] is None

    @pytest.mark.contract("SE-04", part="an old key given for reading does not stand in the way of a rotation")
    async def test_an_old_key_that_opens_nothing_leaves_the_file_and_a_new_one_is_made(
        self, installation: Installation
    ) -> None:
        file, rotate = key_file(installation.settings), ("secrets", "rotate", "encryption", "--json")
        await seal(installation, count=2)
        old = file.read_text()
        assert (await installation.run(*rotate))[0] == 0
        (used,) = read_keys(installation.settings)
        write_secret(file, f"{file.read_text()}{old}")
        _, reading = read_keys(installation.settings)
        planned = json.loads((await installation.run(*rotate, "--dry-run"))[1])
        assert (planned["is_resumed"], planned["dropped"], planned["secrets"]) == (False, [reading.id], 2)
        code, said, complained = await installation.run(*rotate)
        assert code == 0, complained
        rotation = json.loads(said)
        (new,) = read_keys(installation.settings)
        assert new.id not in {used.id, reading.id}
        assert (rotation["old_keys"], rotation["dropped"], rotation["is_resumed"]) == ([used.id], [reading.id], False)
        assert (rotation["secrets"], len(await read_all(installation, installation.tenant))) == (2, 2)

    async def test_a_key_that_still_wraps_is_resumed_though_it_is_retired(self, installation: Installation) -> None:
        await seal(installation, count=2)
        (old,) = read_keys(installation.settings)
        new = encryption_secret(secrets.token_bytes(32))
        write_keys(installation.settings, (new, old))
        async with system_transaction(installation.runtime.db) as session:
            session.add(EncryptionKey(id=new.id))
            await session.execute(
                update(EncryptionKey).where(EncryptionKey.id == old.id).values(retired_at=text("now()"))
            )
        code, said, complained = await installation.run("secrets", "rotate", "encryption", "--json")
        assert code == 0, complained
        rotation = json.loads(said)
        assert (rotation["new_key"], rotation["is_resumed"], rotation["secrets"]) == (new.id, True, 2)
        assert read_keys(installation.settings) == (new,)

    async def test_a_dry_run_counts_and_changes_nothing(self, installation: Installation) -> None:
        await seal(installation, count=4)
        before = key_file(installation.settings).read_text()
        code, said, _ = await installation.run("secrets", "rotate", "encryption", "--dry-run", "--json")
        assert code == 0
        assert (json.loads(said)["secrets"], json.loads(said)["tenants"]) == (4, 1)
        assert key_file(installation.settings).read_text() == before

    async def test_a_key_in_the_environment_is_changed_by_the_operator_and_then_rotated(
        self, installation: Installation
    ) -> None:
        file, rotate = key_file(installation.settings), ("secrets", "rotate", "encryption")
        write_secret(file, ENCRYPTION_KEY)
        await seal(installation, count=2)
        file.unlink()
        code, _, complained = await installation.run(*rotate, PHAROS_ENCRYPTION_KEY=ENCRYPTION_KEY)
        assert code == 5
        new = complained.split("between: ")[1].split()[0]
        code, said, complained = await installation.run(*rotate, PHAROS_ENCRYPTION_KEY=f"{new},{ENCRYPTION_KEY}")
        assert code == 0, complained
        assert "Remove the old key from PHAROS_ENCRYPTION_KEY" in said
        assert (await installation.run("secrets", "check", PHAROS_ENCRYPTION_KEY=new))[0] == 0
        assert (await installation.run("secrets", "check", PHAROS_ENCRYPTION_KEY=ENCRYPTION_KEY))[0] == 5

    @pytest.mark.contract("SE-04", part="resumes after a crash, while serving")
    async def test_readers_meet_no_error_while_it_is_killed_at_every_step(self, installation: Installation) -> None:
        await rotate_with_kills(installation, (51, 51), kills=7)

    @pytest.mark.prove
    async def test_readers_meet_no_error_while_it_is_killed_at_every_batch(self, installation: Installation) -> None:
        await rotate_with_kills(installation, (120, 60), kills=8)


async def rotate_with_kills(installation: Installation, counts: Counts, *, kills: int) -> None:
    other = await make_tenant(installation.runtime.db)
    tenants = [installation.tenant, other]
    for tenant, count in zip(tenants, counts, strict=True):
        await seal(installation, count=count, tenant=tenant)
    (old,) = read_keys(installation.settings)
    reader = asyncio.create_task(_read_until_cancelled(installation, tenants, counts))
    killed = await asyncio.to_thread(_kill_at_every_batch, installation, tenants)
    code, said, complained = await installation.run("secrets", "rotate", "encryption")
    reader.cancel()
    assert code == 0, complained
    assert f"alone opens 0 of {sum(counts) + len(tenants)} data keys and secrets" in said
    assert killed == kills
    assert await reader > len(tenants), "it read all the while"
    (new,) = read_keys(installation.settings)
    assert new.id != old.id
    for tenant, count in zip(tenants, counts, strict=True):
        assert len(await read_all(installation, tenant)) == count
    async with system_transaction(installation.runtime.db) as session:
        in_use = select(EncryptionKey.id).where(EncryptionKey.retired_at.is_(None))
        assert (await session.execute(in_use)).scalars().all() == [new.id]


async def _read_until_cancelled(place: Installation, tenants: list[MadeTenant], counts: Counts) -> int:
    """Rounds in which every secret of every tenant was read and right."""
    rounds = 0
    while True:
        try:
            for tenant, count in zip(tenants, counts, strict=True):
                assert len(await read_all(place, tenant)) == count
            rounds += 1
            await asyncio.sleep(0.05)  # they leave the machine to the rotation
        except asyncio.CancelledError:
            return rounds


def _kill_at_every_batch(place: Installation, tenants: list[MadeTenant]) -> int:
    """Hold in the database what the next step needs, kill the rotation when it waits there, let go; returns kills."""
    url, kills = str(place.settings.database_url), 0
    first = tenants[0]
    kills += _kill_waiting(place, url, first, "select 1 from data_keys where is_current for update")
    assert len(read_keys(place.settings)) == 2  # the new key is there before anything rests on it
    beyond_next_batch = (
        "select 1 from secrets where id in (select s.id from secrets s join data_keys d on d.id = s.data_key_id"
        " where not d.is_current or not exists (select from data_keys o where not o.is_current)"
        " order by s.id offset 50) for update"
    )
    for tenant in tenants:
        for _ in range(3):
            kills += _kill_waiting(place, url, tenant, beyond_next_batch)
        kills += _kill_waiting(place, url, tenant, "select 1 from data_keys where not is_current for key share")
    kills += _kill_waiting(place, url, first, "select 1 from encryption_keys for share")
    kills += _kill_waiting(place, url, first, f"select 1 from tenants where id = '{first.id}' for update")
    return kills


def _kill_waiting(place: Installation, url: str, tenant: MadeTenant, hold: str) -> int:
    waiting = "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
        holder.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant.id)])
        held = holder.execute(hold)
        if held.description is not None and not held.fetchall():
            return 0
        with place.start("secrets", "rotate", "encryption") as rotation:
            deadline = time.monotonic() + 60
            while watcher.execute(waiting, [holder.info.backend_pid]).fetchone() == (0,):
                assert rotation.poll() is None, rotation.communicate()
                assert time.monotonic() < deadline, "the rotation never waited"
                time.sleep(0.01)
            rotation.kill()
            rotation.communicate()  # until nobody holds its streams any more
        holder.rollback()  # lets the dead one's backend see that nobody is there to commit
    return 1

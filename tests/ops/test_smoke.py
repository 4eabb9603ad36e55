"""The smoke test: what works passes, what does not is named with what to do, through any proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from tests.conftest import RunJobs, make_settings
from tests.make import PASSWORD, MadeTenant, make_document, make_project
from typer.testing import CliRunner

from pharos.app import create_app
from pharos.cli import app
from pharos.identity.principal import product
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Invalid
from pharos.ops import health
from pharos.ops.smoke import Check, SmokeReport, run_smoke
from pharos.runtime import Runtime

ANSWER = b"Pharos is stopped without losing work by the command pharos down. It ends requests first."


@pytest.fixture
async def url(runtime: Runtime) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))  # who comes before the server serves waits in its queue
    config = uvicorn.Config(create_app(runtime.settings, runtime=runtime), log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    await serving


@asynccontextmanager
async def proxy(url: str, *, holds_back: bool = False, cuts_after: float | None = None) -> AsyncIterator[str]:
    """A proxy that gives an answer only when it is whole, or ends one that was silent for `cuts_after` seconds."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        try:
            upstream.write((await reader.readuntil(b"\r\n\r\n")).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            held = b""
            while piece := await asyncio.wait_for(upstream_reader.read(65536), cuts_after):
                held += piece
                if not holds_back:
                    writer.write(held)
                    held = b""
            writer.write(held)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            upstream.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def results(report: SmokeReport) -> dict[str, str]:
    return {check.name: check.result for check in report.checks}


def named(report: SmokeReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


async def add_handbook(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> None:
    project = await make_project(runtime.db, tenant.admin, is_handbook=True)
    await make_document(runtime, product(tenant.id), project, name="stop.txt", content=ANSWER)
    await run_jobs()


@pytest.mark.contract("SM-01")
@pytest.mark.contract("SM-04", part="sign-in by password and by link, projects, a streamed answer with its source")
async def test_with_an_account_everything_up_to_a_cited_answer_is_tried(
    url: str, runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    await add_handbook(runtime, tenant, run_jobs)
    report = await run_smoke(url, email=tenant.admin.name, password=PASSWORD, pause_seconds=0.2)
    assert report.passed, report.failed
    found = results(report)
    assert {name for name, result in found.items() if result == "SKIP"} == {"templates", "rules"}
    assert "cites stop.txt" in named(report, "answer").said
    async with httpx.AsyncClient(base_url=url) as client:
        reply = await client.post("/auth/login", json={"email": tenant.admin.name, "password": PASSWORD})
        headers = {"Authorization": f"Bearer {reply.json()['accessToken']}"}
        sessions = (await client.get("/auth/sessions", headers=headers)).json()
    assert len(sessions["sessions"]) == 1, "the smoke test has ended the session it opened"


@pytest.mark.contract("SM-03")
async def test_a_magic_link_is_asked_for_read_in_the_outbox_and_opened(
    url: str, runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    async def send_mail() -> None:
        while True:
            await run_jobs()
            await asyncio.sleep(0.05)

    sending = asyncio.create_task(send_mail())
    try:
        outbox = runtime.settings.data_dir / "outbox"
        report = await run_smoke(url, email=tenant.admin.name, outbox=outbox, pause_seconds=0.2)
    finally:
        sending.cancel()
    assert named(report, "magic link").said == "mailed, opened, signed in"
    assert named(report, "sign-in").said == f"signed in as {tenant.admin.name}"


@pytest.mark.contract("SM-02", part="health connected, and what is not served yet is skipped")
@pytest.mark.contract("SM-05")
async def test_without_an_account_the_public_part_is_asked_and_the_rest_skipped(url: str) -> None:
    report = await run_smoke(url, pause_seconds=0.2)
    assert report.passed
    assert {name for name, result in results(report).items() if result == "PASS"} == {
        *("health", "ready", "bootstrap", "stream")
    }


@pytest.mark.contract("SM-05", part="what needs an account is said in one line, with the options to give")
async def test_the_command_says_what_it_skips_without_an_account_and_what_to_give(url: str, tmp_path: Path) -> None:
    words = ["smoke", "--url", url, "--pause", "0.2"]
    environment = {"PHAROS_DATA_DIR": str(tmp_path)}
    said = await asyncio.to_thread(CliRunner().invoke, app, words, env=environment)
    told = "SKIP  without an account: magic link, sign-in, projects, providers, chat config, answer not tried."
    assert (said.exit_code, f"{told} Give --email and --password-file to try all of it." in said.stdout) == (0, True)


@pytest.mark.contract("SM-05", part="a failure is named with what to do")
async def test_what_fails_is_named_with_what_to_do(url: str, tenant: MadeTenant) -> None:
    wrong = await run_smoke(url, email=tenant.admin.name, password="not this one at all", pause_seconds=0.2)
    assert [check.name for check in wrong.failed] == ["sign-in"]
    assert "do not fit" in wrong.failed[0].said
    assert wrong.failed[0].next_step
    nobody = await run_smoke(f"http://127.0.0.1:{free_port()}")
    assert results(nobody) == {"health": "FAIL"}, "one reason, said once"
    with pytest.raises(Invalid, match="is no address"):
        await run_smoke("pharos.example.org")


@pytest.mark.contract("SM-02", part="a proxy in between that spoils streams is noticed")
async def test_a_proxy_that_holds_streams_back_or_cuts_silent_ones_is_noticed(url: str) -> None:
    async with proxy(url, holds_back=True) as address:
        held = named(await run_smoke(address, pause_seconds=0.4), "stream")
    async with proxy(url, cuts_after=0.2) as address:
        cut = named(await run_smoke(address, pause_seconds=0.6), "stream")
    async with proxy(url) as address:
        good = named(await run_smoke(address, pause_seconds=0.4), "stream")
    assert (held.result, "came together" in held.said, "proxy_buffering" in held.next_step) == ("FAIL", True, True)
    assert (cut.result, "cut after" in cut.said, "proxy_read_timeout" in cut.next_step) == ("FAIL", True, True)
    assert good.result == "PASS"


async def test_a_stream_that_too_many_ask_for_fails_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_STREAMS", 0)
    report = await run_smoke(url, pause_seconds=0.2)
    assert (report.passed, named(report, "stream").result) == (True, "SKIP")


@pytest.mark.contract("SM-05", part="the exit code tells, and JSON says the same")
def test_the_command_ends_with_1_on_a_failure(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    settings = make_settings(database_urls, tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    environment = {"PHAROS_DATA_DIR": str(settings.data_dir)}
    said = CliRunner().invoke(app, ["smoke", "--url", url], env=environment)
    assert (said.exit_code, said.stdout.startswith("FAIL  health")) == (1, True)
    assert '"passed": false' in CliRunner().invoke(app, ["smoke", "--url", url, "--json"], env=environment).stdout

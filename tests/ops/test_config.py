"""`pharos config set`: what is written is what is read back, secrets stay out of sight, and the audit log knows."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from typer.testing import CliRunner

from pharos.cli import app
from pharos.identity.models import AuditEntry
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.errors import Invalid
from pharos.ops.config_commands import with_variable
from pharos.runtime import Runtime

FILE = "# ours\nexport PHAROS_LLM_MODEL=old\nPHAROS_PORT=8001 # the old one\nOTHER='two\nlines'\nBROKEN LINE\n"


@pytest.mark.contract("DE-18", part="what is set is what is read back")
@pytest.mark.parametrize(
    "value", ["a b", "with # sign", "it's", 'say "x"', "back\\slash", "$HOME", " padded ", "", "ü", "'"]
)
def test_a_value_is_read_back_as_it_was_given_and_its_neighbours_stay(value: str) -> None:
    text = with_variable(FILE, name="PHAROS_LLM_MODEL", value=value)
    found = dotenv_values(stream=io.StringIO(text))
    assert (found["PHAROS_LLM_MODEL"], found["PHAROS_PORT"], found["OTHER"]) == (value, "8001", "two\nlines")
    assert text.count("PHAROS_LLM_MODEL") == 1
    assert text.startswith("# ours\n")
    assert "BROKEN LINE\n" in text


@given(st.text())
def test_no_value_sets_another_variable(value: str) -> None:
    try:
        text = with_variable("PHAROS_PORT=8001\n", name="PHAROS_LLM_MODEL", value=value)
    except Invalid:
        return
    assert dotenv_values(stream=io.StringIO(text)) == {"PHAROS_PORT": "8001", "PHAROS_LLM_MODEL": value}


@pytest.mark.parametrize("value", ["x\nPHAROS_HOST=0.0.0.0", "x\rPHAROS_HOST=0.0.0.0", "${HOME}", "a${PHAROS_PORT:-1}"])
def test_what_the_file_cannot_hold_is_refused(value: str) -> None:
    with pytest.raises(Invalid, match="PHAROS_LLM_MODEL cannot hold"):
        with_variable(FILE, name="PHAROS_LLM_MODEL", value=value)


@pytest.fixture
def place(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose settings are those of `runtime`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(runtime.settings.data_dir))
    monkeypatch.setenv("PHAROS_DATABASE_URL", str(runtime.settings.database_url))
    return tmp_path


@pytest.mark.contract("DE-18", part="a secret is typed or piped")
@pytest.mark.parametrize("name", ["PHAROS_LLM_KEY", "PHAROS_DATABASE_URL"])
def test_a_secret_on_the_command_line_is_refused_and_taken_from_stdin(place: Path, name: str) -> None:
    refused = CliRunner().invoke(app, ["config", "set", name, "postgresql://hidden"])
    assert isinstance(refused.exception, Invalid)
    assert f"Run `pharos config set {name}` and type it, or give it on stdin" in refused.exception.message
    assert not (place / "pharos.env").exists()
    done = CliRunner().invoke(app, ["config", "set", name, "--dry-run"], input="postgresql://hidden\n")
    assert (done.exit_code, "hidden" in done.output) == (0, False)
    done = CliRunner().invoke(app, ["config", "set", "PHAROS_LLM_KEY"], input="key with # and '\n")
    assert (done.exit_code, "key with" in done.output) == (0, False)
    assert dotenv_values(place / "pharos.env")["PHAROS_LLM_KEY"] == "key with # and '"


@pytest.mark.contract("DE-18", part="a change is audited")
async def test_a_change_is_in_the_audit_log_without_its_value(place: Path, runtime: Runtime) -> None:
    tenant_id = await ensure_default_tenant(runtime)
    done = await asyncio.to_thread(CliRunner().invoke, app, ["config", "set", "PHAROS_PORT", "8123"])
    assert (done.exit_code, "audit log" in done.output) == (0, False)
    async with runtime.db.transaction(tenant_id) as session:
        newest = (
            select(AuditEntry).where(AuditEntry.action == "settings.changed").order_by(AuditEntry.id.desc()).limit(1)
        )
        entry = (await session.execute(newest)).scalar_one()
    assert (entry.actor, entry.subject) == ("operator", "setting:PHAROS_PORT")
    assert "8123" not in str(entry.detail)


def test_what_is_written_is_named_and_what_counts_instead_of_it_is_said(
    place: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def said(*words: str) -> str:
        return CliRunner().invoke(app, ["config", "set", *words]).output

    assert f"Would set PHAROS_PORT in {place / 'pharos.env'}.\n" == said("PHAROS_PORT", "8124", "--dry-run")
    other = tmp_path_factory.mktemp("other")
    hold = "from pharos.infra.settings import Settings\nfrom pharos.ops.running import supervisor_lock\n"
    hold += "with supervisor_lock(Settings()):\n    print('held', flush=True)\n    input()"
    command = [sys.executable, "-c", hold]
    environment = {**os.environ, "PHAROS_LLM_MODEL": "theirs"}
    with subprocess.Popen(
        command, cwd=other, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"held\n"
        monkeypatch.setenv("PHAROS_PORT", "8125")
        port, model = said("PHAROS_PORT", "8124"), said("PHAROS_LLM_MODEL", "ours")
        running.kill()
    assert f"Set PHAROS_PORT in {place / 'pharos.env'}. It counts from the next start" in port
    assert "PHAROS_PORT is set in the environment, which counts more than the file: unset it." in port
    assert f"was started in {other} and reads {other / 'pharos.env'}, not this file" in port
    assert "The Pharos that runs has PHAROS_LLM_MODEL from its environment" in model
    assert "is set in the environment" not in model


def test_a_setting_that_cannot_be_read_can_be_mended(place: Path) -> None:
    (place / "pharos.env").write_text("PHAROS_PORT=noon\n")
    assert CliRunner().invoke(app, ["config", "set", "PHAROS_LOG_LEVEL", "DEBUG"]).exit_code == 0
    done = CliRunner().invoke(app, ["config", "set", "PHAROS_PORT", "8123"])
    assert done.exit_code == 0, done.output
    assert dotenv_values(place / "pharos.env") == {"PHAROS_LOG_LEVEL": "DEBUG", "PHAROS_PORT": "8123"}

"""The secret behind every token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_session_token
from pharos.identity.sign_in import open_session, sign_out
from pharos.identity.signing_keys import signing_key
from pharos.identity.tokens import SIGN_IN_AGAIN, issue_access_token
from pharos.infra.errors import Invalid
from pharos.infra.ids import new_id
from pharos.infra.settings import Settings
from pharos.runtime import Runtime


@pytest.mark.contract("ID-06", part="a secret that is short or a known default is refused")
@pytest.mark.parametrize(
    "secret",
    ["", "short", "x" * 31, "a" * 64, "changeme-changeme-changeme-change", "your-secret-key-goes-here-okay?"],
)
def test_a_secret_that_can_be_guessed_is_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(Invalid) as refusal:
        signing_key(Settings(_env_file=None, data_dir=tmp_path, secret_key=secret))
    assert refusal.value.code == "weak_secret_key"
    assert not secret or secret not in refusal.value.message


def test_without_one_a_secret_is_made_once_for_this_installation(tmp_path: Path) -> None:
    first = signing_key(Settings(_env_file=None, data_dir=tmp_path))
    assert signing_key(Settings(_env_file=None, data_dir=tmp_path)) == first
    assert len(first) == 64
    assert (tmp_path / "secrets" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["secret_key"]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: signing_key(settings), range(8)))
    assert len(keys) == 1


@pytest.mark.contract(
    "ID-06", part="bad tokens are answered alike; an expired one is told apart, so that clients refresh"
)
async def test_bad_tokens_are_answered_alike_and_an_expired_one_is_told_apart(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    assert member.user_id is not None

    def issue(**changed: object) -> str:
        settings = runtime.settings.model_copy(update=changed)
        return issue_access_token(settings, tenant_id=member.tenant_id, user_id=user_id, session_id=new_id())

    async def answer(token: str) -> tuple[int, dict[str, str]]:
        reply = await client.get("/projects", headers={"Authorization": f"Bearer {token}"})
        body = reply.json()
        return reply.status_code, {"error": body["error"], "message": body["message"]}

    user_id = member.user_id
    ended = await open_session(runtime, member)
    await sign_out(runtime, await find_by_session_token(runtime, ended.session_token))
    bad = [
        "nonsense",
        "a.b.c",
        issue(),  # of no session
        issue(secret_key=SecretStr("another secret that is as long as ours")),
        f"{issue()}x",
        ended.access_token,
    ]
    answers = [await answer(token) for token in bad]
    assert answers == [(401, {"error": "not_signed_in", "message": SIGN_IN_AGAIN})] * len(bad)
    status, body = await answer(issue(access_token_minutes=-1))
    assert (status, body["error"]) == (401, "token_expired")

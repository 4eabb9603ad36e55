"""Refresh tokens: one use each, a family a session, a grace for who races or lost the answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import func, select, update
from tests.make import PASSWORD

from pharos.identity.models import AuditEntry, RefreshToken, SecurityEvent, SignInSession
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_claims
from pharos.identity.refresh import GRACE_SECONDS, refresh
from pharos.identity.sign_in import Origin, open_session
from pharos.identity.tokens import read_access_token
from pharos.infra.errors import NotSignedIn
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

THIEF = Origin(ip="203.0.113.77", agent="a thief's browser")


async def first_token(runtime: Runtime, person: Principal) -> str:
    return (await open_session(runtime, person, holder="program")).refresh_token


async def end_grace(runtime: Runtime, person: Principal) -> None:
    """As if the tokens used so far had been used just longer ago than the grace lasts."""
    longer = timedelta(seconds=GRACE_SECONDS + 1)
    async with runtime.db.transaction(person.tenant_id) as session:
        await session.execute(update(RefreshToken).values(used_at=RefreshToken.used_at - longer))


async def events_of(runtime: Runtime, person: Principal) -> list[str]:
    async with runtime.db.transaction(person.tenant_id) as session:
        mine = select(SecurityEvent.event_type).where(SecurityEvent.user_id == person.user_id)
        return sorted((await session.execute(mine)).scalars())


@pytest.mark.contract("ID-10")
async def test_each_refresh_gives_the_next_token_and_stores_only_hashes(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    login = await client.post("/auth/login", json={"email": member.name, "password": PASSWORD})
    given = [login.json()["refreshToken"]]
    for _ in range(3):
        answer = await client.post("/auth/refresh", json={"refreshToken": given[-1]})
        assert answer.status_code == 200
        given.append(answer.json()["refreshToken"])
    bearer = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    assert (await client.get("/auth/session", headers=bearer)).json()["email"] == member.name
    async with runtime.db.transaction(member.tenant_id) as session:
        rows = (await session.execute(select(RefreshToken).order_by(RefreshToken.issued_at))).scalars().all()
    assert len(set(given)) == 4
    assert [row.used_at is None for row in rows] == [False, False, False, True]
    assert not {row.token_hash for row in rows} & set(given)


@pytest.mark.contract("ID-10", part="50 at once: one successor, no false alarm")
async def test_fifty_at_once_get_one_successor_and_nobody_is_thrown_out(runtime: Runtime, member: Principal) -> None:
    token = await first_token(runtime, member)
    answers = await asyncio.gather(*(refresh(runtime, token) for _ in range(50)))
    assert len({answer.refresh_token for answer in answers}) == 1
    async with runtime.db.transaction(member.tenant_id) as session:
        unused = select(func.count()).select_from(RefreshToken).where(RefreshToken.used_at.is_(None))
        assert (await session.execute(unused)).scalar_one() == 1
    assert await events_of(runtime, member) == []
    assert (await refresh(runtime, answers[0].refresh_token)).principal.user_id == member.user_id


@pytest.mark.contract("ID-10")
async def test_a_token_that_comes_back_after_the_grace_ends_the_whole_family(
    runtime: Runtime, member: Principal
) -> None:
    stolen = await first_token(runtime, member)
    latest = await refresh(runtime, stolen)
    await end_grace(runtime, member)
    with pytest.raises(NotSignedIn):
        await refresh(runtime, stolen, origin=THIEF)
    with pytest.raises(NotSignedIn):
        await refresh(runtime, latest.refresh_token)
    with pytest.raises(NotSignedIn):
        await find_by_claims(runtime, read_access_token(runtime.settings, latest.access_token))
    assert await events_of(runtime, member) == ["token_family_revoked", "token_reuse_detected"]
    async with runtime.db.transaction(member.tenant_id) as session:
        found = (await session.execute(select(SecurityEvent.ip, SecurityEvent.agent))).first()
        revoked = select(AuditEntry).where(AuditEntry.action == "session.revoked")
        assert (await session.execute(revoked)).scalar_one().actor == "pharos"
    assert found == ("203.0.113.0", THIEF.agent)


@pytest.mark.contract("ID-10", part="another browser is told of")
async def test_a_refresh_by_another_browser_is_told_once_and_goes_on(runtime: Runtime, member: Principal) -> None:
    mine, other = Origin(ip="203.0.113.9", agent="my browser 1.0"), Origin(ip="203.0.113.77", agent="b" * 500)
    token = (await open_session(runtime, member, holder="program", origin=mine)).refresh_token
    for origin, told in ((mine, []), (other, ["suspicious_refresh"]), (other, ["suspicious_refresh"])):
        token = (await refresh(runtime, token, origin=origin)).refresh_token
        assert await events_of(runtime, member) == told
    async with runtime.db.transaction(member.tenant_id) as session:
        (event,) = (await session.execute(select(SecurityEvent))).scalars()
    assert (event.severity, event.ip, event.detail) == ("medium", "203.0.113.0", {"before": "my browser 1.0"})


@pytest.mark.contract("ID-10", part="one family ends, not the person's others")
async def test_reuse_ends_one_session_only_and_is_told_once(runtime: Runtime, member: Principal) -> None:
    stolen, other = await first_token(runtime, member), await first_token(runtime, member)
    await refresh(runtime, stolen)
    await end_grace(runtime, member)
    for _ in range(3):
        with pytest.raises(NotSignedIn):
            await refresh(runtime, stolen)
    assert len(await events_of(runtime, member)) == 2
    assert (await refresh(runtime, other)).principal.user_id == member.user_id


@pytest.mark.contract("ID-10")
async def test_ending_all_sessions_ends_every_refresh_token(runtime: Runtime, member: Principal) -> None:
    tokens = [await first_token(runtime, member) for _ in range(2)]
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(revoked_at=func.now()))
    for token in tokens:
        with pytest.raises(NotSignedIn):
            await refresh(runtime, token)
    assert await events_of(runtime, member) == []


async def test_a_refresh_token_lives_as_long_as_is_set(runtime: Runtime, member: Principal) -> None:
    assert Settings(_env_file=None).refresh_token_days == 7
    late, early = await first_token(runtime, member), await first_token(runtime, member)
    for token, days, works in ((late, 7.01, False), (early, 6.99, True)):
        async with runtime.db.transaction(member.tenant_id) as session:
            unused = update(RefreshToken).where(RefreshToken.used_at.is_(None))
            await session.execute(unused.values(issued_at=func.now() - timedelta(days=days)))
        if works:
            assert await refresh(runtime, token)
        else:
            with pytest.raises(NotSignedIn):
                await refresh(runtime, token)


async def test_a_try_that_fails_uses_no_token_up(runtime: Runtime, member: Principal) -> None:
    token = await first_token(runtime, member)
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(expires_at=func.now()))
    with pytest.raises(NotSignedIn):
        await refresh(runtime, token)
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(expires_at=func.now() + timedelta(days=1)))
    assert await refresh(runtime, token)


@pytest.mark.parametrize(
    "token", ["", "nonsense", "phr_zz_x", f"phr_{'0' * 32}_x", "phs_" + "0" * 32 + "_x", "x" * 201]
)
async def test_a_strange_refresh_token_is_nobody(client: httpx.AsyncClient, token: str) -> None:
    answer = await client.post("/auth/refresh", json={"refreshToken": token})
    assert answer.status_code in {401, 422}

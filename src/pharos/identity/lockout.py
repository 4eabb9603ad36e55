"""Wrong passwords are counted; five in a row lock the account for five minutes, whatever process they came to."""

from __future__ import annotations

import math
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import LimitReached

MAX_FAILURES = 5
LOCK_MINUTES = 5

# The counter starts anew with a lock; a try during the lock neither counts nor prolongs it. Whoever knows an address
# can still lock it again every five minutes and keep its owner from the doors that ask for a password: the price of
# bounding guesses that come from many addresses. Open sessions go on, and links by mail open meanwhile.
COUNT_FAILURE = text(
    """
    update users set
        failed_sign_ins = case when failed_sign_ins + 1 >= :most then 0 else failed_sign_ins + 1 end,
        locked_until = case when failed_sign_ins + 1 >= :most then now() + make_interval(mins => :minutes) end
    where id = :user_id and (locked_until is null or locked_until <= now())
    returning locked_until is not null
    """
)
# Asked after the hash was compared: of many tries at once none passes that began before the lock and ends after it, and
# none with a password that was changed meanwhile. The time is taken behind a change that this waited for.
COUNT_SUCCESS = text(
    """
    update users set failed_sign_ins = 0, locked_until = null
    where id = :user_id and password_hash = :compared and disabled_at is null
        and (locked_until is null or locked_until <= now())
    returning clock_timestamp()
    """
)
LOCKED_FOR = text("select extract(epoch from locked_until - now()) from users where id = :user_id")
UNLOCK = text(
    """
    update users u set failed_sign_ins = 0, locked_until = null
    from (select id, locked_until > now() as was_locked from users where id = :user_id for update) as before
    where u.id = before.id
    returning coalesce(before.was_locked, false)
    """
)


async def count_failure(session: AsyncSession, user_id: UUID) -> bool:
    """Count a wrong password. True if it is the one that locks the account."""
    values = {"user_id": user_id, "most": MAX_FAILURES, "minutes": LOCK_MINUTES}
    return bool((await session.execute(COUNT_FAILURE, values)).scalar_one_or_none())


async def count_success(session: AsyncSession, user_id: UUID, *, compared: str | None) -> datetime | None:
    """Forget the wrong passwords before this right one, whose stored form is `compared`; returns when it was right.

    None if the account is locked or disabled, or has another password by now: then it is none.
    """
    return (await session.execute(COUNT_SUCCESS, {"user_id": user_id, "compared": compared})).scalar_one_or_none()


async def refuse_locked(session: AsyncSession, user_id: UUID) -> None:
    """Raise `LimitReached` (code "account_locked") while the account is locked; for nobody but its owner to hear."""
    seconds = (await session.execute(LOCKED_FOR, {"user_id": user_id})).scalar_one_or_none()
    if seconds is not None and seconds > 0:
        raise LimitReached(
            f"Too many wrong passwords. Try again in {math.ceil(seconds)} seconds.",
            code="account_locked",
            retry_after_seconds=float(seconds),
        )


async def unlock(session: AsyncSession, user_id: UUID) -> bool:
    """Let somebody in again before the time is over. True if they were locked out."""
    return bool((await session.execute(UNLOCK, {"user_id": user_id})).scalar_one_or_none())

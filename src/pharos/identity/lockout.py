"""Wrong passwords are counted; five in a row lock the account for five minutes, whatever process they came to."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

MAX_FAILURES = 5
LOCK_MINUTES = 5

# The counter starts anew with a lock. A try during the lock neither counts nor prolongs it: else anybody could keep
# anybody out for ever.
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


async def unlock(session: AsyncSession, user_id: UUID) -> bool:
    """Let somebody in again before the time is over. True if they were locked out."""
    return bool((await session.execute(UNLOCK, {"user_id": user_id})).scalar_one_or_none())

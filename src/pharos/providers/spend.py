"""What calls cost a tenant: one row a call, its budget of a month, and days that are unlike those before (AL-11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, literal, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import LimitReached
from pharos.infra.ids import TenantId, new_id
from pharos.infra.logs import get_logger
from pharos.providers.contract import Call, Candidate, ChatRequest, Usage
from pharos.providers.meters import CALL_SECONDS, CALLS, COST, FIRST_TOKEN_SECONDS, LATENCY, TOKENS
from pharos.providers.models import LlmCall, TenantModelSettings
from pharos.providers.prices import cost_micro

log = get_logger(__name__)

CHARACTERS_PER_TOKEN = 4
"""Of English text, by OpenAI's rule of thumb; for providers that do not count."""
SAYS_NOTHING = ("stopped", "provider_refused")
"""How calls end through whoever asks: they left, or the question was too long."""
ANOMALY_FACTOR = 3
"""A day that costs this many times the dearest of the seven before it is not the usual growth."""
ANOMALY_LEAST_MICRO = 1_000_000
"""Below a dollar a day nobody wants to be woken."""


@dataclass(frozen=True)
class Spend:
    """What a tenant spent, in micro-dollars: this UTC month, today, and the dearest of the seven days before.

    `calls` and `unpriced` count this month's; what an unpriced one cost is not known and not in the sums.
    """

    month_micro: int
    today_micro: int
    dearest_day_micro: int
    calls: int
    unpriced: int

    @property
    def is_anomalous(self) -> bool:
        return self.today_micro > max(self.dearest_day_micro * ANOMALY_FACTOR, ANOMALY_LEAST_MICRO)


@dataclass(frozen=True)
class SpendLine:
    """What one model of one provider took this month; `unpriced` calls are not in the sum."""

    provider: str
    model: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_micro: int
    unpriced: int


@dataclass(frozen=True)
class LastCall:
    """How a provider's last call of a tenant ended; `status` is "ok" or an error's code."""

    provider: str
    is_shared: bool
    at: datetime
    status: str


@dataclass(frozen=True)
class SharedSpend:
    """What was taken of one of the installation's providers this month; `unpriced` calls are not in the sum."""

    provider: str
    calls: int
    unpriced: int
    cost_micro: int

    def plus(self, other: SharedSpend) -> SharedSpend:
        return SharedSpend(
            self.provider,
            self.calls + other.calls,
            self.unpriced + other.unpriced,
            self.cost_micro + other.cost_micro,
        )


def estimate_usage(request: ChatRequest, answer_characters: int) -> Usage:
    """Tokens guessed from the text."""
    asked = sum(len(message.content) for message in request.messages)
    return Usage(asked // CHARACTERS_PER_TOKEN + 1, -(-answer_characters // CHARACTERS_PER_TOKEN), is_estimate=True)


def estimate_prompt(texts: Sequence[str]) -> Usage:
    """Tokens of texts that are only read, guessed from their length."""
    return Usage(sum(map(len, texts)) // CHARACTERS_PER_TOKEN + 1, 0, is_estimate=True)


def cost_of(candidate: Candidate, usage: Usage) -> int | None:
    """What a candidate takes in micro-dollars; None where nobody knows."""
    is_local = candidate.kind == "local"
    return cost_micro(usage, model=candidate.model, preset=candidate.preset, is_local=is_local, stated=candidate.price)


def price_call(candidate: Candidate, call: Call) -> None:
    """Put what the call took and cost into it and into the metrics."""
    usage = call.usage or Usage(0, 0)
    call.cost_micro = cost_of(candidate, usage)
    TOKENS.labels(candidate.label, _model_label(candidate), "prompt").inc(usage.prompt_tokens)
    TOKENS.labels(candidate.label, _model_label(candidate), "completion").inc(usage.completion_tokens)
    COST.labels(candidate.label, _model_label(candidate)).inc((call.cost_micro or 0) / 1_000_000)


def count_call(candidate: Candidate, call: Call, *, status: str) -> None:
    """Put how the call ended and how long it took into the metrics."""
    CALLS.labels(candidate.label, _model_label(candidate), status).inc()
    CALL_SECONDS.labels(candidate.label, _model_label(candidate), call.purpose).observe(call.seconds)
    LATENCY.labels(status, _model_label(candidate)).observe(call.seconds)
    if call.first_token_seconds is not None:
        FIRST_TOKEN_SECONDS.labels(candidate.label, _model_label(candidate)).observe(call.first_token_seconds)


def _model_label(candidate: Candidate) -> str:
    """A series for each name that somebody may invent would never end."""
    return candidate.model if candidate.is_listed else "other"


def record_call(session: AsyncSession, tenant_id: TenantId, candidate: Candidate, call: Call, *, status: str) -> None:
    """Keep one call of a candidate as a row, once."""
    usage = call.usage or Usage(0, 0)
    session.add(
        LlmCall(
            tenant_id=tenant_id,
            id=new_id(),
            provider=call.provider,
            is_shared=candidate.is_shared,
            model=call.model,
            purpose=call.purpose,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            is_estimate=usage.is_estimate,
            cost_micro=call.cost_micro,
            seconds=call.seconds,
            status=status,
        )
    )


async def read_spend(session: AsyncSession) -> Spend:
    """What the tenant of this transaction has spent."""
    day = func.date_trunc("day", LlmCall.at, "UTC")
    today = func.date_trunc("day", func.now(), "UTC")
    month = func.date_trunc("month", func.now(), "UTC")
    cost = func.coalesce(func.sum(LlmCall.cost_micro), literal(0))
    this_month = select(cost, func.count(), func.count() - func.count(LlmCall.cost_micro)).where(LlmCall.at >= month)
    month_micro, calls, unpriced = (await session.execute(this_month)).one()
    by_day = select(day.label("day"), (day == today).label("is_today"), cost.label("micro")).where(
        LlmCall.at >= today - text("interval '7 days'")
    )
    days = (await session.execute(by_day.group_by(day))).all()
    return Spend(
        month_micro=int(month_micro or 0),
        today_micro=sum(int(row.micro or 0) for row in days if row.is_today),
        dearest_day_micro=max((int(row.micro or 0) for row in days if not row.is_today), default=0),
        calls=int(calls),
        unpriced=int(unpriced),
    )


async def list_spend(session: AsyncSession) -> list[SpendLine]:
    """This UTC month by provider and model, the dearest first."""
    cost = func.coalesce(func.sum(LlmCall.cost_micro), literal(0))
    rows = await session.execute(
        select(
            LlmCall.provider,
            LlmCall.model,
            func.count(),
            func.count().filter(LlmCall.status.not_in(("ok", "stopped"))),
            func.coalesce(func.sum(LlmCall.prompt_tokens), 0),
            func.coalesce(func.sum(LlmCall.completion_tokens), 0),
            cost,
            func.count() - func.count(LlmCall.cost_micro),
        )
        .where(LlmCall.at >= func.date_trunc("month", func.now(), "UTC"))
        .group_by(LlmCall.provider, LlmCall.model)
        .order_by(cost.desc(), LlmCall.provider, LlmCall.model)
    )
    return [SpendLine(row[0], row[1], *(int(value or 0) for value in row[2:])) for row in rows]


async def list_last_calls(session: AsyncSession) -> list[LastCall]:
    """The last call of each provider in seven days that says something about it: no stopped or too long one does."""
    rows = await session.execute(
        select(LlmCall.provider, LlmCall.is_shared, func.timezone("UTC", LlmCall.at), LlmCall.status)
        .ext(distinct_on(LlmCall.provider, LlmCall.is_shared))
        .where(LlmCall.at >= func.now() - text("interval '7 days'"), LlmCall.status.not_in(SAYS_NOTHING))
        .order_by(LlmCall.provider, LlmCall.is_shared, LlmCall.at.desc())
    )
    return [LastCall(*row) for row in rows]


async def list_shared_spend(session: AsyncSession) -> list[SharedSpend]:
    """What the tenant of this transaction took of the installation's providers this UTC month, by provider."""
    cost = func.coalesce(func.sum(LlmCall.cost_micro), literal(0))
    rows = await session.execute(
        select(LlmCall.provider, func.count(), func.count() - func.count(LlmCall.cost_micro), cost)
        .where(LlmCall.is_shared, LlmCall.at >= func.date_trunc("month", func.now(), "UTC"))
        .group_by(LlmCall.provider)
        .order_by(LlmCall.provider)
    )
    return [SharedSpend(row[0], *(int(value or 0) for value in row[1:])) for row in rows]


async def find_overspent(session: AsyncSession, budget: TenantModelSettings) -> LimitReached | None:
    """The error to raise (`spend_budget_used_up`) when the month's budget is spent; logs it when that is near.

    Calls that run at the same time are not in the sum yet: the last ones can go above the budget.
    """
    if budget.budget_stop_micro is None and budget.budget_warn_micro is None:
        return None
    month = func.date_trunc("month", func.now(), "UTC")
    spent_query = select(func.coalesce(func.sum(LlmCall.cost_micro), literal(0))).where(LlmCall.at >= month)
    spent = int((await session.execute(spent_query)).scalar_one() or 0)
    if budget.budget_stop_micro is not None and spent >= budget.budget_stop_micro:
        return LimitReached(
            f"This month's budget for models is spent: {dollars(spent)} of {dollars(budget.budget_stop_micro)}. "
            "An administrator raises it, or it goes on next month.",
            code="spend_budget_used_up",
        )
    if budget.budget_warn_micro is not None and spent >= budget.budget_warn_micro:
        log.warning("budget.nearly_spent", spent_micro=spent, warn_micro=budget.budget_warn_micro)
    return None


def dollars(micro: int) -> str:
    """An amount for a person.

    >>> dollars(12_345_678), dollars(1_200), dollars(2)
    ('$12.35', '$0.0012', '< $0.0001')
    """
    if 0 < micro < 100:
        return "< $0.0001"
    return f"${micro / 1_000_000:.2f}" if micro >= 10_000 or micro == 0 else f"${micro / 1_000_000:.4f}"

"""Rows of providers: where models are, what a tenant allows, what was asked and what it cost."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKeyConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id


def _tenant_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE")


class Provider(Table):
    """A server of models. Its key lies in the vault (kind `provider_key`, name: the id); here are prefix and length.

    `is_shared` counts in the default tenant only: every tenant that allows it may use such a provider. Each of the two
    scopes has its own default, for different people manage them (C-35). The prices are micro-dollars for a million
    tokens of question and of answer, whatever the model; both null: the list's.
    """

    __tablename__ = "providers"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        CheckConstraint("kind in ('openai', 'anthropic', 'local')", name="kind"),
        CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
        CheckConstraint(
            "(input_price_micro is null) = (output_price_micro is null)"
            " and input_price_micro >= 0 and output_price_micro >= 0",
            name="price",
        ),
        _tenant_key(),
        Index("uq_providers_default", "tenant_id", "is_shared", unique=True, postgresql_where=sql("is_default")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    base_url: Mapped[str] = mapped_column(Text)
    models: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    is_default: Mapped[bool] = mapped_column(server_default="false")
    is_shared: Mapped[bool] = mapped_column(server_default="false")
    is_enabled: Mapped[bool] = mapped_column(server_default="true")
    preset: Mapped[str | None] = mapped_column(Text)
    requests_per_minute: Mapped[int | None]
    status_page: Mapped[str | None] = mapped_column(Text)
    input_price_micro: Mapped[int | None] = mapped_column(BigInteger)
    output_price_micro: Mapped[int | None] = mapped_column(BigInteger)
    key_prefix: Mapped[str] = mapped_column(Text, server_default="")
    key_length: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TenantModelSettings(Table):
    """What a tenant allows; without a row: everything, and no bound. Budgets are micro-dollars a calendar month."""

    __tablename__ = "tenant_model_settings"
    __table_args__ = (_tenant_key(),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    llm_enabled: Mapped[bool] = mapped_column(server_default="true")
    use_shared_providers: Mapped[bool] = mapped_column(server_default="true")
    budget_warn_micro: Mapped[int | None] = mapped_column(BigInteger)
    budget_stop_micro: Mapped[int | None] = mapped_column(BigInteger)


class LlmCall(Table):
    """One call of a provider: the truth for spend. `cost_micro` is null where no price is known.

    `is_estimate`: the provider did not count and the tokens were guessed from the text. `is_shared`: the installation's
    owner pays.
    """

    __tablename__ = "llm_calls"
    __table_args__ = (
        _tenant_key(),
        Index("ix_llm_calls_at", "tenant_id", "at", postgresql_include=["cost_micro"]),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    provider: Mapped[str] = mapped_column(Text)
    is_shared: Mapped[bool] = mapped_column(server_default="false")
    model: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    is_estimate: Mapped[bool] = mapped_column(server_default="false")
    cost_micro: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(Text)


class ProviderState(Table):
    """Breaker and request budget of one provider, shared by all processes. Of no tenant, and of no secret.

    `trial_ends`: when the leases end of the calls that try a provider again. `window_used` may exceed `window_limit`:
    what is above has a place in a window to come.
    """

    __tablename__ = "provider_states"
    __table_args__ = (CheckConstraint("state in ('closed', 'open', 'half_open')", name="state"),)

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    label: Mapped[str] = mapped_column(Text, server_default="")
    state: Mapped[str] = mapped_column(Text, server_default="closed")
    failures: Mapped[int] = mapped_column(server_default="0")
    successes: Mapped[int] = mapped_column(server_default="0")
    opened_at: Mapped[datetime | None]
    trial_ends: Mapped[list[datetime]] = mapped_column(ARRAY(TIMESTAMP(timezone=True)), server_default="{}")
    paused_until: Mapped[datetime | None]
    window_began_at: Mapped[datetime | None]
    window_used: Mapped[int] = mapped_column(server_default="0")
    window_limit: Mapped[int | None]

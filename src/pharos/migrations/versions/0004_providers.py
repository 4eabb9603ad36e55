"""Providers of models, what a tenant allows and pays, what was asked of them, and how each of them fares.

`provider_states` is of no tenant: a shared provider is one breaker and one budget for all of them.

Revision ID: 0004
Phase: expand
"""

from alembic import op

from pharos.migrations.fence import fence

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table providers (
        tenant_id uuid not null,
        id uuid not null,
        name text not null,
        kind text not null,
        base_url text not null,
        models text[] default '{}' not null,
        is_default boolean default 'false' not null,
        is_shared boolean default 'false' not null,
        is_enabled boolean default 'true' not null,
        preset text,
        requests_per_minute integer,
        status_page text,
        input_price_micro bigint,
        output_price_micro bigint,
        key_prefix text default '' not null,
        key_length integer default '0' not null,
        created_at timestamptz default now() not null,
        updated_at timestamptz default now() not null,
        constraint pk_providers primary key (tenant_id, id),
        constraint uq_providers_tenant_id_name unique (tenant_id, name),
        constraint ck_providers_kind check (kind in ('openai', 'anthropic', 'local')),
        constraint ck_providers_requests_per_minute check (requests_per_minute > 0),
        constraint ck_providers_price check (
            (input_price_micro is null) = (output_price_micro is null)
            and input_price_micro >= 0 and output_price_micro >= 0
        ),
        constraint fk_providers_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create unique index uq_providers_default on providers (tenant_id, is_shared) where is_default
    """,
    """
    create table tenant_model_settings (
        tenant_id uuid not null,
        llm_enabled boolean default 'true' not null,
        use_shared_providers boolean default 'true' not null,
        budget_warn_micro bigint,
        budget_stop_micro bigint,
        constraint pk_tenant_model_settings primary key (tenant_id),
        constraint fk_tenant_model_settings_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    )
    """,
    """
    create table llm_calls (
        tenant_id uuid not null,
        id uuid not null,
        at timestamptz default now() not null,
        provider text not null,
        is_shared boolean default 'false' not null,
        model text not null,
        purpose text not null,
        prompt_tokens integer default '0' not null,
        completion_tokens integer default '0' not null,
        is_estimate boolean default 'false' not null,
        cost_micro bigint,
        seconds double precision default '0' not null,
        status text not null,
        constraint pk_llm_calls primary key (tenant_id, id),
        constraint fk_llm_calls_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create index ix_llm_calls_at on llm_calls (tenant_id, at) include (cost_micro)
    """,
    """
    create table provider_states (
        key text not null,
        label text default '' not null,
        state text default 'closed' not null,
        failures integer default '0' not null,
        successes integer default '0' not null,
        opened_at timestamptz,
        trial_ends timestamptz[] default '{}' not null,
        paused_until timestamptz,
        window_began_at timestamptz,
        window_used integer default '0' not null,
        window_limit integer,
        constraint pk_provider_states primary key (key),
        constraint ck_provider_states_state check (state in ('closed', 'open', 'half_open'))
    )
    """,
)
FENCED = ("providers", "tenant_model_settings", "llm_calls")


def upgrade() -> None:
    for statements in TABLES:
        op.execute(statements)
    for table in FENCED:
        fence(table)
    # What a project asks of the resolver: `provider/model`, a bare model, or nothing.
    op.execute("alter table projects add column model text")


def downgrade() -> None:
    op.execute("alter table projects drop column model")
    for statements in reversed(TABLES):
        op.execute(f"drop table {statements.split()[2]} cascade")

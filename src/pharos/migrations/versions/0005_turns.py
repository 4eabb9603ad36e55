"""Turns that belong to the server, what they have said so far, and what people think of answers.

`answer_cache` is of no tenant: its one row says since when cached answers count.

Revision ID: 0005
Phase: expand
"""

from alembic import op

from pharos.migrations.fence import fence

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table turns (
        tenant_id uuid not null,
        id uuid not null,
        conversation_id uuid not null,
        question_id uuid not null,
        state text default 'running' not null,
        wish text,
        owner text not null,
        heartbeat_at timestamptz default now() not null,
        is_stop_asked boolean default 'false' not null,
        created_at timestamptz default now() not null,
        ended_at timestamptz,
        constraint pk_turns primary key (tenant_id, id),
        constraint ck_turns_state check (state in ('running', 'done', 'failed', 'stopped', 'interrupted')),
        constraint fk_turns_tenant_id_conversations foreign key (tenant_id, conversation_id)
            references conversations (tenant_id, id) on delete cascade,
        constraint fk_turns_tenant_id_messages foreign key (tenant_id, question_id)
            references messages (tenant_id, id) on delete cascade
    );
    create index ix_turns_conversation_id on turns (tenant_id, conversation_id);
    create index ix_turns_question_id on turns (tenant_id, question_id);
    create unique index uq_turns_running_question on turns (tenant_id, question_id) where state = 'running';
    create index ix_turns_running on turns (tenant_id, heartbeat_at) where state = 'running'
    """,
    """
    create table turn_events (
        tenant_id uuid not null,
        turn_id uuid not null,
        seq integer not null,
        name text not null,
        data jsonb not null,
        constraint pk_turn_events primary key (tenant_id, turn_id, seq),
        constraint fk_turn_events_tenant_id_turns foreign key (tenant_id, turn_id)
            references turns (tenant_id, id) on delete cascade
    )
    """,
    """
    create table feedback (
        tenant_id uuid not null,
        id uuid not null,
        message_id uuid not null,
        given_by text not null,
        rating text not null,
        comment text default '' not null,
        given_at timestamptz default now() not null,
        constraint pk_feedback primary key (tenant_id, id),
        constraint uq_feedback_tenant_id_message_id_given_by unique (tenant_id, message_id, given_by),
        constraint ck_feedback_rating check (rating in ('up', 'down')),
        constraint fk_feedback_tenant_id_messages foreign key (tenant_id, message_id)
            references messages (tenant_id, id) on delete cascade
    )
    """,
    """
    create table answer_cache (
        singleton boolean default true not null,
        cleared_at timestamptz default now() not null,
        constraint pk_answer_cache primary key (singleton),
        constraint ck_answer_cache_one_row check (singleton)
    )
    """,
)
FENCED = ("turns", "turn_events", "feedback")


def upgrade() -> None:
    for statements in TABLES:
        op.execute(statements)
    for table in FENCED:
        fence(table)
    op.execute("insert into answer_cache default values")
    op.execute(
        "alter table messages add column unsupported integer[] default '{}' not null, add column made_by jsonb, "
        "add column is_replaced boolean default 'false' not null"
    )


def downgrade() -> None:
    op.execute("alter table messages drop column is_replaced, drop column made_by, drop column unsupported")
    for statements in reversed(TABLES):
        op.execute(f"drop table {statements.split()[2]} cascade")

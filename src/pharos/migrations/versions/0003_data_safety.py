"""State of backups and drills, the operation that runs now, and leases that keep bytes from the sweep.

Of no tenant: they are about the whole installation.

Revision ID: 0003
Phase: expand
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table backups (
        id uuid not null,
        name text not null,
        made_at timestamptz default now() not null,
        state text not null,
        bytes bigint default '0' not null,
        documents bigint default '0' not null,
        seconds double precision default '0' not null,
        verified_at timestamptz,
        offsite_at timestamptz,
        error text,
        error_code text,
        constraint pk_backups primary key (id),
        constraint uq_backups_name unique (name),
        constraint ck_backups_state check (state in ('failed', 'written', 'verified', 'offsite'))
    )
    """,
    """
    create table drills (
        id uuid not null,
        name text not null,
        backup_name text default '' not null,
        started_at timestamptz default now() not null,
        seconds double precision default '0' not null,
        passed boolean default 'false' not null,
        by text default '' not null,
        report text default '' not null,
        checks jsonb default '[]'::jsonb not null,
        constraint pk_drills primary key (id)
    );
    create index ix_drills_started_at on drills (started_at)
    """,
    # At most one row: whoever holds the lock replaces what a killed holder left.
    """
    create table operations (
        singleton boolean default true not null,
        what text not null,
        host text not null,
        pid integer not null,
        started_at timestamptz default now() not null,
        constraint pk_operations primary key (singleton),
        constraint ck_operations_one_row check (singleton)
    )
    """,
    """
    create table blob_leases (
        id uuid not null,
        reason text not null,
        since timestamptz default now() not null,
        until timestamptz not null,
        constraint pk_blob_leases primary key (id)
    )
    """,
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    for statements in reversed(TABLES):
        op.execute(f"drop table {statements.split()[2]} cascade")

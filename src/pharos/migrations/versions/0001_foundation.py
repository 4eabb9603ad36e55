"""The first schema: tenants and people, projects and access, documents and passages, conversations, the queue.

Revision ID: 0001
Phase: expand
"""

from alembic import op
from procrastinate.schema import SchemaManager

from pharos.migrations.fence import fence, make_append_only

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    create table bootstrap_state (
        singleton boolean default true not null,
        is_initialized boolean default false not null,
        setup_token_hash text,
        constraint pk_bootstrap_state primary key (singleton),
        constraint ck_bootstrap_state_one_row check (singleton)
    )
    """,
    """
    create table tenants (
        id uuid not null,
        slug text not null,
        name text not null,
        created_at timestamptz default now() not null,
        constraint pk_tenants primary key (id),
        constraint uq_tenants_slug unique (slug)
    )
    """,
    """
    create table users (
        id uuid not null,
        email text not null,
        name text not null,
        password_hash text,
        disabled_at timestamptz,
        created_at timestamptz default now() not null,
        constraint pk_users primary key (id),
        constraint uq_users_email unique (email)
    )
    """,
    """
    create table vector_spaces (
        id uuid not null,
        model text not null,
        dimension integer not null,
        table_name text not null,
        state text not null,
        created_at timestamptz default now() not null,
        constraint pk_vector_spaces primary key (id),
        constraint ck_vector_spaces_state check (state in ('building', 'live', 'retired')),
        constraint uq_vector_spaces_table_name unique (table_name)
    )
    """,
    """
    create table audit_log (
        tenant_id uuid not null,
        id uuid not null,
        at timestamptz default now() not null,
        actor text not null,
        action text not null,
        subject text not null,
        detail jsonb default '{}'::jsonb not null,
        constraint pk_audit_log primary key (tenant_id, id),
        constraint fk_audit_log_tenant_id_tenants foreign key (tenant_id)
            references tenants (id)
    );
    create index ix_audit_log_at ON audit_log (tenant_id, at)
    """,
    """
    create table memberships (
        tenant_id uuid not null,
        user_id uuid not null,
        platform_role text default 'none' not null,
        org_position text default 'member' not null,
        created_at timestamptz default now() not null,
        constraint pk_memberships primary key (tenant_id, user_id),
        constraint ck_memberships_platform_role check (platform_role in ('none', 'admin', 'engineer', 'superadmin')),
        constraint ck_memberships_org_position check (org_position in ('member', 'manager', 'ceo')),
        constraint fk_memberships_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_memberships_user_id_users foreign key (user_id)
            references users (id) on delete cascade
    );
    create index ix_memberships_user_id ON memberships (user_id);
    create unique index uq_memberships_ceo ON memberships (tenant_id) where org_position = 'ceo';
    create unique index uq_memberships_superadmin ON memberships (tenant_id) where platform_role = 'superadmin'
    """,
    """
    create table projects (
        tenant_id uuid not null,
        id uuid not null,
        name text not null,
        owner_id uuid,
        is_private boolean default 'false' not null,
        baseline_tier text default 'use' not null,
        is_handbook boolean default 'false' not null,
        instructions text default '' not null,
        passage_count integer default '0' not null,
        created_at timestamptz default now() not null,
        constraint pk_projects primary key (tenant_id, id),
        constraint ck_projects_baseline_tier check (baseline_tier in ('use', 'edit', 'full')),
        constraint fk_projects_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create unique index uq_projects_name ON projects (tenant_id, name)
    """,
    """
    create table sessions (
        tenant_id uuid not null,
        id uuid not null,
        user_id uuid not null,
        token_hash text not null,
        created_at timestamptz default now() not null,
        expires_at timestamptz not null,
        revoked_at timestamptz,
        constraint pk_sessions primary key (tenant_id, id),
        constraint uq_sessions_tenant_id_token_hash unique (tenant_id, token_hash),
        constraint fk_sessions_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_sessions_user_id_users foreign key (user_id)
            references users (id) on delete cascade
    );
    create index ix_sessions_user_id ON sessions (tenant_id, user_id)
    """,
    """
    create table conversations (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        user_id uuid,
        title text not null,
        created_at timestamptz default now() not null,
        constraint pk_conversations primary key (tenant_id, id),
        constraint fk_conversations_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade
    );
    create index ix_conversations_user_id ON conversations (tenant_id, project_id, user_id, created_at)
    """,
    """
    create table documents (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        name text not null,
        sha256 text not null,
        size_bytes bigint not null,
        media_type text not null,
        status text default 'pending' not null,
        reason text,
        warning text,
        page_count integer,
        passage_count integer default '0' not null,
        language text,
        epoch integer default '0' not null,
        created_at timestamptz default now() not null,
        updated_at timestamptz default now() not null,
        constraint pk_documents primary key (tenant_id, id),
        constraint fk_documents_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade,
        constraint ck_documents_status check (status in ('pending', 'processing', 'indexed', 'failed'))
    );
    create index ix_documents_name ON documents (tenant_id, project_id, name);
    create index ix_documents_unfinished ON documents (updated_at) where status in ('pending', 'processing');
    create unique index uq_documents_bytes ON documents (tenant_id, project_id, sha256)
    """,
    """
    create table hidden_projects (
        tenant_id uuid not null,
        project_id uuid not null,
        user_id uuid not null,
        constraint pk_hidden_projects primary key (tenant_id, project_id, user_id),
        constraint fk_hidden_projects_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade
    )
    """,
    """
    create table lexicon (
        tenant_id uuid not null,
        project_id uuid not null,
        term integer not null,
        passages integer not null,
        constraint pk_lexicon primary key (tenant_id, project_id, term),
        constraint fk_lexicon_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade
    ) with (fillfactor = 70)
    """,
    """
    create table project_grants (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        grantee_kind text not null,
        grantee_id uuid not null,
        tier text not null,
        expires_at timestamptz,
        created_at timestamptz default now() not null,
        constraint pk_project_grants primary key (tenant_id, id),
        constraint fk_project_grants_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade,
        constraint ck_project_grants_tier check (tier in ('use', 'edit', 'full')),
        constraint ck_project_grants_grantee_kind check (grantee_kind in ('user', 'group', 'department'))
    );
    create unique index uq_project_grants_grantee ON project_grants (tenant_id, project_id, grantee_kind, grantee_id)
    """,
    """
    create table project_members (
        tenant_id uuid not null,
        project_id uuid not null,
        user_id uuid not null,
        tier text not null,
        created_at timestamptz default now() not null,
        constraint pk_project_members primary key (tenant_id, project_id, user_id),
        constraint fk_project_members_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade,
        constraint ck_project_members_tier check (tier in ('use', 'edit', 'full'))
    )
    """,
    """
    create table project_memories (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        body text not null,
        created_at timestamptz default now() not null,
        constraint pk_project_memories primary key (tenant_id, id),
        constraint fk_project_memories_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade
    );
    create index ix_project_memories_project_id ON project_memories (tenant_id, project_id)
    """,
    """
    create table document_texts (
        tenant_id uuid not null,
        document_id uuid not null,
        body text not null,
        page_starts integer[] not null,
        constraint pk_document_texts primary key (tenant_id, document_id),
        constraint fk_document_texts_tenant_id_documents foreign key (tenant_id, document_id)
            references documents (tenant_id, id) on delete cascade
    )
    """,
    """
    create table messages (
        tenant_id uuid not null,
        id uuid not null,
        conversation_id uuid not null,
        role text not null,
        body text not null,
        mode text,
        grounded boolean,
        confidence float,
        created_at timestamptz default now() not null,
        constraint pk_messages primary key (tenant_id, id),
        constraint fk_messages_tenant_id_conversations foreign key (tenant_id, conversation_id)
            references conversations (tenant_id, id) on delete cascade,
        constraint ck_messages_role check (role in ('user', 'assistant'))
    );
    create index ix_messages_conversation_id ON messages (tenant_id, conversation_id, id)
    """,
    """
    create table passages (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        document_id uuid not null,
        ordinal integer not null,
        page integer,
        start_char integer not null,
        end_char integer not null,
        heading text default '' not null,
        text text not null,
        constraint pk_passages primary key (tenant_id, id),
        constraint fk_passages_tenant_id_documents foreign key (tenant_id, document_id)
            references documents (tenant_id, id) on delete cascade
    );
    create unique index ix_passages_document_id ON passages (tenant_id, document_id, ordinal)
    """,
    """
    create table message_sources (
        tenant_id uuid not null,
        message_id uuid not null,
        position integer not null,
        document_id uuid not null,
        document_name text not null,
        page integer,
        start_char integer not null,
        end_char integer not null,
        text text not null,
        score float not null,
        constraint pk_message_sources primary key (tenant_id, message_id, position),
        constraint fk_message_sources_tenant_id_messages foreign key (tenant_id, message_id)
            references messages (tenant_id, id) on delete cascade
    );
    create index ix_message_sources_document_id ON message_sources (tenant_id, document_id)
    """,
    """
    create table passage_terms (
        tenant_id uuid not null,
        passage_id uuid not null,
        project_id uuid not null,
        terms sparsevec(1000000000) not null,
        constraint pk_passage_terms primary key (tenant_id, passage_id),
        constraint fk_passage_terms_tenant_id_passages foreign key (tenant_id, passage_id)
            references passages (tenant_id, id) on delete cascade
    );
    create index ix_passage_terms_project_id ON passage_terms (tenant_id, project_id)
    """,
    """
    create table passage_vectors_minilm_l6_v2 (
        tenant_id uuid not null,
        passage_id uuid not null,
        project_id uuid not null,
        embedding halfvec(384) not null,
        constraint pk_passage_vectors_minilm_l6_v2 primary key (tenant_id, passage_id),
        constraint fk_passage_vectors_minilm_l6_v2_tenant_id_passages foreign key (tenant_id, passage_id)
            references passages (tenant_id, id) on delete cascade
    );
    create index ix_passage_vectors_minilm_l6_v2_hnsw ON passage_vectors_minilm_l6_v2
        using hnsw (embedding halfvec_cosine_ops) with (m = 16, ef_construction = 64);
    create index ix_passage_vectors_minilm_l6_v2_project_id ON passage_vectors_minilm_l6_v2 (tenant_id, project_id)
    """,
)

FENCED = (
    "audit_log",
    "memberships",
    "projects",
    "sessions",
    "conversations",
    "documents",
    "hidden_projects",
    "lexicon",
    "project_grants",
    "project_members",
    "project_memories",
    "document_texts",
    "messages",
    "passages",
    "message_sources",
    "passage_terms",
    "passage_vectors_minilm_l6_v2",
)

# Read before a tenant is known: where may this person go? The sign-in names the person, not the tenant.
OWN_MEMBERSHIPS = """
    create policy own_memberships on memberships for select
        using (user_id = nullif(current_setting('pharos.user_id', true), '')::uuid)
    """

FIRST_ROWS = """
    insert into bootstrap_state default values;
    insert into vector_spaces (id, model, dimension, table_name, state)
        values (gen_random_uuid(), 'minilm-l6-v2', 384, 'passage_vectors_minilm_l6_v2', 'live')
    """

DROP_QUEUE = """
    do $$
    declare thing text;
    begin
        for thing in
            select oid::regclass::text from pg_class where relname like 'procrastinate\\_%' and relkind = 'r'
        loop
            execute 'drop table ' || thing || ' cascade';
        end loop;
        for thing in select oid::regprocedure::text from pg_proc where proname like 'procrastinate\\_%' loop
            execute 'drop function ' || thing || ' cascade';
        end loop;
        for thing in
            select oid::regtype::text from pg_type where typname like 'procrastinate\\_%' and typtype in ('e', 'c')
        loop
            execute 'drop type if exists ' || thing || ' cascade';
        end loop;
    end $$
    """


def upgrade() -> None:
    for statements in TABLES:
        op.execute(statements)
    for table in FENCED:
        fence(table)
    op.execute(OWN_MEMBERSHIPS)
    make_append_only("audit_log")
    op.execute(FIRST_ROWS)
    # The queue's schema belongs to its library, which ships it; the version is pinned by the lock file.
    op.get_bind().exec_driver_sql(SchemaManager.get_schema().replace("%", "%%"))


def downgrade() -> None:
    for statements in reversed(TABLES):
        table = statements.split()[2]
        op.execute(f"drop table {table} cascade")
    op.execute(DROP_QUEUE)

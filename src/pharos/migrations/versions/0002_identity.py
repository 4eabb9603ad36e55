"""Every door, groups and departments, shares, the vault, limits, sealed audit, mail; degraded answers are kept as such.

Revision ID: 0002
Phase: expand
"""

from alembic import op

from pharos.migrations.fence import fence, make_append_only

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = (
    "alter table messages add column degraded boolean",
    "alter table users add column username text",
    "alter table users add column must_change_password boolean default 'false' not null",
    "alter table users add column failed_sign_ins integer default '0' not null",
    "alter table users add column locked_until timestamptz",
    "alter table users add column sessions_valid_from timestamptz",
    "alter table memberships add column department_id uuid",
    "alter table memberships add column disabled_at timestamptz",
    "alter table sessions alter column token_hash drop not null",
    "alter table sessions add column door text default 'password' not null",
    "alter table sessions add column agent text default '' not null",
    "alter table sessions add column ip text default '' not null",
    "alter table sessions add column last_seen_at timestamptz default now() not null",
    "alter table sessions add column proved_at timestamptz default now() not null",
    "alter table sessions add column parent_tenant_id uuid",
    "alter table sessions add column parent_session_id uuid",
    "alter table conversations add column share_token_id uuid",
    "alter table project_grants add column granted_by text default '' not null",
    "alter table users add constraint uq_users_username unique (username)",
)

TABLES = (
    """
    create table departments (
        tenant_id uuid not null,
        id uuid not null,
        name text not null,
        created_at timestamptz default now() not null,
        constraint pk_departments primary key (tenant_id, id),
        constraint uq_departments_tenant_id_name unique (tenant_id, name),
        constraint fk_departments_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    )
    """,
    """
    create table groups (
        tenant_id uuid not null,
        id uuid not null,
        name text not null,
        department_id uuid,
        created_at timestamptz default now() not null,
        constraint pk_groups primary key (tenant_id, id),
        constraint uq_groups_tenant_id_name unique (tenant_id, name),
        constraint fk_groups_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_groups_tenant_id_departments foreign key (tenant_id, department_id)
            references departments (tenant_id, id) on delete set null (department_id)
    )
    """,
    """
    create table group_members (
        tenant_id uuid not null,
        group_id uuid not null,
        user_id uuid not null,
        created_at timestamptz default now() not null,
        constraint pk_group_members primary key (tenant_id, group_id, user_id),
        constraint fk_group_members_tenant_id_groups foreign key (tenant_id, group_id)
            references groups (tenant_id, id) on delete cascade,
        constraint fk_group_members_tenant_id_memberships foreign key (tenant_id, user_id)
            references memberships (tenant_id, user_id) on delete cascade
    );
    create index ix_group_members_user_id on group_members (tenant_id, user_id)
    """,
    """
    create table share_requests (
        tenant_id uuid not null,
        id uuid not null,
        project_id uuid not null,
        conversation_id uuid not null,
        requested_by uuid not null,
        message text default '' not null,
        state text default 'pending' not null,
        decided_by text,
        decided_at timestamptz,
        created_at timestamptz default now() not null,
        constraint pk_share_requests primary key (tenant_id, id),
        constraint ck_share_requests_state check (state in ('pending', 'approved', 'rejected')),
        constraint fk_share_requests_tenant_id_projects foreign key (tenant_id, project_id)
            references projects (tenant_id, id) on delete cascade
    );
    create index ix_share_requests_state on share_requests (tenant_id, state, created_at);
    create unique index uq_share_requests_pending on share_requests (tenant_id, conversation_id)
        where state = 'pending'
    """,
    """
    create table share_tokens (
        tenant_id uuid not null,
        id uuid not null,
        request_id uuid not null,
        project_id uuid not null,
        conversation_id uuid not null,
        token_hash text not null,
        uses integer default '0' not null,
        expires_at timestamptz not null,
        revoked_at timestamptz,
        created_at timestamptz default now() not null,
        constraint pk_share_tokens primary key (tenant_id, id),
        constraint uq_share_tokens_tenant_id_token_hash unique (tenant_id, token_hash),
        constraint fk_share_tokens_tenant_id_share_requests foreign key (tenant_id, request_id)
            references share_requests (tenant_id, id) on delete cascade
    )
    """,
    """
    create table refresh_tokens (
        tenant_id uuid not null,
        token_hash text not null,
        session_id uuid not null,
        issued_at timestamptz default now() not null,
        used_at timestamptz,
        constraint pk_refresh_tokens primary key (tenant_id, token_hash),
        constraint fk_refresh_tokens_tenant_id_sessions foreign key (tenant_id, session_id)
            references sessions (tenant_id, id) on delete cascade
    );
    create index ix_refresh_tokens_session_id on refresh_tokens (tenant_id, session_id)
    """,
    """
    create table api_keys (
        tenant_id uuid not null,
        id uuid not null,
        user_id uuid,
        name text not null,
        prefix text not null,
        key_hash text not null,
        scopes text[] not null,
        created_by text not null,
        created_by_id uuid,
        created_at timestamptz default now() not null,
        expires_at timestamptz,
        last_used_at timestamptz,
        revoked_at timestamptz,
        constraint pk_api_keys primary key (tenant_id, id),
        constraint uq_api_keys_tenant_id_key_hash unique (tenant_id, key_hash),
        constraint fk_api_keys_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_api_keys_user_id_users foreign key (user_id)
            references users (id) on delete cascade
    )
    """,
    """
    create table one_time_tokens (
        tenant_id uuid not null,
        id uuid not null,
        purpose text not null,
        email text not null,
        user_id uuid,
        token_hash text not null,
        detail jsonb default '{}'::jsonb not null,
        created_at timestamptz default now() not null,
        expires_at timestamptz not null,
        used_at timestamptz,
        constraint pk_one_time_tokens primary key (tenant_id, id),
        constraint uq_one_time_tokens_tenant_id_token_hash unique (tenant_id, token_hash),
        constraint ck_one_time_tokens_purpose check
            (purpose in ('magic_link', 'password_reset', 'invitation', 'email_change')),
        constraint fk_one_time_tokens_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_one_time_tokens_user_id_users foreign key (user_id)
            references users (id) on delete cascade
    );
    create index ix_one_time_tokens_email on one_time_tokens (tenant_id, purpose, email)
    """,
    """
    create table security_events (
        tenant_id uuid not null,
        id uuid not null,
        event_type text not null,
        severity text not null,
        user_id uuid,
        subject text default '' not null,
        ip text default '' not null,
        agent text default '' not null,
        detail jsonb default '{}'::jsonb not null,
        created_at timestamptz default now() not null,
        constraint pk_security_events primary key (tenant_id, id),
        constraint ck_security_events_severity check (severity in ('low', 'medium', 'high', 'critical')),
        constraint fk_security_events_tenant_id_tenants foreign key (tenant_id)
            references tenants (id)
    );
    create index ix_security_events_created_at on security_events (tenant_id, created_at, event_type)
    """,
    """
    create table audit_seals (
        tenant_id uuid not null,
        number bigint not null,
        log text not null,
        entry_id uuid not null,
        hash bytea not null,
        sealed_at timestamptz default now() not null,
        constraint pk_audit_seals primary key (tenant_id, number),
        constraint uq_audit_seals_tenant_id_log_entry_id unique (tenant_id, log, entry_id),
        constraint ck_audit_seals_log check (log in ('audit', 'security')),
        constraint fk_audit_seals_tenant_id_tenants foreign key (tenant_id)
            references tenants (id)
    )
    """,
    """
    create table encryption_keys (
        id text not null,
        created_at timestamptz default now() not null,
        retired_at timestamptz,
        constraint pk_encryption_keys primary key (id)
    )
    """,
    """
    create table data_keys (
        tenant_id uuid not null,
        id uuid not null,
        encryption_key_id text not null,
        nonce bytea not null,
        wrapped bytea not null,
        is_current boolean default 'true' not null,
        created_at timestamptz default now() not null,
        constraint pk_data_keys primary key (tenant_id, id),
        constraint fk_data_keys_encryption_key_id_encryption_keys foreign key (encryption_key_id)
            references encryption_keys (id),
        constraint fk_data_keys_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create unique index uq_data_keys_current on data_keys (tenant_id) where is_current
    """,
    """
    create table secrets (
        tenant_id uuid not null,
        id uuid not null,
        kind text not null,
        name text not null,
        data_key_id uuid not null,
        nonce bytea not null,
        ciphertext bytea not null,
        prefix text default '' not null,
        length integer default '0' not null,
        is_enabled boolean default 'true' not null,
        created_at timestamptz default now() not null,
        rotated_at timestamptz default now() not null,
        last_used_at timestamptz,
        constraint pk_secrets primary key (tenant_id, id),
        constraint uq_secrets_tenant_id_kind_name unique (tenant_id, kind, name),
        constraint fk_secrets_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade,
        constraint fk_secrets_tenant_id_data_keys foreign key (tenant_id, data_key_id)
            references data_keys (tenant_id, id)
    );
    create index ix_secrets_data_key_id on secrets (tenant_id, data_key_id)
    """,
    """
    create table mails (
        tenant_id uuid not null,
        id uuid not null,
        recipient text not null,
        subject text not null,
        body_secret_id uuid,
        state text default 'queued' not null,
        attempts integer default '0' not null,
        reason text,
        created_at timestamptz default now() not null,
        sent_at timestamptz,
        constraint pk_mails primary key (tenant_id, id),
        constraint ck_mails_state check (state in ('queued', 'sent', 'failed')),
        constraint fk_mails_tenant_id_secrets foreign key (tenant_id, body_secret_id)
            references secrets (tenant_id, id) on delete set null (body_secret_id),
        constraint fk_mails_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create index ix_mails_state on mails (tenant_id, state, created_at)
    """,
    # Not of one tenant: a limit may be met before anybody is known, and its key is a keyed hash.
    """
    create table rate_limits (
        key text not null,
        hits integer not null,
        window_ends_at timestamptz not null,
        constraint pk_rate_limits primary key (key)
    ) with (fillfactor = 70);
    create index ix_rate_limits_window_ends_at on rate_limits (window_ends_at)
    """,
)

FENCED = (
    "departments",
    "groups",
    "group_members",
    "share_requests",
    "share_tokens",
    "refresh_tokens",
    "api_keys",
    "one_time_tokens",
    "security_events",
    "audit_seals",
    "data_keys",
    "secrets",
    "mails",
)

APPEND_ONLY = ("security_events", "audit_seals")

LINKS = (
    """
    alter table conversations add constraint fk_conversations_tenant_id_share_tokens
        foreign key (tenant_id, share_token_id) references share_tokens (tenant_id, id) on delete cascade
    """,
    "create index ix_conversations_share_token_id on conversations (tenant_id, share_token_id)",
    """
    alter table memberships add constraint fk_memberships_tenant_id_departments
        foreign key (tenant_id, department_id) references departments (tenant_id, id)
        on delete set null (department_id)
    """,
    "create index ix_memberships_department_id on memberships (tenant_id, department_id)",
    "create index ix_project_grants_grantee on project_grants (tenant_id, grantee_kind, grantee_id)",
    "create index ix_project_members_user_id on project_members (tenant_id, user_id)",
    # The name 003 and 001 gave the same log.
    "create view audit_logs with (security_invoker = true) as select * from audit_log",
)

# One round trip each: the function names the tenant for its own transaction, then the fence shows it the rows.
FUNCTIONS = (
    """
    create function find_sign_in(in_tenant uuid, in_session uuid, in_token_hashes text[])
    returns table (session_id uuid, user_id uuid, email text, name text, must_change_password boolean,
                   platform_role text, org_position text, department_id uuid)
    language plpgsql security invoker as $$
    declare
        it record;
        is_parent_open boolean;
    begin
        perform set_config('pharos.tenant_id', in_tenant::text, true);
        select s.id, u.id as user_id, u.email, u.name, u.must_change_password,
               m.platform_role, m.org_position, m.department_id, s.parent_tenant_id, s.parent_session_id
            into it
            from sessions s
            join users u on u.id = s.user_id
            join memberships m on m.tenant_id = s.tenant_id and m.user_id = s.user_id
            where s.tenant_id = in_tenant and (s.id = in_session or s.token_hash = any(in_token_hashes))
              and s.revoked_at is null and s.expires_at > now()
              and (u.sessions_valid_from is null or u.sessions_valid_from < s.proved_at)
              and u.disabled_at is null and m.disabled_at is null;
        if not found then
            return;
        end if;
        -- One that was asked for in another tenant holds as long as the one that asked.
        if it.parent_session_id is not null then
            perform set_config('pharos.tenant_id', it.parent_tenant_id::text, true);
            select exists (
                select 1 from sessions s where s.tenant_id = it.parent_tenant_id and s.id = it.parent_session_id
                    and s.revoked_at is null and s.expires_at > now()
            ) into is_parent_open;
            perform set_config('pharos.tenant_id', in_tenant::text, true);
            if not is_parent_open then
                return;
            end if;
        end if;
        return query select it.id, it.user_id, it.email, it.name, it.must_change_password,
                            it.platform_role, it.org_position, it.department_id;
    end $$
    """,
    """
    create function find_api_key(in_tenant uuid, in_key_hash text)
    returns table (key_id uuid, key_name text, scopes text[], user_id uuid, email text,
                   org_position text, department_id uuid)
    language plpgsql security invoker as $$
    begin
        perform set_config('pharos.tenant_id', in_tenant::text, true);
        return query
            select k.id, k.name, k.scopes, k.user_id, u.email, m.org_position, m.department_id
            from api_keys k
            left join users u on u.id = k.user_id and u.disabled_at is null
            left join memberships m on m.tenant_id = k.tenant_id and m.user_id = u.id and m.disabled_at is null
            where k.tenant_id = in_tenant and k.key_hash = in_key_hash
              and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
              and (k.user_id is null or m.user_id is not null);
    end $$
    """,
    # Web processes remember for a moment who holds a session. Told by the database itself, they hear of a change
    # by whatever hand; the payload is `user:ID`: with one session others may end that were asked for by it.
    """
    create function tell_sign_ins() returns trigger language plpgsql as $$
    begin
        perform pg_notify('pharos_sign_ins', tg_argv[0] || ':' || (to_jsonb(old) ->> tg_argv[1]));
        return null;
    end $$
    """,
    # A grant names its grantee by kind and id, which no foreign key can follow.
    """
    create function drop_grants() returns trigger language plpgsql as $$
    begin
        delete from project_grants where tenant_id = old.tenant_id and grantee_kind = tg_argv[0]
            and grantee_id = (to_jsonb(old) ->> tg_argv[1])::uuid;
        if tg_argv[0] = 'user' then
            delete from project_members where tenant_id = old.tenant_id
                and user_id = (to_jsonb(old) ->> tg_argv[1])::uuid;
        end if;
        return null;
    end $$
    """,
)

TRIGGERS = (
    "create trigger drop_grants after delete on groups for each row execute function drop_grants('group', 'id')",
    """
    create trigger drop_grants after delete on departments
        for each row execute function drop_grants('department', 'id')
    """,
    """
    create trigger drop_grants after delete on memberships
        for each row execute function drop_grants('user', 'user_id')
    """,
    """
    create trigger tell_sign_ins after delete or update of revoked_at, token_hash on sessions
        for each row execute function tell_sign_ins('user', 'user_id')
    """,
    """
    create trigger tell_sign_ins after delete or update on memberships
        for each row execute function tell_sign_ins('user', 'user_id')
    """,
    """
    create trigger tell_sign_ins
        after delete or update of email, name, disabled_at, must_change_password, sessions_valid_from on users
        for each row execute function tell_sign_ins('user', 'id')
    """,
)


def upgrade() -> None:
    for statement in (*COLUMNS, *TABLES):
        op.execute(statement)
    for statement in LINKS:
        op.execute(statement)
    for table in FENCED:
        fence(table)
    for table in APPEND_ONLY:
        make_append_only(table)
    for statement in (*FUNCTIONS, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop function tell_sign_ins() cascade")
    op.execute("drop function drop_grants() cascade")
    op.execute("drop function find_sign_in(uuid, uuid, text[])")
    op.execute("drop function find_api_key(uuid, text)")
    op.execute("drop view audit_logs")
    op.execute("drop index ix_project_grants_grantee, ix_project_members_user_id, ix_memberships_department_id")
    op.execute("alter table memberships drop column department_id, drop column disabled_at")
    for statements in reversed(TABLES):
        op.execute(f"drop table {statements.split()[2]} cascade")
    op.execute("delete from sessions where token_hash is null")
    op.execute("alter table sessions alter column token_hash set not null")
    for column in ("door", "agent", "ip", "last_seen_at", "proved_at", "parent_tenant_id", "parent_session_id"):
        op.execute(f"alter table sessions drop column {column}")
    for column in ("username", "must_change_password", "failed_sign_ins", "locked_until", "sessions_valid_from"):
        op.execute(f"alter table users drop column {column}")
    op.execute("alter table conversations drop column share_token_id")
    op.execute("alter table project_grants drop column granted_by")
    op.execute("alter table messages drop column degraded")

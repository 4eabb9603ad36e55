"""What happened and whom it concerns, numbered without a gap for each tenant: what `/ws` sends.

Rows are written by the database at the commit of the change itself, by whatever part of Pharos it came. A change in a
transaction that names no tenant in `pharos.tenant_id` (psql, a repair, a restore) is no news.

Revision ID: 0006
Phase: expand
"""

from alembic import op

from pharos.migrations.fence import fence

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = """
    create table app_events (
        tenant_id uuid not null,
        seq bigint not null,
        at timestamptz default now() not null,
        name text not null,
        project_id uuid,
        user_id uuid,
        data jsonb not null,
        constraint pk_app_events primary key (tenant_id, seq),
        constraint fk_app_events_tenant_id_tenants foreign key (tenant_id)
            references tenants (id) on delete cascade
    );
    create index ix_app_events_at on app_events (tenant_id, at)
"""
# The lock lasts from here to the commit, and the triggers below run at the commit: so numbers become visible in their
# order, which a reader who asks for "all after N" rests on. A sequence would let 8 be seen before 7.
TELL = """
    create function tell_app_event(in_tenant uuid, in_name text, in_project uuid, in_user uuid, in_data jsonb)
    returns void language plpgsql as $$
    begin
        if in_tenant is distinct from nullif(current_setting('pharos.tenant_id', true), '')::uuid then
            return;
        end if;
        perform pg_advisory_xact_lock(hashtextextended('app_events:' || in_tenant, 0));
        insert into app_events (tenant_id, seq, name, project_id, user_id, data)
        select in_tenant, coalesce(max(seq), 0) + 1, in_name, in_project, in_user, in_data
        from app_events where tenant_id = in_tenant;
        perform pg_notify('app_events', in_tenant::text);
    end $$
"""
TRIGGERS = {
    # A document that goes with its project, or with its tenant, is not news of its own.
    "documents": """
        create function tell_documents() returns trigger language plpgsql as $$
        begin
            if tg_op <> 'DELETE' then
                perform tell_app_event(new.tenant_id, 'document.changed', new.project_id, null,
                                       jsonb_build_object('document_id', new.id, 'status', new.status));
            elsif exists (select from projects where tenant_id = old.tenant_id and id = old.project_id) then
                perform tell_app_event(old.tenant_id, 'document.changed', old.project_id, null,
                                       jsonb_build_object('document_id', old.id, 'status', 'deleted'));
            end if;
            return null;
        end $$;
        create constraint trigger tell_documents after insert or delete or update of status on documents
            deferrable initially deferred for each row execute function tell_documents()
    """,
    "turns": """
        create function tell_turns() returns trigger language plpgsql as $$
        declare asker uuid;
        begin
            select user_id into asker from conversations
            where tenant_id = new.tenant_id and id = new.conversation_id;
            if asker is not null then
                perform tell_app_event(new.tenant_id, 'turn.ended', null, asker, jsonb_build_object(
                    'turn_id', new.id, 'conversation_id', new.conversation_id, 'state', new.state));
            end if;
            return null;
        end $$;
        create constraint trigger tell_turns after update of state on turns
            deferrable initially deferred for each row
            when (old.state = 'running' and new.state <> 'running') execute function tell_turns()
    """,
    "providers": """
        create function tell_providers() returns trigger language plpgsql as $$
        begin
            if exists (select from tenants where id = coalesce(new.tenant_id, old.tenant_id)) then
                perform tell_app_event(coalesce(new.tenant_id, old.tenant_id), 'provider.changed', null, null,
                    jsonb_build_object('provider_id', coalesce(new.id, old.id), 'name', coalesce(new.name, old.name),
                                       'change', lower(tg_op)));
            end if;
            return null;
        end $$;
        create constraint trigger tell_providers after insert or delete or update on providers
            deferrable initially deferred for each row execute function tell_providers()
    """,
}


def upgrade() -> None:
    op.execute(TABLE)
    fence("app_events")
    op.execute(TELL)
    for statements in TRIGGERS.values():
        op.execute(statements)


def downgrade() -> None:
    for table in TRIGGERS:
        op.execute(f"drop trigger tell_{table} on {table}")
        op.execute(f"drop function tell_{table}()")
    op.execute("drop function tell_app_event(uuid, text, uuid, uuid, jsonb)")
    op.execute("drop table app_events")

"""What every table of a tenant gets in the step that makes it."""

from alembic import op


def fence(table: str) -> None:
    """Only rows of the tenant that the transaction names can be seen or written, by the table's owner too.

    After a transaction-local setting has ended Postgres reads it back as '' instead of NULL; `nullif` turns both
    into "no tenant", which matches no row.
    """
    op.execute(f"alter table {table} enable row level security")
    op.execute(f"alter table {table} force row level security")
    op.execute(
        f"""
        create policy tenant_fence on {table}
            using (tenant_id = nullif(current_setting('pharos.tenant_id', true), '')::uuid)
            with check (tenant_id = nullif(current_setting('pharos.tenant_id', true), '')::uuid)
        """
    )


def make_append_only(table: str) -> None:
    """Take UPDATE, DELETE and TRUNCATE from every role but the owner, whatever the roles are called here."""
    op.execute(
        f"""
        do $$
        declare grantee text;
        begin
            for grantee in
                select distinct g.grantee from information_schema.role_table_grants g
                where g.table_name = '{table}' and g.privilege_type in ('UPDATE', 'DELETE', 'TRUNCATE')
                  and g.grantee <> current_user
            loop
                execute format('revoke update, delete, truncate on {table} from %I', grantee);
            end loop;
        end $$
        """
    )

"""When an encryption key is lost for good: give up what only it opens, so that the rest runs again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select, update

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.identity.security import record_security_event
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.keyring import read_keys
from pharos.infra.mail import note_texts_lost
from pharos.infra.models import DataKey, EncryptionKey, Secret
from pharos.ops.secrets_check import every_tenant
from pharos.runtime import Runtime


@dataclass(frozen=True)
class LostSecret:
    """A secret that has to be entered again."""

    tenant: str
    kind: str
    name: str


async def forget_key(runtime: Runtime, key_id: str, *, dry_run: bool) -> list[LostSecret]:
    """Delete every secret that rests on a lost key, and the key's name; returns what was lost.

    Raises `NotFound` for a key this database does not know, `Conflict` for one that is at hand or retired.
    """
    async with system_transaction(runtime.db) as session:
        known = await session.get(EncryptionKey, key_id)
    if known is None:
        raise NotFound(f"This database knows no key {key_id}. `pharos secrets check` names it.", code="no_such_key")
    if known.retired_at is not None or key_id in {key.id for key in read_keys(runtime.settings)}:
        raise Conflict(f"Key {key_id} is not lost: nothing has to be given up for it.", code="key_not_lost")
    lost: list[LostSecret] = []
    for tenant_id, slug in await every_tenant(runtime):
        rests = select(DataKey.id).where(DataKey.tenant_id == tenant_id, DataKey.encryption_key_id == key_id)
        gone = (Secret.tenant_id == tenant_id, Secret.data_key_id.in_(rests))
        async with runtime.db.transaction(tenant_id) as session:
            rows = (await session.execute(select(Secret.kind, Secret.name).where(*gone))).all()
            lost += [LostSecret(slug, row.kind, row.name) for row in rows]
            if dry_run or not (await session.execute(rests)).all():
                continue
            await note_texts_lost(
                session, select(Secret.id).where(*gone), reason=f"Its text is lost with the encryption key {key_id}."
            )
            await session.execute(delete(Secret).where(*gone))
            await session.execute(delete(DataKey).where(DataKey.id.in_(rests)))
            subject = f"encryption_key:{key_id}"
            await record_security_event(
                session, tenant_id, event_type="encryption_key_lost", severity="high", subject=subject, lost=len(rows)
            )
            await record_audit(
                session, operator(tenant_id), action="encryption_key.forgotten", subject=subject, lost=len(rows)
            )
    if not dry_run:
        async with system_transaction(runtime.db) as session:
            change = update(EncryptionKey).where(EncryptionKey.id == key_id)
            await session.execute(change.values(retired_at=func.now()))
    return lost

"""Which files a database names: what a backup copies, a drill looks for and a restore needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

NAMED = "select tenant_id, sha256, max(size_bytes) from documents group by 1, 2 order by 1, 2"


@dataclass(frozen=True)
class NamedBlob:
    tenant_id: UUID
    sha256: str
    size_bytes: int

    @property
    def relative(self) -> str:
        """Where it lies below the blob root and below `blobs` of a backup."""
        return f"{self.tenant_id}/{self.sha256[:2]}/{self.sha256[2:4]}/{self.sha256}"


def named_blobs(connection: psycopg.Connection[Any]) -> list[NamedBlob]:
    """Each once, in order of tenant and hash; of all tenants to the role that reads all."""
    return [NamedBlob(*row) for row in connection.execute(NAMED)]

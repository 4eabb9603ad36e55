"""What whole installations need."""

from __future__ import annotations

import pytest

from pharos.infra import embedded_postgres


@pytest.fixture
def free_port() -> int:
    return embedded_postgres.free_port()

"""No kill -9 loses, doubles or strands an acknowledged document."""

from __future__ import annotations

import random

import pytest
from tests.kills import PARTS, prove


async def _survives(free_port: int, *, documents: int, kills: int) -> None:
    seed = random.SystemRandom().randrange(2**31)
    verdict = await prove(documents=documents, kills=kills, seed=seed, port=free_port)
    assert verdict.compared >= documents, verdict
    assert verdict.acknowledged == documents, verdict
    assert verdict.kills.keys() == set(PARTS), verdict
    assert (verdict.lost, verdict.duplicated, verdict.stuck, verdict.failed, verdict.out_of_step) == (0,) * 5, verdict


@pytest.mark.slow
@pytest.mark.contract("IQ-06")
@pytest.mark.contract("IQ-04")
async def test_killing_any_part_loses_no_acknowledged_document(free_port: int) -> None:
    await _survives(free_port, documents=40, kills=5)


@pytest.mark.prove
async def test_fifty_kills_while_five_hundred_documents_come_in_lose_nothing(free_port: int) -> None:
    await _survives(free_port, documents=500, kills=50)

"""No kill -9 loses, doubles or strands an acknowledged document."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kills import PARTS, Verdict, prove

GOOD = Verdict(
    seed=1,
    acknowledged=40,
    deleted=8,
    retried=4,
    kills=dict.fromkeys(PARTS, 1),
    unfinished_at_kill=[5, 4, 0, 13, 15],
    compared=32,
    lost=0,
    returned=0,
    duplicated=0,
    stuck=0,
    ended_otherwise=0,
    out_of_step=0,
    settled_in_seconds=8.0,
)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unfinished_at_kill": [5, 0, 0, 13, 15]}, "only 3 of 5 kills hit unfinished documents"),
        ({"compared": 31}, "compared only 31"),
        ({"lost": 1}, "lost: 1"),
        ({"returned": 1}, "returned: 1"),
        ({"ended_otherwise": 2}, "ended_otherwise: 2"),
    ],
)
def test_a_proof_that_looked_away_or_found_a_loss_does_not_pass(changed: dict[str, object], said: str) -> None:
    assert GOOD.faults() == []
    faults = replace(GOOD, **changed).faults()  # type: ignore[arg-type]  # a field of each case's own type
    assert len(faults) == 1
    assert said in faults[0]


async def _survives(free_port: int, programs: Path, *, documents: int, kills: int) -> None:
    seed = random.SystemRandom().randrange(2**31)
    python = str(programs / "python")
    verdict = await prove(documents=documents, kills=kills, seed=seed, port=free_port, python=python)
    assert verdict.acknowledged == documents, verdict
    assert verdict.deleted, verdict
    assert verdict.retried, verdict
    assert verdict.kills == dict.fromkeys(PARTS, kills // len(PARTS)), verdict
    assert verdict.faults() == [], verdict


@pytest.mark.slow
@pytest.mark.contract("IQ-06")
@pytest.mark.contract("IQ-04")
async def test_killing_any_part_loses_no_acknowledged_document(free_port: int, programs: Path) -> None:
    await _survives(free_port, programs, documents=20, kills=5)


@pytest.mark.prove
async def test_fifty_kills_while_five_hundred_documents_come_in_lose_nothing(free_port: int, programs: Path) -> None:
    await _survives(free_port, programs, documents=500, kills=50)

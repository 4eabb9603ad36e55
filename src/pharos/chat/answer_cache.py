"""Answers of models, kept to be given again: to whom may still see the project, while nothing of it has changed.

The caller has asked whether the asker may use the project, at this very question; the key holds besides all that the
answer rests on. Whatever changes in it makes the kept answer unreachable, and nobody has to find and remove it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.chat.history import Draft, MadeBy, Source, Turn
from pharos.chat.models import AnswerCache
from pharos.chat.prompt import PROMPT_VERSION
from pharos.identity.principal import Principal
from pharos.infra.metrics import CACHE_HITS, CACHE_MISSES
from pharos.providers.contract import Candidate
from pharos.runtime import Runtime


def answer_key(principal: Principal, turn: Turn, candidates: Sequence[Candidate]) -> str | None:
    """The key of the answer to a turn; None where none is kept: in the middle of a conversation, without a model."""
    if turn.history or not candidates:
        return None
    model = candidates[0]
    parts = [
        str(principal.tenant_id),
        str(turn.project_id),
        turn.version,
        PROMPT_VERSION,
        model.state_key,
        model.model,
        " ".join(turn.question.casefold().split()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def find_answer(runtime: Runtime, key: str) -> Draft | None:
    """A kept answer; it is counted whether there is one."""
    kept = await runtime.cache.get(key)
    if kept is None:
        CACHE_MISSES.inc()
        return None
    CACHE_HITS.inc()
    values = json.loads(kept)
    sources = tuple(Source(**source) for source in values.pop("sources"))
    made_by = values.pop("made_by", None)
    return Draft(
        **values | {"sources": sources, "unsupported": tuple(values["unsupported"])},
        made_by=MadeBy(made_by["provider"], made_by["model"]) if made_by is not None else None,
    )


async def keep_answer(runtime: Runtime, key: str, draft: Draft) -> None:
    """Keep a whole answer that lacked nothing, of the model its key names: a spare's is not that model's."""
    maker = draft.made_by
    if maker is not None and not maker.failed_over_from and maker.cut is None and not draft.degraded:
        await runtime.cache.put(key, json.dumps(asdict(draft)).encode())


async def forget_answers(session: AsyncSession) -> None:
    """No answer that is kept now, in whatever process or store, counts any more."""
    await session.execute(update(AnswerCache).values(cleared_at=func.clock_timestamp()))

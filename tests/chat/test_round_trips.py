"""How often an answer asks the database before it asks a model: each time costs a first word about 1 ms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.fakes import FakeChat, with_model
from tests.make import make_project
from tests.round_trips import record_round_trips

from pharos.chat.answer import answer_question, gather_answer
from pharos.identity.principal import operator
from pharos.identity.tenants import ensure_default_tenant
from pharos.library.texts import NamedText, index_texts
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

QUESTION = 5
"""Begin; may they ask here; what the project wants and where it stands; the question and its turn; commit."""
MODELS = 4
"""Begin; what the tenant allows; its providers, of which there are none; commit."""
SEARCH = 3
BREAKER = 1
FACT = NamedText("light.txt", "The lighthouse of Alexandria was built on the island of Pharos.")


class Watcher(FakeChat):
    """Knows how much had been sent when it was asked."""

    def __init__(self, sent: list[bytes]) -> None:
        super().__init__()
        self.sent, self.before = sent, 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.before = len(self.sent)
        async for word in super().stream(request):
            yield word


async def test_a_model_is_asked_after_no_more_round_trips_than_it_takes(
    fresh_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever needs one more writes it down here, and looks first whether it can go along with another."""
    tenant_id = await ensure_default_tenant(fresh_runtime)
    asker = operator(tenant_id)
    project_id = await make_project(fresh_runtime.db, asker)
    await index_texts(fresh_runtime, tenant_id, project_id, [FACT])
    sent = record_round_trips(monkeypatch)
    model = Watcher(sent)
    world = with_model(fresh_runtime, model)
    for question in ("Where was the lighthouse built?", "Where was the lighthouse of Alexandria built?"):
        sent.clear()  # what the first one sends is more: it opens connections and meets the provider
        answer = await gather_answer(answer_question(world, asker, project_id=project_id, question=question))
        assert answer.mode == "model"
    assert model.before == QUESTION + MODELS + SEARCH + BREAKER, sent[: model.before]

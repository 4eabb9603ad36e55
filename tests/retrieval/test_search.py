"""Search: what fits comes first, nobody finds what is not theirs, and each leg can fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import event, text
from tests.fakes import FakeEmbedding
from tests.make import MadeTenant, make_person, make_project

from pharos.identity.principal import Principal, operator
from pharos.identity.tenants import scratch_tenant
from pharos.infra.errors import Unavailable
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.check import check_index
from pharos.library.passages import delete_passages
from pharos.library.texts import NamedText, index_texts
from pharos.retrieval import search as search_module
from pharos.retrieval.evaluate import EvalQuery, EvalSet, evaluate
from pharos.retrieval.search import SearchOutcome, dense_share, search
from pharos.runtime import Runtime

VAULT = NamedText("vault.txt", "The vault opens at noon and closes at dusk. Two keepers hold its keys.")
ORCHARD = NamedText("orchard.txt", "Apples ripen in September; pears are picked before the first frost.")
LIBRARY_ZH = NamedText("library.txt", "这个城市的图书馆每天上午九点开放，星期一休息。")


class SilentEmbedding(FakeEmbedding):
    """A model that does not answer."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise Unavailable("The embedder does not answer. `pharos status` shows it.")


async def project_with(runtime: Runtime, owner: Principal, *texts: NamedText, is_private: bool = False) -> ProjectId:
    project = await make_project(runtime.db, owner, is_private=is_private)
    await index_texts(runtime, owner.tenant_id, project, texts)
    return project


def names(outcome: SearchOutcome) -> list[str]:
    return [passage.document_name for passage in outcome.passages]


@pytest.mark.contract("RT-01", part="what is found is a stored passage, with its exact place")
async def test_the_passage_that_fits_comes_first_with_its_exact_place(runtime: Runtime, tenant: MadeTenant) -> None:
    await project_with(runtime, tenant.admin, ORCHARD, VAULT)
    outcome = await search(runtime, tenant.admin, text="When does the vault open?")
    best = outcome.passages[0]
    assert best.document_name == "vault.txt"
    assert VAULT.text[best.start_char : best.end_char] == best.text
    assert best.lexical is not None
    assert best.lexical > 0
    assert outcome.degraded is False


@pytest.mark.contract("RT-01", part="lexical search answers alone and says that it is degraded")
async def test_without_the_embedder_words_still_find_and_the_outcome_says_so(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    await project_with(runtime, tenant.admin, ORCHARD, VAULT)
    outcome = await search(
        replace(runtime, embedding=SilentEmbedding()), tenant.admin, text="When does the vault open?"
    )
    assert names(outcome)[0] == "vault.txt"
    assert outcome.degraded is True
    assert all(passage.dense is None for passage in outcome.passages)


@pytest.mark.contract("RT-01", part="nothing found is an empty result")
async def test_a_question_that_nothing_fits_finds_nothing_rather_than_something(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    await project_with(runtime, tenant.admin, VAULT)
    silent = replace(runtime, embedding=SilentEmbedding())
    assert (await search(silent, tenant.admin, text="quantum chromodynamics")).passages == ()
    assert (await search(silent, tenant.admin, text="?!")).passages == ()


async def test_a_chinese_question_finds_its_passage(runtime: Runtime, tenant: MadeTenant) -> None:
    await project_with(runtime, tenant.admin, VAULT, LIBRARY_ZH)
    assert names(await search(runtime, tenant.admin, text="图书馆几点开放？"))[0] == "library.txt"


async def test_the_document_s_title_finds_a_passage_that_does_not_repeat_it(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    titled = replace(ORCHARD, title="Harvest calendar")
    await project_with(runtime, tenant.admin, VAULT, titled)
    assert names(await search(runtime, tenant.admin, text="harvest calendar"))[0] == "orchard.txt"


async def test_search_stays_inside_the_project_it_is_given(runtime: Runtime, tenant: MadeTenant) -> None:
    await project_with(runtime, tenant.admin, VAULT)
    other = await project_with(runtime, tenant.admin, ORCHARD)
    assert names(await search(runtime, tenant.admin, text="vault", project_id=other)) == ["orchard.txt"]


async def test_a_member_finds_nothing_of_a_project_not_shared_with_them(runtime: Runtime, tenant: MadeTenant) -> None:
    hidden = await project_with(runtime, tenant.admin, VAULT, is_private=True)
    await project_with(runtime, tenant.admin, ORCHARD)
    member = await make_person(runtime.db, tenant.id)
    assert names(await search(runtime, member, text="vault keepers keys")) == ["orchard.txt"]
    assert (await search(runtime, member, text="vault", project_id=hidden)).passages == ()


async def test_scores_do_not_tell_of_projects_one_cannot_see(runtime: Runtime, tenant: MadeTenant) -> None:
    await project_with(runtime, tenant.admin, ORCHARD)
    member = await make_person(runtime.db, tenant.id)
    before = await search(runtime, member, text="pears and frost")
    await project_with(runtime, tenant.admin, replace(ORCHARD, name="secret.txt"), VAULT, is_private=True)
    after = await search(runtime, member, text="pears and frost")
    assert (after.passages, after.idf) == (before.passages, before.idf)


async def test_another_tenant_finds_nothing(runtime: Runtime, tenant: MadeTenant, stranger: Principal) -> None:
    await project_with(runtime, tenant.admin, VAULT)
    assert (await search(runtime, stranger, text="vault")).passages == ()


async def test_both_ways_to_read_the_vectors_agree(
    runtime: Runtime, tenant: MadeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        NamedText(f"{number}.txt", f"Ledger {number} of ship {number % 7} and port {number % 11}.")
        for number in range(60)
    ]
    await project_with(runtime, tenant.admin, *texts)
    exact = await search(runtime, tenant.admin, text="ship 3 in port 5", limit=5)
    monkeypatch.setattr(search_module, "EXACT_SCAN_PASSAGES", 0)
    approximate = await search(runtime, tenant.admin, text="ship 3 in port 5", limit=5)
    assert [p.score for p in approximate.passages] == [p.score for p in exact.passages]


async def test_a_search_is_one_statement_after_the_tenant_is_named(runtime: Runtime, tenant: MadeTenant) -> None:
    await project_with(runtime, tenant.admin, VAULT)
    statements: list[str] = []
    engine = runtime.db.engine.sync_engine

    def note(*call: Any) -> None:
        statements.append(call[2])

    event.listen(engine, "before_cursor_execute", note)
    await search(runtime, tenant.admin, text="vault")
    event.remove(engine, "before_cursor_execute", note)
    assert len(statements) == 2
    assert "set_config('pharos.tenant_id'" in statements[0]


async def test_writers_at_once_leave_the_counts_in_step(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    texts = [replace(VAULT, name=f"{number}.txt", text=f"{VAULT.text} Note {number}.") for number in range(12)]
    made = await asyncio.gather(*(index_texts(runtime, tenant.id, project, [each]) for each in texts))
    ids = [DocumentId(document_id) for names_by_id in made for document_id in names_by_id]

    async def forget(document_id: DocumentId) -> None:
        async with runtime.db.transaction(tenant.id) as session:
            await delete_passages(session, document_ids=[document_id])
            await session.execute(text("delete from documents where id = :id"), {"id": document_id})

    await asyncio.gather(
        *(forget(document_id) for document_id in ids[:6]),
        *(index_texts(runtime, tenant.id, project, [replace(each, name=f"again-{each.name}")]) for each in texts[:6]),
    )
    async with runtime.db.transaction(tenant.id) as session:
        report = await check_index(session)
    assert (report.documents, report.out_of_step) == (12, 0)


async def test_an_evaluation_leaves_nothing_behind(runtime: Runtime) -> None:
    query = EvalQuery(id="q", text="When does the vault open?", lang="en", doc="", spans=(), grades={"vault.txt": 1.0})
    report = await evaluate(runtime, EvalSet((VAULT, ORCHARD), (query,)))
    assert report.overall.ndcg_at_10 == 1.0
    assert report.per_lang["en"].queries == 1
    async with scratch_tenant(runtime) as tenant_id, runtime.db.transaction(tenant_id) as session:
        count = await session.execute(text("select count(*) from tenants where slug like 'scratch-%'"))
        assert count.scalar_one() == 1
        assert operator(tenant_id).sees_everything


@pytest.mark.parametrize(
    ("question", "share"),
    [
        ("When does the vault open?", search_module.DENSE_SHARE_ENGLISH),
        ("ALDH1 expression", search_module.DENSE_SHARE_ENGLISH),
        ("Wann öffnet der Tresor?", search_module.DENSE_SHARE_LATIN),
        ("图书馆几点开放？", search_module.DENSE_SHARE_OTHER),
        ("Когда открывается библиотека?", search_module.DENSE_SHARE_OTHER),
    ],
)
def test_the_model_is_trusted_as_far_as_it_knows_the_language(question: str, share: float) -> None:
    assert dense_share(question) == share

"""Figures of an evaluation are what the literature means by their names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from pharos.identity.models import Tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Invalid
from pharos.retrieval.evaluate import evaluate, is_relevant, mean, measure, read_eval_set
from pharos.runtime import Runtime


def test_a_perfect_ranking_scores_1_everywhere() -> None:
    figures = measure([1.0, 1.0, 0.0], [1.0, 1.0])
    assert (figures.ndcg_at_10, figures.recall_at_5, figures.recall_at_20, figures.mrr_at_10) == (1, 1, 1, 1)


def test_ranks_are_discounted_by_their_logarithm() -> None:
    figures = measure([0.0, 0.0, 1.0], [1.0, 1.0])
    assert figures.ndcg_at_10 == pytest.approx((1 / math.log2(4)) / (1 + 1 / math.log2(3)))
    assert figures.mrr_at_10 == pytest.approx(1 / 3)
    assert figures.recall_at_5 == 0.5


def test_what_is_found_too_late_counts_only_where_the_figure_reaches() -> None:
    figures = measure([0.0] * 12 + [1.0], [1.0])
    assert (figures.ndcg_at_10, figures.recall_at_5, figures.recall_at_20, figures.mrr_at_10) == (0, 0, 1, 0)


def test_a_question_whose_answer_no_passage_holds_counts_as_0() -> None:
    assert measure([0.0], []).ndcg_at_10 == 0
    assert mean([measure([], []), measure([1.0], [1.0])]).ndcg_at_10 == 0.5


@pytest.mark.parametrize(
    ("passage", "relevant"),
    [
        ((0, 100), True),
        ((150, 400), True),
        ((151, 400), False),
        ((120, 140), True),
        ((0, 50), False),
        ((190, 210), True),
    ],
)
def test_a_passage_is_relevant_by_half_of_either(passage: tuple[int, int], relevant: bool) -> None:
    gold = [(50, 100)] if passage == (0, 100) else [(100, 200)]
    assert is_relevant(passage, gold) is relevant


def test_a_set_is_read_with_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "d1", "title": "T", "text": "body"}) + "\n")
    queries = [
        {"id": "q1", "text": "by document", "lang": "en"},
        {"id": "q2", "text": "by span", "doc": "d1", "spans": [[0, 2]]},
        {"id": "q3", "text": "nothing is right"},
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    read = read_eval_set(tmp_path)
    assert [query.id for query in read.queries] == ["q1", "q2"]
    assert read.queries[0].grades == {"d1": 2.0}
    assert read.queries[1].spans == ((0, 2),)


def test_a_folder_that_is_no_set_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"corpus\.jsonl"):
        read_eval_set(tmp_path)


async def test_a_measurement_leaves_no_tenant_behind(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "d1", "title": "", "text": "The vault opens at noon."}\n')
    (tmp_path / "queries.jsonl").write_text('{"id": "q1", "text": "When does the vault open?"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    before = await known_tenants(runtime)
    report = await evaluate(runtime, read_eval_set(tmp_path))
    assert (report.documents, report.overall.recall_at_5) == (1, 1.0)
    assert await known_tenants(runtime) == before


async def known_tenants(runtime: Runtime) -> set[UUID]:
    async with system_transaction(runtime.db) as session:
        return set((await session.execute(select(Tenant.id))).scalars())

"""`pharos search` and `pharos eval`: what search finds, and how well."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pharos.identity.tenants import as_operator
from pharos.infra.settings import Settings
from pharos.infra.terminal import (
    AsJson,
    ProjectName,
    TenantSlug,
    echo_json,
    echo_line,
    echo_table,
    error_console,
    run_async,
)
from pharos.library.commands import project_named
from pharos.retrieval.evaluate import EvalReport, EvalSet, evaluate, read_eval_set
from pharos.retrieval.search import FoundPassage, SearchOutcome, search
from pharos.runtime import open_runtime

app = typer.Typer()

EXCERPT_CHARACTERS = 200


@app.command("search")
def search_passages(
    text: Annotated[str, typer.Argument(help="Words or a question, in quotes.")],
    project: ProjectName,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Passages to show.")] = 8,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Show the passages of a project that fit a question best, with document, page and place."""

    async def work() -> SearchOutcome:
        async with as_operator(tenant) as (runtime, principal):
            project_id = await project_named(runtime, principal, project)
            return await search(runtime, principal, text=text, project_id=project_id, limit=limit)

    outcome = run_async(work())
    if as_json:
        passages = [_passage_json(passage) for passage in outcome.passages]
        echo_json({"query": text, "degraded": outcome.degraded, "passages": passages})
        return
    if outcome.degraded:
        echo_line("Searched by words only: the embedder does not answer. `pharos status` says more.")
    if not outcome.passages:
        echo_line(f"Nothing in “{project}” fits.")
    for passage in outcome.passages:
        page = f", page {passage.page}" if passage.page else ""
        place = f"characters {passage.start_char}-{passage.end_char}"
        echo_line(f"{passage.score:.3f}  {passage.document_name}{page}, {place}")
        echo_line(f"       {_excerpt(passage.text)}")


@app.command("eval")
def evaluate_search(
    folder: Annotated[Path, typer.Argument(help="corpus.jsonl, queries.jsonl and qrels.tsv.", file_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Measure search on a set of questions with known answers, in a scratch tenant that is removed afterwards."""
    evaluation = read_eval_set(folder)
    report = run_async(_evaluate(evaluation))
    if as_json:
        echo_json(_report_json(report))
        return
    lines = [("all", report.overall), *report.per_lang.items()]
    echo_table(
        ["language", "questions", "nDCG@10", "recall@5", "recall@20", "MRR@10"],
        [[name, *asdict(figures).values()] for name, figures in lines],
        empty="The set has no questions.",
    )
    latency = ", ".join(f"{name} {value} ms" for name, value in report.latency_ms.items())
    echo_line(f"{report.documents} documents, {report.passages} passages; a search takes {latency}.")


async def _evaluate(evaluation: EvalSet) -> EvalReport:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal, transient=True) as bar:
        tasks = {verb: bar.add_task(verb, total=None) for verb in ("Indexing", "Asking")}

        def tell(verb: str, done: int, total: int) -> None:
            bar.update(tasks[verb], completed=done, total=total)

        async with open_runtime(Settings()) as runtime:
            return await evaluate(runtime, evaluation, progress=tell)


def _passage_json(passage: FoundPassage) -> dict[str, object]:
    return {
        "document": passage.document_name,
        "document_id": passage.document_id,
        "passage_id": passage.passage_id,
        "page": passage.page,
        "start": passage.start_char,
        "end": passage.end_char,
        "heading": passage.heading,
        "text": passage.text,
        "score": passage.score,
        "dense": passage.dense,
        "lexical": passage.lexical,
    }


def _report_json(report: EvalReport) -> dict[str, object]:
    return {
        **asdict(report.overall),
        "latency_ms": report.latency_ms,
        "documents": report.documents,
        "passages": report.passages,
        "per_lang": {lang: asdict(figures) for lang, figures in report.per_lang.items()},
    }


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"

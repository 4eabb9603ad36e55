"""`pharos ask`: a cited answer in the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pharos.chat.answer import Answer, answer_question, gather_answer
from pharos.identity.tenants import as_operator
from pharos.infra.terminal import AsJson, ProjectName, TenantSlug, echo_json, echo_line, run_async
from pharos.library.commands import project_named

app = typer.Typer()


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    project: ProjectName = "Pharos handbook",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Answer a question from a project's documents, each claim with its document, page and place."""

    async def work() -> Answer:
        async with as_operator(tenant) as (runtime, principal):
            project_id = await project_named(runtime, principal, project)
            return await gather_answer(answer_question(runtime, principal, project_id=project_id, question=question))

    answer = run_async(work())
    if as_json:
        echo_json(
            {
                "answer": answer.answer,
                "grounded": answer.grounded,
                "confidence": answer.confidence,
                "mode": answer.mode,
                "degraded": answer.degraded,
                "unsupported": answer.unsupported,
                "sources": [asdict(source) for source in answer.sources],
            }
        )
        return
    echo_line(answer.answer)
    if answer.sources:
        echo_line("")
    for source in answer.sources:
        page = f", page {source.page}" if source.page else ""
        echo_line(f"[{source.index}] {source.document}{page}, characters {source.start}-{source.end}")
    if isinstance(answer.made_by, dict) and answer.made_by["cut"]:
        echo_line("The answer was cut off before its end.")
    if answer.unsupported:
        number = len(answer.unsupported)
        echo_line(f"Not supported by the passages cited: {number} of its sentences. Read them before you rely on it.")
    if answer.degraded:
        echo_line(
            "A part of the search, or the model, did not answer: this was made without it. `pharos doctor` says which."
        )

"""What the whole product costs beside its embedder: 1,000 abstracts from files to searchable passages.

The first 1,000 abstracts of SciFact are written as text files and brought in by `pharos ingest FOLDER --wait` into a
scratch installation; the time runs from the start of that command to its exit, so it holds reading, copying, splitting,
embedding, counting words and storing. Then the texts the embedder was given are made from the stored passages again and
sent to the same embedder process, by two callers so that its queue never runs dry. The figure is the ratio of the two
rates in one run, so that the machine's speed does not matter. Other work on the machine does matter a little; beside it
stands the embedder's share of the processor time, the ratio that a machine with nothing else to do comes near. What
web, worker and embedder hold in memory is taken right after the command.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.scratch import scratch_installation
from sqlalchemy import select

from pharos.access.models import Project
from pharos.identity.tenants import find_tenant
from pharos.infra.settings import Settings
from pharos.library.models import Document, Passage
from pharos.library.passages import embedded_text, title_of
from pharos.library.split import Piece
from pharos.runtime import open_runtime

ABSTRACTS = 1000
CALLERS = 2
MIN_RATIO = 0.70


def main(eval_dir: Path) -> dict[str, Any]:
    with (eval_dir / "scifact" / "corpus.jsonl").open(encoding="utf-8") as lines:
        abstracts = [json.loads(line) for line in islice(lines, ABSTRACTS)]
    with scratch_installation() as scratch:
        folder = scratch.folder / "abstracts"
        folder.mkdir()
        for abstract in abstracts:
            (folder / f"{abstract['id']}.txt").write_text(f"{abstract['title']}\n\n{abstract['text']}", "utf-8")
        before = scratch.processor_seconds(), scratch.processor_seconds("embedder")
        command_before = _command_seconds()
        whole, told = scratch.run("ingest", str(folder), "--project", "Abstracts", "--wait", "--json")
        all_parts, embedder = (
            scratch.processor_seconds() - before[0],
            scratch.processor_seconds("embedder") - before[1],
        )
        states = Counter(json.loads(told)["documents"])
        command = _command_seconds() - command_before
        memory = scratch.memory()
        passages, alone = asyncio.run(_embed_again(scratch.settings))
    ratio = alone / whole
    return {
        "documents": dict(states),
        "passages": passages,
        "whole_seconds": round(whole, 1),
        "embedder_seconds": round(alone, 1),
        "whole_passages_per_second": round(passages / whole, 1),
        "embedder_passages_per_second": round(passages / alone, 1),
        "processor_seconds": {
            "embedder": round(embedder, 1),
            "other parts": round(all_parts - embedder, 1),
            "command": round(command, 1),
        },
        "embedder_share_of_processor": round(embedder / (all_parts + command), 3),
        "ratio": round(ratio, 3),
        "complete_ok": states == Counter(indexed=len(abstracts)),
        "ratio_ok": ratio >= MIN_RATIO,
        **memory,
    }


def _command_seconds() -> float:
    """Processor time of the commands this process has run and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _embed_again(settings: Settings) -> tuple[int, float]:
    """How many passages are stored, and the seconds the embedder alone needs for them."""
    async with open_runtime(settings) as runtime:
        tenant_id = await find_tenant(runtime, "default")
        statement = (
            select(Document.name, Passage.text, Passage.heading)
            .join(Passage, Passage.document_id == Document.id)
            .join(Project, Project.id == Document.project_id)
            .where(~Project.is_handbook)
            .order_by(Document.id, Passage.ordinal)
        )
        async with runtime.db.transaction(tenant_id) as session:
            rows = (await session.execute(statement)).all()
        texts = [
            embedded_text(title_of(row.name), Piece(start=0, end=len(row.text), page=None, heading="", text=row.text))
            for row in rows
        ]
        await runtime.embedding.embed(texts[:64])
        started = time.perf_counter()
        await asyncio.gather(*(runtime.embedding.embed(texts[caller::CALLERS]) for caller in range(CALLERS)))
        return len(texts), time.perf_counter() - started

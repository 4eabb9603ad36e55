"""Search among 100,000 passages of 20 projects: what it costs beyond its two parts, and what its index misses.

The passages are windows of SciFact abstracts; their vectors lie between those of 5,000 beginnings, so that questions
have near and far neighbours as in a real library. They are loaded in bulk: the writing path has its own benchmark. At
the end web and worker are started beside the embedder, the web process is asked, and the memory of the three is taken.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psycopg
from benchmarks.memory import memory_figures
from numpy.typing import NDArray
from tests.make import make_person, make_token
from tests.postgres import shared_server

from pharos.identity.principal import Principal, operator
from pharos.infra.blobs import BlobStore
from pharos.infra.db import create_database
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Unavailable
from pharos.infra.ids import TenantId, new_id
from pharos.infra.limits import Limits
from pharos.infra.settings import Settings
from pharos.infra.smtp import MailTransport
from pharos.infra.vault import Vault
from pharos.library.passages import dense_literal, sparse_literal
from pharos.library.terms import terms_of
from pharos.providers.calls import Models
from pharos.providers.embedder.client import EmbedderClient
from pharos.retrieval.search import find_passages, search, search_parameters, search_statement
from pharos.runtime import Runtime

PASSAGES, PROJECTS, DOCUMENTS_A_PROJECT = 100_000, 20, 50
QUESTIONS = 100
ASKED_OVER_HTTP = 50  # below what one person may ask in a minute
TEXTS_EMBEDDED, WORDS_EMBEDDED = 5000, 40
WORDS_A_PASSAGE = 90
HNSW = "ix_passage_vectors_minilm_l6_v2_hnsw"
OVERHEAD_MS, MIN_RECALL = 10.0, 0.95


@dataclass(frozen=True)
class Stored:
    tenant_id: TenantId
    ids: list[UUID]
    vectors: NDArray[np.float32]


def main(eval_dir: Path) -> dict[str, Any]:
    folder = eval_dir / "scifact"
    texts = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").open()]
    questions = [json.loads(line)["text"] for line in (folder / "queries.jsonl").open()][:QUESTIONS]
    with tempfile.TemporaryDirectory() as scratch, shared_server(Path(scratch) / "postgres") as server:
        name = f"bench_{secrets.token_hex(4)}"
        urls = server.clone(name)
        settings = Settings(
            _env_file=None,
            data_dir=Path(scratch) / "data",
            database_url=urls.app,
            secret_key=secrets.token_hex(32),
            port=free_port(),
        )
        admin_url = f"{server.admin_url.rpartition('/')[0]}/{name}"
        with part(settings, "embedder") as embedder:
            figures, principal = asyncio.run(measure(settings, admin_url, texts, questions))
            with part(settings, "web") as web, part(settings, "worker") as worker:
                asyncio.run(ask_over_http(settings, principal, questions[:ASKED_OVER_HTTP]))
                return figures | memory_figures({"embedder": embedder, "web": web, "worker": worker})


@contextmanager
def part(settings: Settings, name: str) -> Iterator[int]:
    """A process of the product, as `pharos up` starts it; its id."""
    settings.embedder_socket.parent.mkdir(parents=True, exist_ok=True)
    assert settings.database_url is not None
    assert settings.secret_key is not None
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "pharos"), name],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(settings.data_dir),
            "PHAROS_DATA_DIR": str(settings.data_dir),
            "PHAROS_DATABASE_URL": settings.database_url,
            "PHAROS_SECRET_KEY": settings.secret_key.get_secret_value(),
            "PHAROS_PORT": str(settings.port),
        },
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


async def ask_over_http(settings: Settings, principal: Principal, questions: list[str]) -> None:
    """Search through the web process, so that its memory is that of one at work."""
    async with open_runtime(settings) as runtime:
        headers = {"Authorization": f"Bearer {await make_token(runtime, principal)}"}
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", headers=headers, timeout=60) as client:
        while True:
            try:
                (await client.get("/health/live")).raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
        for question in questions:
            (await client.post("/api/v1/search", json={"text": question})).raise_for_status()


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    db = create_database(str(settings.database_url), pool_size=2)
    client = EmbedderClient(settings)
    deadline = time.monotonic() + 60
    while await client.state() != "ready":
        if time.monotonic() > deadline:
            raise Unavailable("The embedder did not start. `pharos models prepare` makes its model.")
        await asyncio.sleep(0.2)
    vault = Vault(settings)
    yield Runtime(
        settings=settings,
        db=db,
        limits=Limits(settings, db),
        vault=vault,
        mail=MailTransport(settings),
        blobs=BlobStore(settings.blob_root),
        embedding=client,
        models=Models(settings, db, vault),
    )
    await client.close()
    await db.dispose()


async def measure(
    settings: Settings, admin_url: str, texts: list[str], questions: list[str]
) -> tuple[dict[str, Any], Principal]:
    """The figures, and an administrator of the tenant that holds the passages."""
    async with open_runtime(settings) as runtime:
        beginnings = [" ".join(text.split()[:WORDS_EMBEDDED]) for text in texts[:TEXTS_EMBEDDED]]
        base = await runtime.embedding.embed(beginnings)
        stored = await asyncio.to_thread(load, admin_url, base, texts)
        principal = operator(stored.tenant_id)
        embedding, bare, whole, recalls = [], [], [], []
        for question in [*questions[:5], *questions]:  # the first five warm the caches
            started = time.perf_counter()
            vector = (await runtime.embedding.embed([question]))[0]
            embedding.append(time.perf_counter() - started)
            bare.append(await time_statement(runtime, stored, question, vector))
            started = time.perf_counter()
            await search(runtime, principal, text=question)
            whole.append(time.perf_counter() - started)
            recalls.append(await recall_at_10(runtime, stored, question, vector))
        asker = await make_person(runtime.db, stored.tenant_id, platform_role="superadmin")
    p50 = {
        name: float(np.median(values[5:])) * 1000
        for name, values in (("embedding", embedding), ("statement", bare), ("search", whole))
    }
    overhead = p50["search"] - p50["embedding"] - p50["statement"]
    recall = float(np.mean(recalls[5:]))
    figures = {
        **{f"{name}_p50_ms": round(value, 1) for name, value in p50.items()},
        "search_p95_ms": round(float(np.percentile(whole[5:], 95)) * 1000, 1),
        "overhead_ms": round(overhead, 1),
        "overhead_ok": overhead <= OVERHEAD_MS,
        "recall_at_10": round(recall, 4),
        "recall_ok": recall >= MIN_RECALL,
        "passages": PASSAGES,
        "projects": PROJECTS,
    }
    return figures, asker


async def time_statement(runtime: Runtime, stored: Stored, question: str, vector: NDArray[np.float32]) -> float:
    """Seconds of the bare statement in an open transaction, its rows fetched and not looked at."""
    asker = operator(stored.tenant_id)
    statement, parameters = search_statement(asker), search_parameters(asker, question, vector)
    async with runtime.db.transaction(stored.tenant_id) as session:
        started = time.perf_counter()
        (await session.execute(statement, parameters)).all()
        return time.perf_counter() - started


async def recall_at_10(runtime: Runtime, stored: Stored, question: str, vector: NDArray[np.float32]) -> float:
    """The share of the ten truly nearest passages among those that the statement brings."""
    halved = vector.astype(np.float16).astype(np.float32)  # as the database compares them
    nearest = {stored.ids[row] for row in np.argsort(-(stored.vectors @ halved))[:10]}
    async with runtime.db.transaction(stored.tenant_id) as session:
        outcome = await find_passages(
            session, operator(stored.tenant_id), query_text=question, query_vector=vector, limit=200
        )
    by_distance = sorted(outcome.passages, key=lambda passage: -(passage.dense or 0.0))[:10]
    return len(nearest & {passage.passage_id for passage in by_distance}) / 10


def load(admin_url: str, base: NDArray[np.float32], texts: list[str]) -> Stored:
    """Fill the database by COPY, with the vector index made afterwards."""
    random = np.random.default_rng(7)
    words = " ".join(texts).split()
    tenant, projects = TenantId(new_id()), [new_id() for _ in range(PROJECTS)]
    documents = [(new_id(), project) for project in projects for _ in range(DOCUMENTS_A_PROJECT)]
    starts = random.integers(len(words) - WORDS_A_PASSAGE, size=PASSAGES)
    stored = Stored(tenant, [new_id() for _ in range(PASSAGES)], mixed(base, random))
    with psycopg.connect(admin_url) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(f"drop index {HNSW}")
        connection.execute("update bootstrap_state set is_initialized = true")
        connection.execute("insert into tenants (id, slug, name) values (%s, 'bench', 'Bench')", [tenant])
        size = PASSAGES // PROJECTS
        copy(
            connection,
            "projects (tenant_id, id, name, passage_count)",
            ((tenant, project, str(project), size) for project in projects),
        )
        copy(
            connection,
            "documents (tenant_id, id, project_id, name, sha256, size_bytes, media_type, status)",
            ((tenant, key, project, str(key), str(key), 1, "text/plain", "indexed") for key, project in documents),
        )
        slices = [" ".join(words[start : start + WORDS_A_PASSAGE]) for start in starts]
        copy_passages(connection, stored, documents, slices)
        connection.execute("set maintenance_work_mem = '512MB'")
        connection.execute(
            f"create index {HNSW} on passage_vectors_minilm_l6_v2 using hnsw (embedding halfvec_cosine_ops) "
            "with (m = 16, ef_construction = 64)"
        )
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
    return stored


def mixed(base: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """`PASSAGES` vectors of length 1, each between two of `base`, with the digits a `halfvec` keeps.

    Added noise would not do: it has as many dimensions as the vectors, real texts have far fewer, and no index finds
    its way among points that are all equally far away.
    """
    first, second = random.integers(len(base), size=(2, PASSAGES))
    share = random.uniform(0.5, 1.0, size=(PASSAGES, 1)).astype(np.float32)
    vectors = share * base[first] + (1 - share) * base[second]
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    return np.asarray(stored / np.linalg.norm(stored, axis=1, keepdims=True), dtype=np.float32)


def copy_passages(
    connection: psycopg.Connection[Any],
    stored: Stored,
    documents: list[tuple[UUID, UUID]],
    slices: list[str],
) -> None:
    """Passages, their vectors and terms, then what the terms add up to in each project."""
    lexicon: dict[UUID, Counter[int]] = {project: Counter() for _, project in documents}
    tenant, ids = stored.tenant_id, stored.ids
    owners = [documents[number % len(documents)] for number in range(len(ids))]
    copy(
        connection,
        "passages (tenant_id, id, project_id, document_id, ordinal, start_char, end_char, text)",
        (
            (tenant, key, project, document, number, 0, len(body), body)
            for number, (key, (document, project), body) in enumerate(zip(ids, owners, slices, strict=True))
        ),
    )
    copy(
        connection,
        "passage_vectors_minilm_l6_v2 (tenant_id, passage_id, project_id, embedding)",
        (
            (tenant, key, project, dense_literal(vector))
            for key, (_, project), vector in zip(ids, owners, stored.vectors, strict=True)
        ),
    )
    copy(
        connection,
        "passage_terms (tenant_id, passage_id, project_id, terms)",
        counted(tenant, ids, owners, slices, lexicon),
    )
    copy(
        connection,
        "lexicon (tenant_id, project_id, term, passages)",
        ((tenant, project, term, number) for project in lexicon for term, number in lexicon[project].items()),
    )


def counted(
    tenant: UUID, ids: list[UUID], owners: list[tuple[UUID, UUID]], slices: list[str], lexicon: dict[UUID, Counter[int]]
) -> Iterator[tuple[object, ...]]:
    """Rows of terms; each is counted into its project's lexicon on the way."""
    for key, (_, project), body in zip(ids, owners, slices, strict=True):
        terms = terms_of(body, "english")
        lexicon[project].update(terms.keys())
        yield tenant, key, project, sparse_literal(terms)


def copy(connection: psycopg.Connection[Any], target: str, rows: Iterator[tuple[object, ...]]) -> None:
    with connection.cursor().copy(f"copy {target} from stdin".encode()) as stream:
        for row in rows:
            stream.write_row(row)

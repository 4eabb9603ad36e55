"""What the access filter costs: the same searches by a member of 200 groups and by an administrator, 5,000 projects.

Every project is private and reaches the member through a group, so both search the same passages and the ratio is the
filter's alone. Vectors are random: only time is measured here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from benchmarks.search import Stored, copy, copy_passages
from numpy.typing import NDArray
from tests.postgres import shared_server

from pharos.identity.principal import Principal
from pharos.infra.db import Database, create_database
from pharos.infra.ids import TenantId, UserId, new_id
from pharos.retrieval.search import search_parameters, search_statement

PROJECTS, GROUPS, OTHER_PEOPLE = 5000, 200, 200
PASSAGES_A_PROJECT = 4
WORDS_A_PASSAGE = 90
QUESTIONS, WARM_UP = 60, 10
MAX_RATIO = 1.3


@dataclass(frozen=True)
class Loaded:
    stored: Stored
    administrator: Principal
    member: Principal


def main(eval_dir: Path) -> dict[str, Any]:
    folder = eval_dir / "scifact"
    words = " ".join(json.loads(line)["text"] for line in (folder / "corpus.jsonl").open()).split()
    questions = [json.loads(line)["text"] for line in (folder / "queries.jsonl").open()][: QUESTIONS + WARM_UP]
    with tempfile.TemporaryDirectory() as scratch, shared_server(Path(scratch) / "postgres") as server:
        name = f"bench_{secrets.token_hex(4)}"
        urls = server.clone(name)
        loaded = load(f"{server.admin_url.rpartition('/')[0]}/{name}", words)
        return asyncio.run(measure(urls.app, loaded, questions))


async def measure(url: str, loaded: Loaded, questions: list[str]) -> dict[str, Any]:
    """Each question by both, one right after the other and in changing order, so that the machine treats them alike."""
    db = create_database(url, pool_size=2)
    random = np.random.default_rng(11)
    times: dict[str, list[float]] = {"administrator": [], "member": []}
    for number, question in enumerate(questions):
        vector = loaded.stored.vectors[random.integers(len(loaded.stored.vectors))]
        asked = {"administrator": loaded.administrator, "member": loaded.member}
        for who in sorted(asked, reverse=number % 2 == 0):
            times[who].append(await time_search(db, asked[who], question, vector))
    await db.dispose()
    p50 = {who: float(np.median(values[WARM_UP:])) * 1000 for who, values in times.items()}
    ratio = p50["member"] / p50["administrator"]
    return {
        **{f"{who}_p50_ms": round(value, 1) for who, value in p50.items()},
        "ratio": round(ratio, 3),
        "ratio_ok": ratio <= MAX_RATIO,
        "projects": PROJECTS,
        "groups": GROUPS,
        "passages": PROJECTS * PASSAGES_A_PROJECT,
    }


async def time_search(db: Database, principal: Principal, question: str, vector: NDArray[np.float32]) -> float:
    """Seconds of the search statement, its rows fetched and not looked at."""
    statement, parameters = search_statement(principal), search_parameters(principal, question, vector)
    async with db.transaction(principal.tenant_id) as session:
        started = time.perf_counter()
        (await session.execute(statement, parameters)).all()
        return time.perf_counter() - started


def load(admin_url: str, words: list[str]) -> Loaded:
    """Fill the database by COPY: projects, passages, people, groups, and a grant to one group for each project."""
    random = np.random.default_rng(7)
    tenant, projects = TenantId(new_id()), [new_id() for _ in range(PROJECTS)]
    documents = [(new_id(), project) for project in projects]
    number = PROJECTS * PASSAGES_A_PROJECT
    vectors = random.normal(size=(number, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = Stored(tenant, [new_id() for _ in range(number)], vectors)
    starts = random.integers(len(words) - WORDS_A_PASSAGE, size=number)
    people = [new_id() for _ in range(2 + OTHER_PEOPLE)]
    with psycopg.connect(admin_url) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("insert into tenants (id, slug, name) values (%s, 'bench', 'Bench')", [tenant])
        copy(
            connection,
            "projects (tenant_id, id, name, is_private, passage_count)",
            ((tenant, project, str(project), True, PASSAGES_A_PROJECT) for project in projects),
        )
        copy(
            connection,
            "documents (tenant_id, id, project_id, name, sha256, size_bytes, media_type, status)",
            ((tenant, key, project, str(key), str(key), 1, "text/plain", "indexed") for key, project in documents),
        )
        slices = [" ".join(words[start : start + WORDS_A_PASSAGE]) for start in starts]
        copy_passages(connection, stored, documents, slices)
        load_access(connection, tenant, projects, people)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
    administrator = Principal(tenant, UserId(people[0]), "admin", platform_role="admin")
    return Loaded(stored, administrator, Principal(tenant, UserId(people[1]), "member"))


def load_access(
    connection: psycopg.Connection[Any], tenant: TenantId, projects: list[UUID], people: list[UUID]
) -> None:
    """The second person is in every group; the others, in ten each, are there to be passed over."""
    groups = [new_id() for _ in range(GROUPS)]
    roles = ["admin", *(["none"] * (len(people) - 1))]
    copy(connection, "users (id, email, name)", ((person, f"{person}@example.org", "P") for person in people))
    copy(
        connection,
        "memberships (tenant_id, user_id, platform_role)",
        ((tenant, person, role) for person, role in zip(people, roles, strict=True)),
    )
    copy(connection, "groups (tenant_id, id, name)", ((tenant, group, str(group)) for group in groups))

    def members() -> Iterator[tuple[object, ...]]:
        for number, person in enumerate(people[1:]):
            mine = groups if number == 0 else [groups[(number * 10 + step) % GROUPS] for step in range(10)]
            yield from ((tenant, group, person) for group in mine)

    copy(connection, "group_members (tenant_id, group_id, user_id)", members())
    copy(
        connection,
        "project_grants (tenant_id, id, project_id, grantee_kind, grantee_id, tier)",
        (
            (tenant, new_id(), project, "group", groups[number % GROUPS], "use")
            for number, project in enumerate(projects)
        ),
    )

"""What an answer costs on its way through the product: until its first word, and for each word of many at once.

Three parties with a process each: a provider that says 20 words a second and writes on each when it said it
(`paced_provider`), the web process of a whole installation, and the askers, who only note when bytes came and read them
when all is over. Each figure is taken with the askers at the provider itself and through the product, in one run: what
the machine, the provider and the askers cost by themselves is in both.

- First word: the bare call, the same search and the product's answer, one after the other, `FIRST_WORDS` times.
- Words: `STREAMS` answers at once. Looked at are the words said while all of them run; none may be missing in the
  whole run, from the first to the last. A word's delay is what the product adds to its way, at the 95th percentile, and
  the bound is a share of the time between two words. Memory is the most that was seen while they ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from benchmarks.scratch import Scratch, scratch_installation

from pharos.access.models import Project
from pharos.identity.principal import operator
from pharos.identity.setup import NewPerson, add_person
from pharos.identity.sign_in import open_session
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import ProjectId, TenantId
from pharos.library.texts import NamedText, index_texts
from pharos.retrieval.search import search
from pharos.runtime import Runtime, open_runtime

STREAMS = int(os.environ.get("STREAMS", "200"))
WORDS, WORDS_A_SECOND = 600, 20.0
START_EVERY_SECONDS = 0.1
"""Starting costs a search and is measured apart: everybody at once would measure a queue of searches."""
FIRST_WORDS = 20
MEMORY_EVERY_SECONDS = 2.0
MAX_FIRST_WORD_MS, MAX_DELAY_SHARE, MAX_WEB_MB = 30.0, 0.10, 400.0
FACTS = (
    "The lighthouse of Alexandria was built on the island of Pharos.",
    "The keeper trims the lamp of the lighthouse every evening at sunset.",
    "The harbour of Alexandria was deepened in the reign of Ptolemy.",
)
QUESTION = "Where was the lighthouse of Alexandria built?"
IN_SHORT = "Where, in short, was the lighthouse of Alexandria built?"
WORD = re.compile(rb" t(\d+)@(\d+\.\d+)#")


@dataclass(frozen=True)
class World:
    """One project, and a person for every stream: nobody asks more often than the limits allow."""

    tenant_id: TenantId
    project_id: ProjectId
    tokens: list[str]


@dataclass
class Heard(asyncio.Protocol):
    """What came over one connection and when, as it came."""

    request: bytes
    over: asyncio.Future[None]
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.monotonic(), data))

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def words(self) -> list[tuple[int, float, float]]:
        """(number, when it was said, when it had come whole), in the order they came, without those of `done`."""
        body, ends = b"", []
        for came, piece in self.pieces:
            body += piece
            ends.append((len(body), came))
        found, at = [], 0
        stop = body.find(b"event: done")
        for word in WORD.finditer(body, 0, stop if stop >= 0 else len(body)):
            while ends[at][0] < word.end():
                at += 1
            found.append((int(word[1]), float(word[2]), ends[at][1]))
        return found


Ask = Callable[[int], tuple[str, bytes]]
"""The address and the request of asker number n."""


def main(eval_dir: Path) -> dict[str, Any]:
    """Needs no evaluation set."""
    with paced_provider(WORDS, WORDS_A_SECOND) as (url, speaker):
        operator_says = {"PHAROS_LLM_URL": url, "PHAROS_LLM_MODEL": "paced"}
        with scratch_installation(**operator_says) as scratch:
            return asyncio.run(measure(scratch, url, speaker))


@contextmanager
def paced_provider(words: int, words_a_second: float) -> Iterator[tuple[str, psutil.Process]]:
    """Its base URL and its process."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.paced_provider", str(port), str(words), str(words_a_second)]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent) as process:
        try:
            yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
        finally:
            process.kill()


async def measure(scratch: Scratch, url: str, speaker: psutil.Process) -> dict[str, Any]:
    """Times are milliseconds, loads are shares of one core while all streams ran (and began)."""
    async with open_runtime(scratch.settings) as runtime:
        world = await _make_world(runtime)
        home = scratch.settings.base_url
        first = await _first_words(runtime, world, _bare(url, IN_SHORT), _product(home, world, IN_SHORT))
    figures: dict[str, Any] = {}
    for name, ask in (("bare", _bare(url, QUESTION)), ("product", _product(home, world, QUESTION))):
        used = {"askers": _processor(psutil.Process()), "provider": _processor(speaker)}
        web, started = scratch.processor_seconds("web"), time.monotonic()
        async with _watch_memory(scratch) as megabytes:
            heard = await _listen(ask)
        seconds = time.monotonic() - started
        figures[name] = _delays(heard) | {
            "askers_load": round((_processor(psutil.Process()) - used["askers"]) / seconds, 2),
            "provider_load": round((_processor(speaker) - used["provider"]) / seconds, 2),
            "web_load": round((scratch.processor_seconds("web") - web) / seconds, 2),
        }
    memory = max(megabytes)  # of the last round, which went through the product
    added = figures["product"]["delay_p95_ms"] - figures["bare"]["delay_p95_ms"]
    share = added / (1000 / WORDS_A_SECOND)
    return first | {
        "streams": STREAMS,
        **{f"{name}_{key}": value for name, values in figures.items() for key, value in values.items()},
        "no_word_lost_ok": figures["product"]["lost"] == 0,
        "added_p95_ms": round(added, 1),
        "added_share": round(share, 3),
        "added_ok": share <= MAX_DELAY_SHARE,
        "web_memory_peak_mb": memory,
        "web_memory_ok": memory < MAX_WEB_MB,
    }


async def _make_world(runtime: Runtime) -> World:
    tenant_id = await ensure_default_tenant(runtime)
    async with runtime.db.transaction(tenant_id) as session:
        project = Project(tenant_id=tenant_id, name="Alexandria")
        session.add(project)
        people = [
            await add_person(session, tenant_id, NewPerson(name="A Person", email=f"p{n}@example.org"), None)
            for n in range(STREAMS + FIRST_WORDS)
        ]
        await session.flush()
        project_id = ProjectId(project.id)
    await index_texts(runtime, tenant_id, project_id, [NamedText(f"{n}.txt", fact) for n, fact in enumerate(FACTS)])
    tokens = [(await open_session(runtime, person)).access_token for person in people]
    return World(tenant_id, project_id, tokens)


def _bare(url: str, question: str) -> Ask:
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": "paced", "stream": True, "messages": messages}).encode()
    return lambda _number: (url, _post(f"{urlsplit(url).path}/chat/completions", body, ""))


def _product(url: str, world: World, question: str) -> Ask:
    def ask(number: int) -> tuple[str, bytes]:
        # Nobody has asked these very words before: no answer comes from the cache.
        body = json.dumps({"question": f"{question} ({number})"}).encode()
        return url, _post(f"/chat/projects/{world.project_id}", body, world.tokens[number])

    return ask


def _post(path: str, body: bytes, token: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _open(ask: Ask, number: int) -> tuple[asyncio.Transport, Heard]:
    url, request = ask(number)
    loop, address = asyncio.get_running_loop(), urlsplit(url)
    return await loop.create_connection(
        lambda: Heard(request, loop.create_future()), address.hostname or "127.0.0.1", address.port or 80
    )


async def _first_words(runtime: Runtime, world: World, bare: Ask, product: Ask) -> dict[str, Any]:
    """Medians, taken in turn."""
    principal = operator(world.tenant_id)
    seconds: dict[str, list[float]] = {"bare": [], "search": [], "product": []}
    for number in range(STREAMS, STREAMS + FIRST_WORDS):
        seconds["bare"].append(await _first_word(bare, number))
        started = time.perf_counter()
        await search(runtime, principal, text=f"{IN_SHORT} ({number}, again)", project_id=world.project_id)
        seconds["search"].append(time.perf_counter() - started)
        seconds["product"].append(await _first_word(product, number))
    p50 = {name: statistics.median(values[2:]) * 1000 for name, values in seconds.items()}
    added = p50["product"] - p50["bare"] - p50["search"]
    return {
        **{f"first_word_{name}_p50_ms": round(value, 1) for name, value in p50.items()},
        "first_word_added_ms": round(added, 1),
        "first_word_ok": added <= MAX_FIRST_WORD_MS,
    }


async def _first_word(ask: Ask, number: int) -> float:
    """Seconds from the start of the connection; the answer is then heard to its end, so that the next one is alone."""
    started = time.monotonic()
    _, heard = await _open(ask, number)
    await heard.over
    words = heard.words()
    if not words:
        raise RuntimeError(f"no word came: {heard.pieces}")
    return words[0][2] - started


@asynccontextmanager
async def _watch_memory(scratch: Scratch) -> AsyncIterator[list[float]]:
    """What the web process holds, looked at again and again while the block runs."""
    seen: list[float] = []

    async def look() -> None:
        while True:
            seen.append((await asyncio.to_thread(scratch.memory))["memory_mb"]["web"])
            await asyncio.sleep(MEMORY_EVERY_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _listen(ask: Ask) -> list[Heard]:
    """All streams from beginning to end."""
    heard = []
    for number in range(STREAMS):
        heard.append((await _open(ask, number))[1])
        await asyncio.sleep(START_EVERY_SECONDS)
    await asyncio.gather(*(one.over for one in heard))
    return heard


def _delays(heard: list[Heard]) -> dict[str, Any]:
    streams = [one.words() for one in heard]
    torn = [one for one, words in zip(heard, streams, strict=True) if [word[0] for word in words] != list(range(WORDS))]
    begun = [words for words in streams if words]
    since, until = max(words[0][1] for words in begun), min(words[-1][1] for words in begun)
    seen = [(came - said) * 1000 for words in begun for _, said, came in words if since <= said <= until]
    if len(seen) < 100:
        raise RuntimeError(f"the streams never ran all at once: {since - until:.1f} s too short, {len(torn)} not whole")
    cuts = statistics.quantiles(seen, n=100)
    return {
        "lost": len(torn),
        "lost_end_with": [one.pieces[-1][1][-300:].decode(errors="replace") for one in torn[:3] if one.pieces],
        "words_seen": len(seen),
        "delay_p50_ms": round(cuts[49], 1),
        "delay_p95_ms": round(cuts[94], 1),
        "delay_p99_ms": round(cuts[98], 1),
    }


def _processor(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))

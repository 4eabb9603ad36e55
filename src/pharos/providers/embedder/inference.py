"""The texts of all callers in one queue, worked off a text at a time by one thread a core."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pharos.infra.errors import Unavailable
from pharos.providers.embedder.known import KnownVectors, text_key
from pharos.providers.embedder.minilm import DIMENSION
from pharos.providers.embedder.model import LocalModel, usable_cores

SMALL_REQUEST_TEXTS = 4  # a person's question, which goes before the passages of a document
MAX_QUEUED_TEXTS = 4096  # about a minute of work; who comes later is told to come again
SMALL, BULK, STOP = 1, 2, 0


@dataclass
class Request:
    """One caller's texts that are not known, as tokens; `vectors` has a row for each of its texts, known or not, and
    `rows` says which are still to come, in any order."""

    tokens: list[NDArray[np.int64]]
    rows: list[int]
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.rows)


class Inference:
    """Threads around a model; `close` ends them and leaves what is queued undone."""

    def __init__(self, model: LocalModel, *, threads: int | None = None, known: KnownVectors | None = None) -> None:
        self._model, self._known = model, known or {}
        self._queue: queue.PriorityQueue[tuple[int, int, int, Request | None]] = queue.PriorityQueue()
        self._arrivals = itertools.count()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{number}", daemon=True)
            for number in range(threads or usable_cores())
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        return self._queue.qsize()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), 384) in the order of `texts`. Raises `Unavailable` when too much waits already."""
        vectors, rows = self._look_up(texts)
        if not rows:
            return vectors
        if self.queued + len(rows) > MAX_QUEUED_TEXTS:
            raise Unavailable("The embedder has too much to do. Try again in a minute.", code="embedder_busy")
        tokens = await asyncio.to_thread(self._model.tokenize, [texts[row] for row in rows])
        request = Request(tokens, rows, vectors, asyncio.get_running_loop().create_future())
        priority = SMALL if len(rows) <= SMALL_REQUEST_TEXTS else BULK
        arrival = next(self._arrivals)
        for number in range(len(rows)):
            self._queue.put((priority, arrival, number, request))
        await request.done
        return vectors

    def _look_up(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[int]]:
        """A row for each text, and the rows that must be computed."""
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        if not self._known:
            return vectors, list(range(len(texts)))
        rows: list[int] = []
        for row, text in enumerate(texts):
            if (vector := self._known.get(text_key(text))) is None:
                rows.append(row)
            else:
                vectors[row] = vector
        return vectors, rows

    def close(self) -> None:
        for number in range(len(self._threads)):
            self._queue.put((STOP, -1, number, None))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            _, _, number, request = self._queue.get()
            if request is None:
                return
            if request.done.cancelled():  # the caller is gone; cancelling is final, so that a stale look costs a text
                continue
            try:
                request.vectors[request.rows[number]] = self._model.embed_tokens(request.tokens[number])
            except Exception as error:  # noqa: BLE001 - the thread must live; the caller gets the error
                _settle(request, error)
                continue
            with self._lock:
                request.missing -= 1
                is_last = request.missing == 0
            if is_last:
                _settle(request, None)


def _settle(request: Request, error: Exception | None) -> None:
    def settle() -> None:
        if request.done.done():
            return
        if error is None:
            request.done.set_result(None)
        else:
            request.done.set_exception(error)

    loop = request.done.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)

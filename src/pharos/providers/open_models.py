"""Connections to providers, kept open between calls: a new one would cost each answer a handshake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pharos.providers.contract import Candidate, ChatModel, VectorModel

MOST_IDLE = 32
Model = TypeVar("Model", ChatModel, VectorModel)


@dataclass
class _Open(Generic[Model]):
    model: Model
    users: int = 0


class OpenModels(Generic[Model]):
    """One client for each candidate; another key or address is another candidate. The longest unused ones go first."""

    def __init__(self, open_model: Callable[[Candidate], Model]) -> None:
        self._open_model: Callable[[Candidate], Model] = open_model
        self._open: dict[Candidate, _Open[Model]] = {}

    @asynccontextmanager
    async def use(self, candidate: Candidate) -> AsyncIterator[Model]:
        """The candidate's client, opened if it is not; it stays open at least as long as the block."""
        opened = self._open.pop(candidate, None)
        if opened is None:
            # In a thread: the first time the SDK is imported, and each time certificates are read.
            fresh = _Open(await asyncio.to_thread(self._open_model, candidate))
            opened = self._open.pop(candidate, None) or fresh
            if opened is not fresh:
                await fresh.model.close()
        self._open[candidate] = opened
        opened.users += 1
        try:
            yield opened.model
        finally:
            opened.users -= 1
            await self._close_idle()

    async def close(self) -> None:
        """Close all of them."""
        opened, self._open = list(self._open.values()), {}
        for one in opened:
            await one.model.close()

    async def _close_idle(self) -> None:
        idle = [candidate for candidate, opened in self._open.items() if opened.users == 0]
        for candidate in idle[: max(len(self._open) - MOST_IDLE, 0)]:
            await self._open.pop(candidate).model.close()

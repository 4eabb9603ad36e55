"""What other processes announce through the database: one line a process, whoever wants to hear.

A notice is a hint that rows have changed; the rows are the truth. Whoever hears must also look by themselves now and
then, since nothing is announced while the line is down.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from pharos.infra.errors import PharosError
from pharos.infra.logs import get_logger

log = get_logger(__name__)

LISTEN_AGAIN_SECONDS = 1.0
# A line that died without a word is noticed within 20 seconds, well before what rests on it is old.
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}


class Notices:
    """The one line of a process. Name the channels before it opens: it asks for them once."""

    def __init__(self) -> None:
        self.is_open = False
        self._heard: defaultdict[str, list[Callable[[str], None]]] = defaultdict(list)
        self._opened: list[Callable[[], None]] = []
        self._lost: list[Callable[[], None]] = []

    def on(
        self,
        channel: str,
        heard: Callable[[str], None],
        *,
        opened: Callable[[], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """Call `heard` with each payload of a channel, `opened` when the line stands, `lost` when it has ended."""
        self._heard[channel].append(heard)
        self._opened += [opened] if opened else []
        self._lost += [lost] if lost else []

    async def listen(self, url: str) -> None:
        """Hear until the connection ends. `url` must reach Postgres directly: a transaction pooler breaks LISTEN."""
        try:
            async with await psycopg.AsyncConnection.connect(
                url, autocommit=True, connect_timeout=10, **KEEPALIVE
            ) as line:
                for channel in self._heard:
                    await line.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                self.is_open = True
                for opened in self._opened:
                    opened()
                async for notice in line.notifies():
                    for heard in self._heard[notice.channel]:
                        heard(notice.payload)
        finally:
            self.is_open = False
            for lost in self._lost:
                lost()

    async def keep_listening(self, url: str) -> None:
        """Hear until cancelled, over a new connection whenever one is lost."""
        while True:
            try:
                await self.listen(url)
            except (psycopg.Error, OSError, PharosError) as error:
                log.warning("notices.not_heard", error=type(error).__name__)
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

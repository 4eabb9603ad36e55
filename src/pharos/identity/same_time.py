"""Answers that take the same time, whatever was done for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ANSWER_SECONDS = 0.3
"""Long enough for the slower case, so that the time of an answer says nothing about an address."""


@asynccontextmanager
async def same_time() -> AsyncIterator[None]:
    """The block ends no sooner than `ANSWER_SECONDS` after its begin, also when it raises."""
    ends_at = time.monotonic() + ANSWER_SECONDS
    try:
        yield
    finally:
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))

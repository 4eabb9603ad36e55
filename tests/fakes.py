"""Models for tests: deterministic, in the process, at no cost."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pharos.providers.calls import Models
from pharos.providers.contract import ChatModel, ChatRequest, ModelState
from pharos.runtime import Runtime


class FakeEmbedding:
    """Each word is a direction, a text the sum of its words: texts that share words are near each other."""

    name = "minilm-l6-v2"
    dimension = 384
    max_tokens = 256

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [self._vector(text) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimension)

    async def state(self) -> ModelState:
        return "ready"

    def _vector(self, text: str) -> NDArray[np.float64]:
        total = np.zeros(self.dimension)
        for word in re.findall(r"\w+", text.lower()) or [""]:
            total += direction(word)
        return total / np.linalg.norm(total)


@lru_cache(10_000)
def direction(word: str) -> NDArray[np.float64]:
    """The same in every process."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(FakeEmbedding.dimension)


class FakeChat:
    """Says `reply` word by word and keeps what it was asked."""

    name = "fake-chat"

    def __init__(self, reply: str = "It is so [1].") -> None:
        self.reply = reply
        self.requests: list[ChatRequest] = []

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        for word in re.findall(r"\S+\s*", self.reply):
            yield word

    async def list_models(self) -> list[str]:
        return [self.name]

    async def close(self) -> None:
        """Nothing is open."""


def with_model(runtime: Runtime, model: ChatModel | None) -> Runtime:
    """The same world in which the operator has named `model`; it has a breaker and a budget of its own."""
    if model is None:
        return runtime
    address = f"http://{secrets.token_hex(6)}.invalid/v1"
    settings = runtime.settings.model_copy(update={"llm_url": address, "llm_model": model.name})
    return replace(runtime, models=Models(settings, runtime.db, runtime.vault, open_model=lambda _: model))

"""What a model is to the rest of Pharos. A provider translates to and from this, and does nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # a command that needs no vector need not wait for their library
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ChatMessage:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    messages: tuple[ChatMessage, ...]
    max_tokens: int = 1024
    temperature: float = 0.0


ModelState = Literal["ready", "loading", "down"]


class EmbeddingModel(Protocol):
    """Texts to vectors. The same text gives the same vector whatever stands beside it."""

    name: str
    dimension: int
    max_tokens: int

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), dimension), rows of length 1, in the order of `texts`.

        Raises `Unavailable` when the model does not answer.
        """
        ...

    async def state(self) -> ModelState:
        """Whether it answers now, will soon, or is not there."""
        ...


class ChatModel(Protocol):
    """A conversation to streamed text."""

    name: str

    def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        """Pieces of the answer in order. Raises `Unavailable`, `LimitReached` or `NotAllowed` (a bad key)."""
        ...

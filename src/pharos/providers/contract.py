"""What a model is to the rest of Pharos. A provider translates to and from this, and does nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # a command that needs no vector need not wait for their library
    import numpy as np
    from numpy.typing import NDArray

SILENCE_SECONDS = 30.0
"""How long a provider may say nothing, before its first word or between two: whoever asked waits for quotations."""
PATIENT_SILENCE_SECONDS = 60.0
"""The same for a local server, which may have to load the model first, and for vectors, which come all at once."""

Kind = Literal["openai", "anthropic", "local"]


@dataclass(frozen=True)
class ChatMessage:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """`temperature` goes to vendors who take one: Anthropic does not, nor OpenAI for models that think first."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int = 1024
    temperature: float = 0.0


@dataclass(frozen=True)
class VectorRequest:
    """Texts, none of them empty. `dimension`: how long their vectors shall be; None: as long as the model's are."""

    texts: tuple[str, ...]
    dimension: int | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one call; `is_estimate`: the provider did not count them, they are guessed from the text."""

    prompt_tokens: int
    completion_tokens: int
    is_estimate: bool = False


@dataclass(frozen=True)
class Price:
    """Micro-dollars for a million tokens of question and of answer."""

    input_micro: int
    output_micro: int


CutReason = Literal["length", "content_filter"]


@dataclass(frozen=True)
class Cut:
    """The answer ends, but not because the model was done: its length was used up, or the vendor's filter ended it.

    It is no failure: what came is shown, and said to be cut.
    """

    reason: CutReason


@dataclass(frozen=True)
class Candidate:
    """One model of one provider that may be called, with what the call needs.

    `state_key` names its breaker and budget; `label` names it in metrics. `allows_private`: its address may be of this
    machine or of a private network, which is the operator's own word. `is_listed`: its provider names the model; what
    it does not name anybody may wish for, so that one has no name in metrics. `price`: what an administrator states.
    """

    provider: str
    kind: Kind
    base_url: str | None
    model: str
    state_key: str
    label: str
    key: str | None = field(default=None, repr=False)
    key_prefix: str = ""
    preset: str | None = None
    is_shared: bool = False
    allows_private: bool = False
    requests_per_minute: int | None = None
    status_page: str | None = None
    price: Price | None = None
    is_listed: bool = True


@dataclass
class Call:
    """What became of one call; filled while it runs.

    `purpose` says what it is for, in metrics and in the record of spend. `cost_micro` is None where no price is known.
    `failed_over_from` are the providers that were tried before, in order. `first_token_seconds` counts from the call.
    `cut` is why the answer ends before its end, None where it does not.
    """

    purpose: str = "answer"
    provider: str = ""
    model: str = ""
    usage: Usage | None = None
    cost_micro: int | None = None
    seconds: float = 0.0
    first_token_seconds: float | None = None
    failed_over_from: tuple[str, ...] = ()
    cut: CutReason | None = None


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

    def stream(self, request: ChatRequest) -> AsyncIterator[str | Usage | Cut]:
        """Pieces of the answer in order, once what it took, if the provider says, and whether it was cut.

        Raises, with the provider's own words in `cause_words` (its status first, the key taken out):
        `NotAllowed` (`provider_key_refused`: 401 and 403; `provider_credit_used_up`: 402, and a 429 that ends when
        somebody pays), `LimitReached` (`provider_rate_limited`, with the seconds the provider asks to wait),
        `Unavailable` (`provider_unreachable`, `provider_timed_out`, `provider_failed`, `provider_answer_bad`: not JSON,
        cut off, too long; `no_such_model`) and `Invalid` (`provider_refused`: 400, such as a prompt that is too long).
        """
        ...

    async def list_models(self) -> list[str]:
        """The names the provider offers, in its order. Raises what `stream` raises."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class VectorModel(Protocol):
    """Texts to vectors, at a provider. `EmbeddingModel` is the one of this installation, which search rests on."""

    name: str

    async def embed(self, request: VectorRequest) -> tuple[NDArray[np.float32], Usage | None]:
        """A row of length 1 for each text, in their order, and what it took, if the provider says.

        Raises what `ChatModel.stream` raises; `provider_answer_bad` also for another number of rows than texts, rows of
        different lengths or of another one than `dimension`, and what is no number or nothing.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


OpenModel = Callable[[Candidate], ChatModel]
OpenVectorModel = Callable[[Candidate], VectorModel]

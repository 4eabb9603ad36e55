"""The embedder seen from web and worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx
import numpy as np
from numpy.typing import NDArray

from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.logs import current_request_id
from pharos.infra.settings import Settings
from pharos.providers.contract import ModelState
from pharos.providers.embedder.minilm import DIMENSION, MAX_CHARACTERS, MAX_TOKENS, MODEL_NAME

TEXTS_PER_REQUEST = 64  # about a second and a half of work on two cores
KEEP_IDLE_SECONDS = 30.0
# A bulk request may wait for those before it.
TIMEOUT = httpx.Timeout(120.0, connect=2.0)


class EmbedderClient:
    """An `EmbeddingModel` in another process; it is first contacted with the first text."""

    name = MODEL_NAME
    dimension = DIMENSION
    max_tokens = MAX_TOKENS

    def __init__(self, settings: Settings) -> None:
        self._where = settings.embedder_url or str(settings.embedder_socket)
        # proxies of the environment are for the internet, not for a neighbour
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=None if settings.embedder_url else str(settings.embedder_socket),
                limits=httpx.Limits(keepalive_expiry=KEEP_IDLE_SECONDS),
            ),
            base_url=settings.embedder_url or "http://embedder",
            timeout=TIMEOUT,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def state(self) -> ModelState:
        """`down` when no embedder answers within five seconds."""
        try:
            status = (await self._http.get("/health", timeout=5.0)).json()["status"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "down"
        return "ready" if status == "ready" else "loading"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), 384), rows of length 1, in the order of `texts`. Raises `Unavailable` with what to do."""
        parts = [await self._embed_part(part) for part in _parts(texts)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), dtype=np.float32)

    async def _embed_part(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # the model would cut them there too
        body = {"texts": [text[:MAX_CHARACTERS] for text in texts]}
        try:
            headers = {"X-Request-Id": current_request_id()}
            reply = await self._http.post("/embed", json=_without_half_characters(body), headers=headers)
        except httpx.TimeoutException as error:
            raise Unavailable(
                "The embedder is too slow to answer. `pharos logs embedder` shows what it does.", code="embedder_slow"
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"The embedder does not answer at {self._where}. Start it with `pharos up`;"
                " `pharos logs embedder` says why it stopped.",
                code="embedder_down",
            ) from error
        if reply.status_code != 200:
            raise _refusal(reply)
        return _read_vectors(reply, rows=len(texts))


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        yield texts[start : start + TEXTS_PER_REQUEST]


def _without_half_characters(body: dict[str, list[str]]) -> dict[str, list[str]]:
    """Half surrogates, which come from broken documents, have no UTF-8."""
    return {key: [text.encode("utf-8", "replace").decode() for text in texts] for key, texts in body.items()}


def _refusal(reply: httpx.Response) -> PharosError:
    try:
        answer = reply.json()
        return Unavailable(str(answer["message"]), code=str(answer["error"]))
    except (ValueError, KeyError, TypeError):
        return Unavailable(
            f"The embedder answered {reply.status_code}. `pharos logs embedder` says why.", code="embedder_failed"
        )


def _read_vectors(reply: httpx.Response, *, rows: int) -> NDArray[np.float32]:
    model = reply.headers.get("x-pharos-model")
    found = (reply.headers.get("x-pharos-rows"), reply.headers.get("x-pharos-dimension"), len(reply.content))
    if model != MODEL_NAME or found != (str(rows), str(DIMENSION), rows * DIMENSION * 4):
        raise Unavailable(
            f"The embedder sent {found[0]} vectors of dimension {found[1]} from {model};"
            f" {rows} of dimension {DIMENSION} from {MODEL_NAME} were expected. Run the same release everywhere.",
            code="embedder_differs",
        )
    vectors = np.frombuffer(reply.content, dtype="<f4").reshape(rows, DIMENSION).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise Unavailable("The embedder sent numbers that are none. Run `pharos models prepare`.", code="embedder_nan")
    return vectors

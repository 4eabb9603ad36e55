"""What OpenAI's clients send and read, and what it means here. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from pharos.infra.errors import Invalid, LimitReached, NotAllowed, NotFound, NotSignedIn, PharosError
from pharos.infra.http import error_headers, request_id_of

END = "data: [DONE]\n\n"
MAX_MESSAGES = 200


class Part(BaseModel):
    """A piece of a message; only text can be answered here."""

    type: str
    text: str = ""


class Said(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Completion(BaseModel):
    """A conversation whose last message is the question.

    Instructions in it (`system`, `developer`) are not followed: those of the project are. How the model samples is
    Pharos's choice as well, so `temperature` and its like change nothing.
    """

    model: Annotated[
        str,
        Field(
            max_length=400,
            description="`pharos/PROJECT`, by its name in lower case with hyphens or by its id; "
            "`pharos/PROJECT@provider/model` names the model to ask as well.",
        ),
    ]
    messages: Annotated[list[Said], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


def read_conversation(body: Completion) -> tuple[str, list[tuple[str, str]]]:
    """The question and what was said before it, as (role, text). Raises `Invalid` for what cannot be answered here."""
    if body.tools or (body.n or 1) != 1 or (body.response_format or {"type": "text"}).get("type") != "text":
        raise Invalid("Answers here are one text: leave out tools, n and response_format.", code="unsupported")
    if any(part.type != "text" for said in body.messages if isinstance(said.content, list) for part in said.content):
        raise Invalid("Messages here are text; leave out images, sound and files.", code="unsupported")
    spoken = [(said.role, _text(said.content)) for said in body.messages if said.role in {"user", "assistant"}]
    spoken = [(role, text) for role, text in spoken if text]
    if not spoken or spoken[-1][0] != "user":
        raise Invalid("The last message is the question: give it the role “user”.", code="bad_question")
    return spoken[-1][1], [*spoken[:-1]]


def _text(content: str | list[Part] | None) -> str:
    parts = content if isinstance(content, list) else []
    return content.strip() if isinstance(content, str) else "\n".join(part.text for part in parts).strip()


def completion(model: str, message_id: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer; `facts` stand beside OpenAI's own fields."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": _ended(facts)}
    return _base(model, message_id, "chat.completion") | {"choices": [choice]} | dict(facts)


def chunk(model: str, message_id: str, delta: Mapping[str, str], *, facts: Mapping[str, Any] | None = None) -> str:
    """One event of a streamed answer; the one with `facts` is its last."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": None if facts is None else _ended(facts)}
    return _line(_base(model, message_id, "chat.completion.chunk") | {"choices": [choice]} | dict(facts or {}))


def usage_chunk(model: str, message_id: str, usage: Mapping[str, Any] | None) -> str:
    """What a client gets after the answer that asked what it took; null where nobody has counted."""
    return _line(_base(model, message_id, "chat.completion.chunk") | {"choices": [], "usage": usage})


def error_line(error: PharosError, *, request_id: str) -> str:
    """The event that ends a stream which failed."""
    return _line({"error": _error(error, request_id)})


def openai_error(request: Request, error: PharosError) -> Response:
    """An error as OpenAI's clients read it: their shape, our code and status."""
    body = {"error": _error(error, request_id_of(request))}
    return JSONResponse(jsonable_encoder(body), status_code=error.http_status, headers=error_headers(error))


def vectors_reply(model: str, rows: Sequence[str | list[float]], *, tokens: int) -> dict[str, Any]:
    """Vectors in the order of their texts, and what these took."""
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _ended(facts: Mapping[str, Any]) -> str:
    """Why the answer ends, in OpenAI's words: `stop`, `length` or `content_filter`."""
    cut = str((facts.get("made_by") or {}).get("cut") or "stop")
    return {"stopped": "stop", "time": "length"}.get(cut, cut)


def _base(model: str, message_id: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{message_id}", "object": kind, "created": int(time.time()), "model": model}


def _error(error: PharosError, request_id: str) -> dict[str, Any]:
    kinds: tuple[tuple[type[PharosError], str], ...] = (
        (NotSignedIn, "authentication_error"),
        (NotAllowed, "permission_error"),
        (NotFound, "not_found_error"),
        (LimitReached, "rate_limit_error"),
        (Invalid, "invalid_request_error"),
    )
    kind = next((name for one, name in kinds if isinstance(error, one)), "server_error")
    facts = {**error.details, "requestId": request_id}
    return facts | {"message": error.message, "type": kind, "param": None, "code": error.code}


def _line(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, default=str)}\n\n"

"""A real HTTP server on loopback that speaks the wire formats of OpenAI and of Anthropic, and fails when told to."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal[
    "key_refused",  # 401
    "forbidden",  # 403
    "no_such_model",  # 404
    "bad_request",  # 400
    "rate_limited",  # 429 with Retry-After: `retry_after_seconds`
    "insufficient_quota",  # 429 that ends when somebody pays
    "failed",  # 500
    "overloaded",  # 529, which only Anthropic sends
    "slow",  # no byte before `release` is set
    "stalled",  # the first word, and no more before `release` is set
    "hang_up",  # the connection ends without an answer
    "cut",  # the first word, and the connection ends
    "not_json",  # a page, with status 200
    "error_page",  # a page, with status 500
    "truncated",  # JSON that ends in the middle
    "huge",  # `huge_bytes` of text
    "huge_line",  # as much without a line end
    "bomb",  # `huge_bytes` of blanks, packed small
    "redirect",  # 307 to `redirect_to`
    "error_event",  # the first word, then the stream says that it failed
    "at_limit",  # an answer that its own length cut
    "no_words",  # an answer without text
    "wrong_dimension",  # vectors of which the last is one shorter
    "shorter",  # vectors that are all one shorter than they should be
    "missing",  # vectors of all texts but the last
    "nan",  # vectors with a number that is none
]
STATUS: dict[str, int] = {
    "key_refused": 401,
    "forbidden": 403,
    "no_such_model": 404,
    "bad_request": 400,
    "rate_limited": 429,
    "insufficient_quota": 429,
    "failed": 500,
    "overloaded": 529,
}
OWN_WORDS = "Incorrect key provided: sk-secretsecretsecret1234. You said no."
"""What a refusal says; the key in it must not reach anybody."""


@dataclass
class Asked:
    """One request as it came in; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Provider:
    """What the server answers and what it was asked.

    `faults` are used up one a request, `always` stands for all others. Both count for chat and embeddings; the list of
    models fails by `models_fault`.
    """

    port: int = 0
    words: list[str] = field(default_factory=lambda: ["The keeper ", "trims ", "the lamp [1]."])
    models: list[str] = field(default_factory=lambda: ["lamp-large", "lamp-small"])
    dimension: int = 384
    key: str | None = None
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    models_fault: Fault | None = None
    retry_after_seconds: int = 7
    huge_bytes: int = 50 * 1024 * 1024
    redirect_to: str = "http://169.254.169.254/latest/meta-data/"
    asked: list[Asked] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next_fault(self) -> Fault | None:
        return self.faults.popleft() if self.faults else self.always


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, provider: Provider) -> None:
        super().__init__(("127.0.0.1", provider.port), _Handler)
        self.provider = provider
        provider.port = self.server_port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def provider_server(provider: Provider | None = None) -> Iterator[Provider]:
    """The server in threads of its own, on `provider.port` or a free one."""
    provider = provider or Provider()
    with _Server(provider) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield provider
        finally:
            provider.release.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 0

    def do_GET(self) -> None:
        provider = self.server.provider
        self._note({})
        if self._refuses(provider.models_fault):
            return
        is_anthropic = "anthropic-version" in self.headers
        date = {"created_at": "2026-01-01T00:00:00Z"} if is_anthropic else {"created": 1}
        own = {"type": "model", "display_name": "Lamp"} if is_anthropic else {"object": "model", "owned_by": "us"}
        listed = [{"id": name} | date | own for name in provider.models]
        self._send_json(200, {"object": "list", "data": listed, "has_more": False})

    def do_POST(self) -> None:
        provider = self.server.provider
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._note(body)
        fault = provider.next_fault()
        if self._refuses(fault):
            return
        if self.path.endswith("/embeddings"):
            self._embeddings(body, fault)
            return
        words = [] if fault == "no_words" else provider.words
        prompt_tokens = sum(len(str(message["content"]).split()) for message in body["messages"])
        speak = _anthropic_chat if self.path.endswith("/messages") else _openai_chat
        events, whole = speak(body, words, prompt_tokens)
        if fault == "at_limit":
            events = [one.replace('"stop"', '"length"').replace('"end_turn"', '"max_tokens"') for one in events]
        if body.get("stream"):
            self._stream(events, fault)
        else:
            self._send_json(200, whole)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's terminal."""

    def _note(self, body: dict[str, Any]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.provider.asked.append(Asked(self.path, headers, body))

    def _refuses(self, fault: Fault | None) -> bool:
        """Answer the faults that show before the first word; whether it was one."""
        provider = self.server.provider
        sent = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        if provider.key is not None and sent != provider.key:
            fault = "key_refused"
        if fault == "slow":
            provider.release.wait(30)
            return False
        if fault in STATUS:
            extra = {"Retry-After": str(provider.retry_after_seconds)} if fault == "rate_limited" else {}
            error = {"type": str(fault), "message": OWN_WORDS, "code": str(fault)}
            self._send_json(STATUS[fault], {"type": "error", "error": error}, extra)
        elif fault == "redirect":
            self._send(307, b"", "text/plain", {"Location": provider.redirect_to})
        elif fault == "bomb":
            packed = gzip.compress(b" " * provider.huge_bytes, compresslevel=1)
            self._send(200, packed, "text/event-stream", {"Content-Encoding": "gzip"})
        elif fault == "hang_up":
            self.close_connection = True
        elif fault in {"not_json", "error_page"}:
            page = b"<!doctype html><title>Welcome</title><p>This is a proxy's page."
            self._send(200 if fault == "not_json" else 500, page, "text/html")
        elif fault == "truncated":
            start = b'data: {"type": "message_start", "choices": [{"index": 0, "delta": {"content": "The kee'
            is_stream = self.server.provider.asked[-1].body.get("stream")
            self._send(200, start if is_stream else start[6:], "text/event-stream" if is_stream else "application/json")
        else:
            return False
        return True

    def _stream(self, events: list[str], fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        is_anthropic = self.path.endswith("/messages")
        first_word = 3 if is_anthropic else 1
        for event in events[:first_word]:
            self._chunk(event.encode())
        match fault:
            case "cut":
                self.close_connection = True
                return
            case "stalled":
                self.server.provider.release.wait(30)
            case "error_event":
                error = {"type": "error", "error": {"type": "overloaded_error", "message": OWN_WORDS}}
                self._chunk(f"event: error\ndata: {json.dumps(error)}\n\n".encode())
                events = []
            case "huge":
                word = json.dumps(self.server.provider.words[0])
                self._repeat(events[first_word - 1].replace(word, json.dumps("x" * 65_536)).encode())
            case "huge_line":
                self._repeat(b"data: " + b"x" * 65_536)
        for event in events[first_word:]:
            self._chunk(event.encode())
        self._chunk(b"")

    def _repeat(self, piece: bytes) -> None:
        for _ in range(self.server.provider.huge_bytes // len(piece)):
            self._chunk(piece)

    def _embeddings(self, body: dict[str, Any], fault: Fault | None) -> None:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        dimension = body.get("dimensions", self.server.provider.dimension) - (fault == "shorter")
        rows = [_vector(text, dimension) for text in texts]
        if fault == "nan":
            rows[-1][-1] = float("nan")
        elif fault == "wrong_dimension":
            rows[-1].pop()
        elif fault == "missing":
            rows.pop()
        is_packed = body.get("encoding_format") == "base64"
        data = [{"object": "embedding", "index": n, "embedding": _pack(row) if is_packed else row}
                for n, row in enumerate(rows)]  # fmt: skip
        usage = {"prompt_tokens": sum(len(text.split()) for text in texts)}
        reply = {"object": "list", "model": body["model"], "data": data, "usage": usage | {"total_tokens": 0}}
        if fault in {"huge", "huge_line"}:
            self._send(200, b'{"padding": "' + b"x" * self.server.provider.huge_bytes + b'"}', "application/json")
        else:
            self._send_json(200, reply)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send_json(self, status: int, body: dict[str, Any], extra: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", extra)

    def _send(self, status: int, body: bytes, kind: str, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _openai_chat(body: dict[str, Any], words: list[str], prompt_tokens: int) -> tuple[list[str], dict[str, Any]]:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(words),
        "total_tokens": prompt_tokens + len(words),
    }
    base = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    chunk = base | {"object": "chat.completion.chunk"}
    parts: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if body.get("stream_options", {}).get("include_usage"):
        parts.append({"choices": [], "usage": usage})
    events = [f"data: {json.dumps(chunk | part)}\n\n" for part in parts]
    message = {"role": "assistant", "content": "".join(words)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return [*events, "data: [DONE]\n\n"], base | {"object": "chat.completion", "choices": choices, "usage": usage}


def _anthropic_chat(body: dict[str, Any], words: list[str], prompt_tokens: int) -> tuple[list[str], dict[str, Any]]:
    usage = {"input_tokens": prompt_tokens, "output_tokens": len(words)}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
    parts: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    events = [f"event: {part['type']}\ndata: {json.dumps(part)}\n\n" for part in parts]
    content = [{"type": "text", "text": "".join(words)}]
    return events, message | {"content": content, "stop_reason": "end_turn", "usage": usage}


def _vector(text: str, dimension: int) -> list[float]:
    """A row of length about 1 that only this text has."""
    stream = hashlib.shake_256(text.encode()).digest(dimension)
    row = [byte - 127.5 for byte in stream]
    length = sum(number * number for number in row) ** 0.5
    return [number / length for number in row]


def _pack(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()

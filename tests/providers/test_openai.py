"""The OpenAI wire format, spoken by the real SDK to a real HTTP server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from pharos.infra.errors import LimitReached, NotAllowed, PharosError, Unavailable
from pharos.providers.contract import ChatMessage, ChatRequest
from pharos.providers.openai import OpenAIChat

REQUEST = ChatRequest(messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "Who keeps the light?")))


class Server(ThreadingHTTPServer):
    """Answers as told and remembers what it was asked."""

    daemon_threads = True
    status = 200
    pieces: ClassVar[list[str]] = ["The keeper ", "does."]
    asked: ClassVar[list[dict[str, object]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        Server.asked.append(json.loads(self.rfile.read(length)) | {"authorization": self.headers["Authorization"]})
        if self.server.status != 200:
            self._send("application/json", json.dumps({"error": {"message": "no"}}))
            return
        chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in self.server.pieces]
        base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "lamp"}
        body = "".join(f"data: {json.dumps(base | chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._send("text/event-stream", body)

    def _send(self, kind: str, body: str) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing on the test's terminal."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        Server.asked.clear()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


async def ask(server: Server) -> list[str]:
    model = OpenAIChat(name="lamp", base_url=f"http://127.0.0.1:{server.server_port}/v1", key="sk-test")
    try:
        return [piece async for piece in model.stream(REQUEST)]
    finally:
        await model.close()


async def test_pieces_arrive_in_order_and_the_request_carries_model_messages_and_key(server: Server) -> None:
    assert await ask(server) == ["The keeper ", "does."]
    asked = Server.asked[0]
    assert (asked["model"], asked["stream"], asked["authorization"]) == ("lamp", True, "Bearer sk-test")
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who keeps the light?"},
    ]


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, NotAllowed, "provider_key_refused"),
        (429, LimitReached, "provider_rate_limited"),
        (404, Unavailable, "no_such_model"),
        (500, Unavailable, "provider_failed"),
    ],
)
async def test_a_refusal_has_its_kind_and_names_the_next_step(
    server: Server, status: int, kind: type[PharosError], code: str
) -> None:
    server.status = status
    with pytest.raises(kind) as refused:
        await ask(server)
    assert refused.value.code == code


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    model = OpenAIChat(name="lamp", base_url="http://127.0.0.1:9/v1", key=None)
    with pytest.raises(Unavailable, match="PHAROS_LLM_URL"):
        _ = [piece async for piece in model.stream(REQUEST)]
    await model.close()

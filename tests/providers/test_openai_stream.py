"""A stream of OpenAI's format is read the same however its bytes are cut, and its connection serves the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from pharos.infra.errors import Unavailable
from pharos.infra.guarded_client import GuardedTransport
from pharos.providers.contract import ChatMessage, ChatRequest
from pharos.providers.openai import OpenAIChat

REQUEST = ChatRequest((ChatMessage("user", "Who keeps the light?"),), max_tokens=77)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = (
    ': a remark\n\nevent: message\nid: 1\ndata: {"choices": [{"delta": {"content": "Die Wärterin "}}]}\n\n'
    'data:{"choices": [{"delta":\ndata: {"content": "hütet "}}]}\n\n\n'
    'data: {"choices": [{"delta": {"content": "das Licht."}, "finish_reason": "stop"}]}\n\n'
    "data: [DONE]\n\n"
).encode()


@dataclass
class Server:
    """Answers each request with `stream` in chunks of `size` bytes; `cuts` the line before the end of the body."""

    stream: bytes = STREAM
    size: int = 10_000
    cuts: bool = False
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                writer.write(HEAD)
                for at in range(0, len(self.stream), self.size):
                    part = self.stream[at : at + self.size]
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                if self.cuts:
                    break
                writer.write(b"0\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def model_of(server: Server, *, most_bytes: int = 10_000_000) -> AsyncIterator[OpenAIChat]:
    transport = GuardedTransport(allow_private=True, max_reply_bytes=most_bytes)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        chat = OpenAIChat(
            name="lamp", base_url=f"http://127.0.0.1:{port}/v1", key="k", allows_private=True, transport=transport
        )
        yield chat
        await chat.close()


async def said(chat: OpenAIChat) -> list[str]:
    return [piece async for piece in chat.stream(REQUEST) if isinstance(piece, str)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_an_answer_is_the_same_however_its_bytes_are_cut(size: int, line_end: bytes) -> None:
    async with model_of(Server(STREAM.replace(b"\n", line_end), size)) as chat:
        assert await said(chat) == ["Die Wärterin ", "hütet ", "das Licht."]


async def test_the_next_answer_comes_over_the_same_connection() -> None:
    server = Server()
    async with model_of(server) as chat:
        assert await said(chat) == await said(chat)
    assert server.connections == 1


async def test_a_line_cut_after_the_last_word_takes_nothing_from_the_answer() -> None:
    async with model_of(Server(cuts=True)) as chat:
        assert (await said(chat))[-1] == "das Licht."


async def test_a_flood_after_the_last_word_takes_nothing_from_the_answer() -> None:
    async with model_of(Server(STREAM + b": still here\n" * 50_000), most_bytes=100_000) as chat:
        assert (await said(chat))[-1] == "das Licht."


async def test_a_half_of_a_pair_that_a_server_cut_is_no_bad_answer() -> None:
    async with model_of(Server(STREAM.replace(b"das Licht", rb"\ud83d"))) as chat:
        assert (await said(chat))[-1] == "\ud83d."


@pytest.mark.parametrize("chunk", [b"[" * 100_000, b'{"usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}'])
async def test_what_no_reader_can_hold_is_a_bad_answer(chunk: bytes) -> None:
    async with model_of(Server(b"data: %b\n\n%b" % (chunk, STREAM))) as chat:
        with pytest.raises(Unavailable) as refused:
            await said(chat)
    assert refused.value.code == "provider_answer_bad"

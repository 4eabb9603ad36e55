"""A provider in a process of its own that says a word of a given length of time after another, and when it said it.

`python -m benchmarks.paced_provider PORT WORDS WORDS_A_SECOND`. Each word is ` t<number>@<seconds>#`, by the clock that
all processes of a machine share, so that whoever reads it knows how long it was on its way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
WORDS_A_SENTENCE = 20
WORDS_IN_SHORT = 3
"""What a question gets that holds "in short"."""


class Speaker:
    def __init__(self, words: int, words_a_second: float) -> None:
        self.words = words
        self.pause_seconds = 1 / words_a_second
        base: dict[str, object] = {
            "id": "chatcmpl-1",
            "created": 1,
            "model": "paced",
            "object": "chat.completion.chunk",
        }
        word: dict[str, object] = {"choices": [{"index": 0, "delta": {"content": "WORD"}}]}
        self._before, self._after = f"data: {json.dumps(base | word)}\n\n".split("WORD")
        usage = {"prompt_tokens": 100, "completion_tokens": words, "total_tokens": words + 100}
        last: list[dict[str, object]] = [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": usage},
        ]
        self._end = "".join(f"data: {json.dumps(base | part)}\n\n" for part in last) + "data: [DONE]\n\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
        words = WORDS_IN_SHORT if b"in short" in body else self.words
        writer.write(HEAD)
        started = time.monotonic()
        try:
            for number in range(words):
                await asyncio.sleep(started + number * self.pause_seconds - time.monotonic())
                if writer.is_closing():
                    return
                end = ". " if number % WORDS_A_SENTENCE == WORDS_A_SENTENCE - 1 else ""
                word = f" t{number}@{time.monotonic():.6f}#{end}"
                writer.write(_chunk(f"{self._before}{word}{self._after}"))
            writer.write(_chunk(self._end) + b"0\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()


def _chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def main(port: int, words: int, words_a_second: float) -> None:
    speaker = Speaker(words, words_a_second)
    async with await asyncio.start_server(speaker.serve, "127.0.0.1", port, backlog=512) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

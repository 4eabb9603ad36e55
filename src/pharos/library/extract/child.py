"""The process that parses: `python -m pharos.library.extract.child SOCKET`, started and spoken to by `run.py`.

It loads the parsers once, then forks for every file: a file meets a process that has seen no other file, at the
price of a fork (8 ms) and not of a start (250 ms). A request is a line of JSON (path, media_type, limits); the answer
is eight bytes of length, then JSON: an `Extracted`, or `error` with a code of `REASONS`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from pharos.library.extract.extracted import Limits, UnreadableFile
from pharos.library.extract.readers import read

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
OPEN_FILES = 64
COSTLY_SIGNALS = {signal.SIGXCPU, signal.SIGKILL, signal.SIGABRT}
"""Time, the kernel's memory killer, and a parser that aborts because it got no memory."""


def main() -> None:
    """Serve requests until the other end closes; it closes by itself when its process dies."""
    server = socket.socket(fileno=int(sys.argv[1]))
    leave_network()
    for line in server.makefile("rb"):
        answer = parse_in_fork(json.loads(line), server)
        server.sendall(len(answer).to_bytes(8, "big") + answer)


def leave_network() -> None:
    """Enter a network namespace without any network; where the kernel refuses that, go on with the other limits."""
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    ctypes.CDLL(None).unshare(flags)


def parse_in_fork(request: dict[str, Any], server: socket.socket) -> bytes:
    """The answer of a process of its own, or what its death says."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.close(server.fileno())  # `close` would wait for the reader of lines
        _parse_and_exit(request, writer, parent)
    os.close(writer)
    answer = _collect(reader, server)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return answer
    is_costly = os.WIFSIGNALED(status) and os.WTERMSIG(status) in COSTLY_SIGNALS
    return _error("too_costly_file" if is_costly else "damaged_file")


def _collect(reader: int, server: socket.socket) -> bytes:
    """All that the fork writes. If the other end of `server` goes away meanwhile, everything here ends."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(server, select.POLLRDHUP)
    parts: list[bytes] = []
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != reader:
                os.killpg(0, signal.SIGKILL)
            part = os.read(reader, 1024 * 1024)
            if not part:
                os.close(reader)
                return b"".join(parts)
            parts.append(part)


def _parse_and_exit(request: dict[str, Any], writer: int, parent: int) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            answer = parse(Path(request["path"]), request["media_type"], Limits(**request["limits"]))
            with open(writer, "wb") as pipe:
                pipe.write(answer)
            status = 0
    finally:
        os._exit(status)


def parse(path: Path, media_type: str, limits: Limits) -> bytes:
    """Read a file under its limits; whatever a parser raises becomes an answer."""
    limit_resources(limits)
    try:
        extracted = read(path, media_type, limits)
    except BaseException as error:  # noqa: BLE001 - parsers raise anything, panics too, and this process ends here
        code = error.code if isinstance(error, UnreadableFile) else "damaged_file"
        return _error("too_costly_file" if code == "damaged_file" and _is_out_of_memory(error, limits) else code)
    if len(extracted.text) > limits.text_characters:
        return _error("too_much_text")
    return json.dumps(dataclasses.asdict(extracted)).encode()


def _is_out_of_memory(error: BaseException, limits: Limits) -> bool:
    """Parsers that get no memory complain of many things; what the process held at most tells."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak:")), 0)
    return isinstance(error, MemoryError) or peak_kib * 1024 > 0.9 * limits.memory_bytes


def limit_resources(limits: Limits) -> None:
    """Memory, processor time, files and core dumps of this process; the kernel enforces them."""
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _error(code: str) -> bytes:
    return json.dumps({"error": code}).encode()


if __name__ == "__main__":
    main()

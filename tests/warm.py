"""`pharos` without the wait for its libraries: a second of processor time for each of the runbook's 400 commands.

A process that has loaded them, and nothing of Pharos, stands by. The program `pharos` in the folder that
`warm_programs` gives hands it arguments, environment, directory and the three streams; a fork of it then imports
Pharos and runs the command as the installed program does. That program itself runs wherever this one cannot stand for
it: for the parts of an installation, for another source tree or another user, and in all other tests.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    "alembic.command", "cryptography.hazmat.primitives.asymmetric.ed25519", "email.headerregistry", "httpx",
    "numpy.typing", "procrastinate", "prometheus_client", "psutil", "psycopg_pool", "pwdlib.hashers.argon2",
    "pydantic_settings", "pyrage", "rich.console", "rich.progress", "rich.table", "semantic_text_splitter",
    "sqlalchemy.dialects.postgresql", "sqlalchemy.ext.asyncio", "Stemmer", "structlog", "typer",
)  # fmt: skip
READY_SECONDS = 60.0

CLIENT = """#!{python} -IS
import os, signal, socket, sys
real, words = {real!r}, sys.argv[1:]
is_part = bool({{"web", "worker", "embedder"}} & set(words[:1])) or (words[:1] == ["up"] and "--detach" not in words)
other_tree = "PYTHONPATH" in os.environ
if is_part or other_tree or os.stat({address!r}).st_uid != os.geteuid():
    os.execv(real, [real, *words])
mask = os.umask(0)
around = [f"{{name}}={{value}}" for name, value in os.environ.items()]
request = [os.getcwd(), str(mask), str(len(words)), *words, *around]
body = os.fsencode("\\0".join(request))
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
socket.send_fds(server, [len(body).to_bytes(4, "big")], [0, 1, 2])
server.sendall(body)
code = int(server.recv(8) or b"70")
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""The program; without site-packages it starts in a hundredth of a second."""


@contextmanager
def warm_programs() -> Iterator[Path]:
    """A folder for the head of PATH."""
    with tempfile.TemporaryDirectory(prefix="pharos-warm-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        address, program = str(folder / "socket"), folder / "pharos"
        server = subprocess.Popen([sys.executable, "-P", __file__, address])
        deadline = time.monotonic() + READY_SECONDS
        while not Path(address).exists():
            assert server.poll() is None, "the libraries could not be loaded"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        real = str(Path(sys.executable).parent / "pharos")
        program.write_text(CLIENT.format(python=sys.executable, real=real, address=address))
        program.chmod(0o755)
        yield folder
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Fork for each connection; returns in the fork that is to run the command, and in no other process."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the forks end
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    Path(address + ".new").rename(address)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(connection)
            return
        connection.close()


def attend(connection: socket.socket) -> None:
    """Read what is asked for and fork; returns in the fork, while this process tells the client how that one ends."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size = int.from_bytes(head, "big")
    body = b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    child = os.fork()
    if child == 0:
        connection.close()
        put_in_place(os.fsdecode(body).split("\0"), streams)
        return
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([connection.fileno(), ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            connection.sendall(str(code).encode())
            os._exit(0)
        numbers = connection.recv(8)
        if not numbers:  # the client was killed, and with it all that it started
            os.killpg(child, signal.SIGKILL)
            os._exit(0)
        for number in numbers:
            os.kill(child, number)


def put_in_place(request: list[str], streams: list[int]) -> None:
    """Make this process what the client is: where it is, what surrounds it, what it reads and writes."""
    directory, mask, count, *rest = request
    os.setsid()
    os.chdir(directory)
    os.umask(int(mask))
    os.environ.clear()
    os.environ.update({name: value for name, _, value in (pair.partition("=") for pair in rest[int(count) :])})
    time.tzset()
    sys.argv = [str(Path(sys.executable).parent / "pharos"), *rest[: int(count)]]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


if __name__ == "__main__":
    serve(sys.argv[1])
    from pharos.cli import main

    main()

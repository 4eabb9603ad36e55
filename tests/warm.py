"""`pharos` without the wait for its libraries: a second of processor time for each of the runbook's 400 commands.

A process that has loaded them, and what the parts of Pharos share, stands by. The program `pharos` in the folder that
`warm_programs` gives hands it arguments, environment, directory and the three streams; a fork of it then imports the
rest of Pharos and runs the command as the installed program does. `python` beside it does the same for `-m pharos …`,
which is how the parts of an installation are started by such a fork: four seconds less for each start. The installed
programs themselves run wherever these cannot stand for them: for another source tree or another user, and in all other
tests.
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
    "alembic.command", "cryptography.hazmat.primitives.asymmetric.ed25519", "email.headerregistry", "fastapi.responses",
    "httptools", "httpx", "jinja2", "jwt", "markdown_it", "numpy.typing", "procrastinate", "prometheus_client",
    "psutil", "psycopg_pool", "pwdlib.hashers.argon2", "pydantic_settings", "pyrage", "python_multipart",
    "rich.console", "rich.progress", "rich.table", "semantic_text_splitter", "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio", "starlette.applications", "Stemmer", "structlog", "tokenizers", "typer",
    "uvicorn.protocols.http.httptools_impl", "uvloop",
)  # fmt: skip
OF_PHAROS = (
    "pharos.access.socket_routes", "pharos.chat.feedback_routes", "pharos.chat.openai_routes",
    "pharos.chat.shared_routes", "pharos.chat.turn_routes", "pharos.identity.audit_routes",
    "pharos.identity.secret_routes", "pharos.library.routes", "pharos.library.tasks", "pharos.retrieval.routes",
    "pharos.web.reader", "pharos.web.views", "pharos.web.visit",
)  # fmt: skip
"""The third of a second that most commands wait for, and nearly a whole one of the web process."""
LOOKS_AROUND = ("pharos.infra.terminal", "pharos.ops.health")
"""What they look at when they are imported, the terminal and the clock, differs from one program to the next."""
INSTALLED = Path(sys.executable).parent
READY_SECONDS = 60.0

CLIENT = """#!{python} -IS
import os, signal, socket, sys
real, prefix, words = {real!r}, {prefix!r}, sys.argv[1:]
other_program = words[: len(prefix)] != prefix
other_tree = "PYTHONPATH" in os.environ
if other_program or other_tree or os.stat({address!r}).st_uid != os.geteuid():
    os.execv(real, [real, *words])
words = words[len(prefix) :]
mask = os.umask(0)
around = [f"{{name}}={{value}}" for name, value in os.environ.items()]
request = [str(mask), str(len(words)), *words, *around]
body = os.fsencode("\\0".join(request))
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
here = os.open(".", os.O_PATH)  # not by its name: it may have been removed
socket.send_fds(server, [len(body).to_bytes(4, "big")], [0, 1, 2, here])
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
        address = str(folder / "socket")
        server = subprocess.Popen([sys.executable, "-P", __file__, address])
        deadline = time.monotonic() + READY_SECONDS
        while not Path(address).exists():
            assert server.poll() is None, "the libraries could not be loaded"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for name, prefix in (("pharos", []), ("python", ["-m", "pharos"])):
            program, real = folder / name, str(INSTALLED / name)
            program.write_text(CLIENT.format(python=sys.executable, real=real, prefix=prefix, address=address))
            program.chmod(0o755)
        yield folder
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Fork for each connection; returns in the fork that is to run the command, and in no other process."""
    for name in LIBRARIES + OF_PHAROS:
        importlib.import_module(name)
    assert not set(LOOKS_AROUND) & set(sys.modules)
    sys.executable = str(Path(address).parent / "python")  # what Pharos starts the parts with
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
    head, [*streams, here], _, _ = socket.recv_fds(connection, 4, 4)
    size = int.from_bytes(head, "big")
    body = b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    child = os.fork()
    if child == 0:
        connection.close()
        put_in_place(os.fsdecode(body).split("\0"), here, streams)
        return
    for handle in (here, *streams):
        os.close(handle)
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


def put_in_place(request: list[str], here: int, streams: list[int]) -> None:
    """Make this process what the client is: where it is, what surrounds it, what it reads and writes."""
    mask, count, *rest = request
    os.setsid()
    os.fchdir(here)
    os.close(here)
    os.umask(int(mask))
    os.environ.clear()
    os.environ.update({name: value for name, _, value in (pair.partition("=") for pair in rest[int(count) :])})
    time.tzset()
    sys.argv = [str(INSTALLED / "pharos"), *rest[: int(count)]]
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

"""`pharos` without the wait for its libraries: a second of processor time for each of the runbook's 400 commands.

A process that has loaded them, and Pharos itself, stands by. The program `pharos` in the folder that `warm_programs`
gives hands it arguments, environment, directory and the three streams; a fork of it then runs the command as the
installed program does. `python` beside it does the same for `-m pharos …`, which is how the parts of an installation
are started by such a fork: four seconds less for each start. The installed programs themselves run wherever these
cannot stand for them: for another source tree or another user, and in all other tests.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import configure_mappers

from pharos.cli import COMMANDS, MORE, main
from pharos.infra import terminal
from pharos.ops import health

NEEDED_LATER = (
    "alembic.command", "alembic.config", "anyio._backends._asyncio", "encodings.idna", "httpcore", "httptools",
    "procrastinate.worker", "rich._emoji_codes", "rich.status", "tokenizers", "typer._adapters",
    "uvicorn.protocols.http.httptools_impl", "uvloop", "pharos.app", "pharos.migrations.fence",
    "pharos.ops.backup.drill", "pharos.ops.backup.restore_start", "pharos.ops.supervisor",
    "pharos.providers.embedder.client", "pharos.tables", "pharos.worker",
)  # fmt: skip
"""What the commands import only when they run."""
INSTALLED = Path(sys.executable).parent
READY_SECONDS = 60.0

CLIENT = """#!{python} -IS
import _signal, _socket, os, sys
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
server = _socket.socket(_socket.AF_UNIX)
server.connect({address!r})
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
    _signal.signal(number, lambda number, _: server.send(bytes([number])))
here = os.open(".", os.O_PATH)  # not by its name: it may have been removed
handles = b"".join(handle.to_bytes(4, sys.byteorder) for handle in (0, 1, 2, here))
server.sendmsg([len(body).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, handles)])
server.sendall(body)
code = int(server.recv(8) or b"70")
if code < 0:
    _signal.signal(-code, _signal.SIG_DFL) if -code != _signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""The program; without site-packages, and what `socket` and `signal` import, it starts in a hundredth of a second."""


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


def load() -> None:
    """Import what nearly all commands need, and do what the first use of the tables does."""
    commands = [*COMMANDS, *(name for names in MORE.values() for name in names)]
    for name in (*NEEDED_LATER, *commands):
        importlib.import_module(name)
    configure_mappers()


def serve(address: str) -> None:
    """Fork for each connection; returns in the fork that is to run the command, and in no other process."""
    load()
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
    look_again()


def look_again() -> None:
    """What was seen of the terminal and of the clock when Pharos was imported is another program's."""
    loaded = terminal.console, terminal.error_console
    importlib.reload(terminal)
    for console, seen in zip(loaded, (terminal.console, terminal.error_console), strict=True):
        vars(console).update(vars(seen))
    health.STARTED = time.monotonic()


def run() -> None:
    """The command, ended as Python ends it but for taking apart all that was loaded: the memory written to for that
    would be copied first, a tenth of a second for each process."""
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except OSError:
            raise end from None  # Python says what it says of a stream that nobody reads
        os._exit(end.code)


if __name__ == "__main__":
    serve(sys.argv[1])
    run()

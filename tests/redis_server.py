"""A real Redis or Valkey on a free port, for one test: killed, held and started again at will."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pharos.infra.embedded_postgres import free_port

REDIS = next(filter(None, map(shutil.which, ("valkey-server", "redis-server"))), None)
needs_redis = pytest.mark.skipif(REDIS is None, reason="no Redis here; on Debian: apt-get install redis-server")


class RedisServer:
    """Keeps nothing on disk, so that a killed one comes back empty."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        assert REDIS is not None
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.place, "save": "", "appendonly": "no"}
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen([REDIS, *words], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError("".join(said))

    def hold(self) -> None:
        """It takes connections and answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

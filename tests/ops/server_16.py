"""A Postgres 16 that somebody else runs, as far as Pharos knows: it is given by its addresses alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import Server

from pharos.infra import embedded_postgres, processes
from pharos.infra.embedded_postgres import EmbeddedPostgres
from pharos.infra.postgres_place import (
    as_user,
    cluster_home,
    make_owned,
    reachable_binaries,
    server_user,
    socket_place,
)

LANGUAGE = "de_DE.UTF-8"


@contextmanager
def server_16(directory: Path) -> Iterator[Server]:
    """Its text is sorted as German readers expect, by the C library: 16 has no provider of its own. Where the machine
    cannot make that locale, it is sorted by the library's C.UTF-8, still another one than the embedded server's."""
    user, group = server_user()
    directory.mkdir()
    home = cluster_home(directory, user, group)
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "LOCPATH": str(home / "locale")}
    locale = make_locale(home / "locale", user, group)
    binaries = reachable_binaries(user, group, major=16)
    cluster = EmbeddedPostgres(
        *(directory, home, binaries, socket_place(home, user, group), user, group, embedded_postgres.free_port())
    )
    word = home / "password"
    word.write_text(embedded_postgres._superuser_password(directory))
    os.chown(word, user, group)
    subprocess.run(
        [
            *(binaries / "bin" / "initdb", "--pgdata", cluster.data, "--username=postgres", f"--pwfile={word}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=libc", f"--locale={locale}", "--no-sync"),
        ],
        check=True, capture_output=True, env=environment, cwd=home, **as_user(user, group),
    )  # fmt: skip
    embedded_postgres.write_configuration(cluster, fsync=False)
    with (directory / "postgres.log").open("ab") as output:
        process = processes.spawn(
            [binaries / "bin" / "postgres", "-D", cluster.data],
            death_signal=signal.SIGINT, output=output, cwd=home, env=environment, **as_user(user, group),
        )  # fmt: skip
    try:
        embedded_postgres.wait_until_ready(cluster, process)
        yield Server(cluster.admin_url)
    finally:
        embedded_postgres.stop(cluster)
        process.wait()
        embedded_postgres.delete(directory)


def make_locale(folder: Path, user: int, group: int) -> str:
    """The name of a locale that a server with this folder as its LOCPATH knows."""
    make_owned(folder, user, group)
    program = shutil.which("localedef")
    if program is not None:
        subprocess.run([program, "-i", "de_DE", "-f", "UTF-8", folder / LANGUAGE], check=False, capture_output=True)
    return LANGUAGE if (folder / LANGUAGE / "LC_COLLATE").exists() else "C.UTF-8"

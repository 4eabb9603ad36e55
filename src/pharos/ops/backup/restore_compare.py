"""Whose documents, projects and accounts a restore would take away or bring back: ids here against ids in the dump."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pharos.infra.errors import Conflict
from pharos.infra.postgres_place import reachable_binaries
from pharos.ops.backup.dump import ENVIRONMENT
from pharos.ops.backup.manifest import DATABASE_FOLDER

COMPARED = ("documents", "projects", "users")
NAMED = 10
"""More names than this do not help to decide; the rest is counted."""
COPY = re.compile(r"COPY public\.(\w+) \((.*)\) FROM stdin;")
ESCAPED = re.compile(r"\\(.)")
MEANT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}

LOST = """
    select p.name, d.name from documents d join projects p on p.tenant_id = d.tenant_id and p.id = d.project_id
    where d.id = any(%s::uuid[]) order by d.created_at desc, d.id limit %s
    """


@dataclass(frozen=True)
class NamedDocument:
    project: str
    name: str


@dataclass(frozen=True)
class Comparison:
    """`lost`: by table of `COMPARED`, how many are here and not in the backup; `back` the other way round. Up to
    `NAMED` documents of each are named, of the lost ones the newest first."""

    lost: dict[str, int]
    back: dict[str, int]
    documents_lost: tuple[NamedDocument, ...]
    documents_back: tuple[NamedDocument, ...]


def compare_content(connection: psycopg.Connection[Any], folder: Path) -> Comparison | None:
    """The database of `connection` (the backup role's) against the backup in `folder`, whose files were checked.

    None for a database without our tables. Reads every id here, and the dump's three tables; raises `Conflict`
    (`unreadable_dump`).
    """
    if not all(
        connection.execute("select to_regclass(%s)", [f"public.{table}"]).fetchone() != (None,) for table in COMPARED
    ):
        return None
    only_here = {table: _ids(connection, table) for table in COMPARED}
    back, projects = dict.fromkeys(COMPARED, 0), dict[str, str]()
    documents: list[tuple[str, str]] = []
    for table, row in _saved_rows(folder):
        if table == "projects":
            projects[row["id"]] = row["name"]
        if row["id"] in only_here[table]:
            only_here[table].remove(row["id"])
            continue
        back[table] += 1
        if table == "documents" and len(documents) < NAMED:
            documents.append((row["project_id"], row["name"]))
    lost = connection.execute(LOST, [list(only_here["documents"]), NAMED]).fetchall()
    return Comparison(
        lost={table: len(ids) for table, ids in only_here.items()},
        back=back,
        documents_lost=tuple(NamedDocument(project, name) for project, name in lost),
        documents_back=tuple(NamedDocument(projects.get(project_id, ""), name) for project_id, name in documents),
    )


def _ids(connection: psycopg.Connection[Any], table: str) -> set[str]:
    return {row[0] for row in connection.execute(sql.SQL("select id::text from {}").format(sql.Identifier(table)))}


def _saved_rows(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Table and row of everything that is compared, as the dump has it; no server takes part."""
    program = reachable_binaries(os.geteuid(), os.getegid()) / "bin" / "pg_restore"
    tables = [f"--table={table}" for table in COMPARED]
    with subprocess.Popen(  # noqa: S603 - our own program
        [program, "--data-only", "--schema=public", *tables, "--file=-", folder / DATABASE_FOLDER],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        table, columns = "", list[str]()
        for line in process.stdout:
            if table and line == "\\.\n":
                table = ""
            elif table:
                values = (ESCAPED.sub(_meant, value) for value in line.rstrip("\n").split("\t"))
                yield table, dict(zip(columns, values, strict=True))
            elif begins := COPY.fullmatch(line.rstrip("\n")):
                table, columns = begins[1], [name.strip('" ') for name in begins[2].split(",")]
    if process.returncode != 0:
        raise Conflict(
            f"The dump of {folder.name} cannot be read. Take another backup: `pharos restore --list`.",
            code="unreadable_dump",
        )


def _meant(escaped: re.Match[str]) -> str:
    return MEANT.get(escaped[1], escaped[1])

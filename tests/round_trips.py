"""What goes to the database while a test runs."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest


def record_round_trips(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every message with a statement that goes to the server from now on: one a round trip."""
    sent: list[bytes] = []
    statement, transaction = psycopg.AsyncCursor._execute_send, psycopg.AsyncConnection._exec_command

    def execute_send(cursor: Any, query: Any, **options: Any) -> None:
        sent.append(query.query)
        statement(cursor, query, **options)

    def exec_command(connection: Any, command: Any, **options: Any) -> Any:
        sent.append(command)
        return transaction(connection, command, **options)

    # commit, rollback and a begin of the driver's own go the second way
    monkeypatch.setattr(psycopg.AsyncCursor, "_execute_send", execute_send)
    monkeypatch.setattr(psycopg.AsyncConnection, "_exec_command", exec_command)
    return sent

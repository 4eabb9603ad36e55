"""No call of a model goes past what counts it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "pharos"
WIRE_FORMATS = {"pharos.providers.openai", "pharos.providers.anthropic", "openai", "anthropic"}
MAY_IMPORT = {"providers/catalog.py", "providers/openai.py", "providers/anthropic.py"}
MAY_OPEN = {"providers/catalog.py", "providers/calls.py"}


def breaches(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            named = {module} if module else {alias.name for alias in node.names}
            if named & WIRE_FORMATS and path not in MAY_IMPORT:
                yield f"{path}:{node.lineno} imports a wire format"
            opens = {alias.name for alias in node.names} & {"open_chat_model", "open_vector_model"}
            if opens and path not in MAY_OPEN:
                yield f"{path}:{node.lineno} opens a model itself"


@pytest.mark.contract("LP-23")
def test_only_the_calls_reach_a_model() -> None:
    files = {str(file.relative_to(SOURCE)): file.read_text() for file in SOURCE.rglob("*.py")}
    assert files.keys() >= MAY_IMPORT | MAY_OPEN
    assert [breach for path, source in files.items() for breach in breaches(path, source)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import openai",
        "from anthropic import AsyncAnthropic",
        "from pharos.providers.openai import OpenAIChat",
        "from pharos.providers.catalog import open_chat_model",
        "from pharos.providers.catalog import open_vector_model",
    ],
)
def test_a_planted_call_past_them_is_noticed(line: str) -> None:
    assert list(breaches("chat/answer.py", line + "\n"))

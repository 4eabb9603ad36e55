"""Rules of the source that no linter knows, and for each one a planted breach that must be noticed.

The order of the packages is checked by import-linter (`[tool.importlinter]` in pyproject.toml).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pharos"
MODULE_LINES = 600
FUNCTION_LINES = 60
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "manager", "service", "common", "base", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, str], Iterator[str]]


@lru_cache(maxsize=1)
def nodes_of(source: str) -> list[ast.AST]:
    """Kept for the next rule: reading is most of the work."""
    return list(ast.walk(ast.parse(source)))


def functions_of(source: str) -> Iterator[Function]:
    for node in nodes_of(source):
        if isinstance(node, Function):
            yield node


def only_db_commits(path: str, source: str) -> Iterator[str]:
    # migrations run on a connection of their own, as the migrator, outside every tenant
    if path in {"src/pharos/infra/db.py", "src/pharos/infra/migrate.py"}:
        return
    for node in nodes_of(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            yield f"{path}:{node.lineno} commits; open `runtime.db.transaction(tenant_id)` at the edge instead"


def only_db_begins_without_a_tenant(path: str, source: str) -> Iterator[str]:
    # they take any SQL; the import contract on infra.db_system keeps the list of who leaves the tenant boundary
    if path in {"src/pharos/infra/db.py", "src/pharos/infra/db_system.py"}:
        return
    for node in nodes_of(source):
        if not isinstance(node, ast.ImportFrom | ast.Attribute):
            continue
        named = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else {node.attr}
        if named & {"begun", "begin_with"}:
            yield f"{path}:{node.lineno} begins with SQL of its own; open `runtime.db.transaction(tenant_id)` instead"


def only_settings_read_the_environment(path: str, source: str) -> Iterator[str]:
    if path == "src/pharos/infra/settings.py" or not path.startswith("src/"):
        return
    nodes = nodes_of(source)
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if not isinstance(node, ast.ImportFrom | ast.Attribute):
            continue
        if isinstance(node, ast.Attribute) and node.attr == "environ" and id(node) in called:
            continue  # of another process (psutil); `os.environ` cannot be called
        named = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else {node.attr}
        if named & {"environ", "environb", "getenv", "getenvb", "putenv"}:
            yield f"{path}:{node.lineno} reads the environment; add a field to Settings instead"


def session_or_runtime(path: str, source: str) -> Iterator[str]:
    for function in functions_of(source):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        words = {argument.arg for argument in arguments}
        words |= {ast.unparse(argument.annotation) for argument in arguments if argument.annotation}
        if words & {"session", "AsyncSession"} and words & {"runtime", "Runtime"}:
            yield f"{path}:{function.lineno} {function.name} takes a session and the runtime; choose one"


def modules_are_short(path: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{path} has {lines} lines; split it by what it does (at most {MODULE_LINES})"


def functions_are_short(path: str, source: str) -> Iterator[str]:
    for function in functions_of(source):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{path}:{function.lineno} {function.name} has {lines} lines (at most {FUNCTION_LINES})"


def names_say_something(path: str, _source: str) -> Iterator[str]:
    for part in Path(path).with_suffix("").parts:
        if set(part.strip("_").split("_")) & NAMES_THAT_SAY_NOTHING:
            yield f"{path}: {part} says nothing; name the module by what it does"


def imports_are_absolute(path: str, source: str) -> Iterator[str]:
    for node in nodes_of(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{path}:{node.lineno} imports relatively; write the whole name"


RULES: list[Rule] = [
    only_db_commits,
    only_db_begins_without_a_tenant,
    only_settings_read_the_environment,
    session_or_runtime,
    modules_are_short,
    functions_are_short,
    names_say_something,
    imports_are_absolute,
]
LONG_FUNCTION = "def f() -> None:\n" + "    pass\n" * FUNCTION_LINES
BREACHES: list[tuple[Rule, str, str]] = [
    (only_db_commits, "src/pharos/library/upload.py", "async def f(session):\n    await session.commit()\n"),
    (only_db_begins_without_a_tenant, "src/pharos/chat/x.py", "def f(db):\n    return db.begun('begin')\n"),
    (only_db_begins_without_a_tenant, "src/pharos/chat/x.py", "from pharos.infra.db import begin_with as b\n"),
    (only_db_begins_without_a_tenant, "src/pharos/chat/x.py", "from pharos.infra import db\nBEGIN = db.begin_with\n"),
    (only_settings_read_the_environment, "src/pharos/chat/x.py", "import os\nURL = os.environ['URL']\n"),
    (only_settings_read_the_environment, "src/pharos/chat/x.py", "import os\nURL = os.getenv('URL')\n"),
    (only_settings_read_the_environment, "src/pharos/chat/x.py", "from os import environ as e\n"),
    (session_or_runtime, "src/pharos/chat/x.py", "def f(session, *, runtime): ...\n"),
    (session_or_runtime, "src/pharos/chat/x.py", "async def f(s: AsyncSession, r: Runtime): ...\n"),
    (modules_are_short, "src/pharos/chat/x.py", "x = 1\n" * (MODULE_LINES + 1)),
    (functions_are_short, "src/pharos/chat/x.py", LONG_FUNCTION),
    (
        functions_are_short,
        "src/pharos/chat/x.py",
        f"if True:\n    async {LONG_FUNCTION.replace(chr(10) + chr(32), chr(10) + chr(32) * 5)}",
    ),
    (names_say_something, "src/pharos/chat/helpers.py", ""),
    (names_say_something, "src/pharos/common/x.py", ""),
    (names_say_something, "src/pharos/chat/chat_service.py", ""),
    (imports_are_absolute, "src/pharos/chat/x.py", "from .models import Message\n"),
]


def sources() -> dict[str, str]:
    folders = [SOURCE, ROOT / "tests", ROOT / "benchmarks"]
    files = [file for folder in folders for file in folder.rglob("*.py") if "static" not in file.parts]
    return {str(file.relative_to(ROOT)): file.read_text() for file in sorted(files)}


def test_the_source_keeps_the_rules() -> None:
    breaches = [breach for path, source in sources().items() for rule in RULES for breach in rule(path, source)]
    assert breaches == []


@pytest.mark.parametrize(("rule", "path", "source"), BREACHES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_breach_is_noticed(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, source))


def test_every_rule_has_a_planted_breach() -> None:
    assert {rule for rule, _, _ in BREACHES} == set(RULES)

"""`pharos chat`: a conversation in the terminal; the answer appears as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import typer

from pharos.chat.answer import Stop, answer_turn, begin_turn
from pharos.chat.failures import failure_of
from pharos.chat.history import Draft, Turn, close_turn
from pharos.identity.principal import Principal
from pharos.identity.tenants import as_operator
from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.ids import ConversationId, ProjectId
from pharos.infra.logs import configure_logs
from pharos.infra.terminal import ProjectName, TenantSlug, echo_line, run_async
from pharos.library.commands import project_named
from pharos.runtime import Runtime

app = typer.Typer()

QUIT = {"/quit", "/exit"}
PROMPT = "> "


@dataclass
class Talk:
    """A conversation as it goes on; None before the first question."""

    runtime: Runtime
    principal: Principal
    project_id: ProjectId
    conversation_id: ConversationId | None = None


@app.command()
def chat(project: ProjectName = "Pharos handbook", tenant: TenantSlug = "default") -> None:
    """Ask again and again; what was said before counts. Ctrl-C stops an answer, /quit or Ctrl-D ends.

    Without a terminal every line of the input is a question, and is repeated before its answer.
    """
    # Into an answer that appears word by word no log line may fall.
    configure_logs("ERROR" if sys.stdin.isatty() else "WARNING")

    async def work() -> bool:
        async with as_operator(tenant) as (runtime, principal):
            talk = Talk(runtime, principal, await project_named(runtime, principal, project))
            if sys.stdin.isatty():
                echo_line(f"{project}. Ctrl-C stops an answer, /quit ends.")
            return await _talk(talk)

    if not run_async(work()):
        raise typer.Exit(Unavailable.exit_code)


async def _talk(talk: Talk) -> bool:
    """Until the input ends; whether every question got its answer."""
    is_well = True
    async for question in _questions():
        try:
            await _answer(talk, question)
        except PharosError as error:
            is_well = False
            echo_line(f"\nError ({error.code}): {error.message}")
    return is_well


async def _questions() -> AsyncIterator[str]:
    while True:
        if sys.stdin.isatty():
            sys.stdout.write(PROMPT)
            sys.stdout.flush()
        line = _read_line()
        if not line or line.strip() in QUIT:
            return
        if line.strip() and not sys.stdin.isatty():
            echo_line(f"{PROMPT}{line.strip()}")
        if line.startswith("/"):
            echo_line("There is no such command here: /quit ends, everything else is a question.")
        elif line.strip():
            yield line.strip()


def _read_line() -> str:
    """The next line, "" at the end. It holds the loop, which has nothing else to do: so Ctrl-C ends the waiting."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline()
    except KeyboardInterrupt:
        return ""
    finally:
        signal.signal(signal.SIGINT, before)


async def _answer(talk: Talk, question: str) -> None:
    turn = await begin_turn(
        talk.runtime,
        talk.principal,
        project_id=talk.project_id,
        question=question,
        conversation_id=talk.conversation_id,
    )
    talk.conversation_id = turn.conversation_id
    stop = Stop()
    with _stopped_by_ctrl_c(stop):
        await _show(talk, turn, stop)


async def _show(talk: Talk, turn: Turn, stop: Stop) -> None:
    async for told in answer_turn(talk.runtime, talk.principal, turn, stop=stop):
        if isinstance(told, Draft):
            async with talk.runtime.db.transaction(talk.principal.tenant_id) as session:
                await close_turn(session, talk.principal, turn, told)
            _show_sources(told, is_stopped=stop.is_asked)
        elif told.name == "text":
            sys.stdout.write(str(told.data["delta"]))
            sys.stdout.flush()
        elif told.name == "error":
            raise failure_of(told.data)
    if stop.is_asked:
        echo_line("(stopped)")


def _show_sources(draft: Draft, *, is_stopped: bool) -> None:
    echo_line("\n")
    for source in draft.sources:
        page = f", page {source.page}" if source.page else ""
        echo_line(f"[{source.index}] {source.document}{page}, characters {source.start}-{source.end}")
    if draft.mode == "extractive" and draft.sources and not is_stopped:
        echo_line("(sentences of the documents; no model was asked)")
    if draft.made_by is not None and draft.made_by.cut not in {None, "stopped"}:
        echo_line("The answer was cut off before its end.")
    if number := len(draft.unsupported):
        echo_line(f"Not supported by the passages cited: {number} of its sentences.")


@contextlib.contextmanager
def _stopped_by_ctrl_c(stop: Stop) -> Iterator[Any]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.ask)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)

"""What the templates show of conversations: plain values, shaped by pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

from markupsafe import Markup

from pharos.chat.answer_html import answer_html, passage_path
from pharos.chat.history import Source
from pharos.chat.turn_rows import TurnView
from pharos.infra.ids import MessageId, ProjectId


@dataclass(frozen=True)
class SourceLine:
    """A source under an answer; `href` opens its passage."""

    href: str = ""
    index: int | str = ""
    document: str = ""
    page: int | None = None
    text: str = ""


CUT_WORDS = {"stopped": "ask.cut_stopped", "time": "ask.cut_time"}


@dataclass(frozen=True)
class Maker:
    """The model that wrote an answer; `others` names the providers that were asked before it and did not answer."""

    model: str
    provider: str
    others: str = ""
    cut: str | None = None

    @property
    def cut_words(self) -> str:
        """The key of what is said of an answer that ends before its end."""
        return CUT_WORDS.get(self.cut or "", "ask.limit_cut")


@dataclass(frozen=True)
class Turn:
    """A question (`text`) or an answer (`html`, already sanitised, and what it rests on).

    `state` is that of an answer: done, or why there is none (running, failed, stopped, interrupted). `rating` is what
    the reader thinks of it: up, down or nothing yet.
    """

    role: str
    id: str = ""
    state: str = "done"
    rating: str = ""
    text: str = ""
    html: Markup = field(default_factory=Markup)
    mode: str | None = None
    grounded: bool | None = None
    degraded: bool = False
    unsupported: int = 0
    made_by: Maker | None = None
    sources: tuple[SourceLine, ...] = ()

    @property
    def is_unfounded(self) -> bool:
        """Whether nothing was found; with passages the reader decides, and what they do not support is marked.

        Of an answer that somebody stopped nobody knows.
        """
        is_stopped = self.made_by is not None and self.made_by.cut == "stopped"
        return self.grounded is False and not self.sources and not is_stopped


# What a script fills in when an answer streams: the same templates, without a value.
BLANKS: dict[str, Any] = {
    "blank_question": Turn(role="user"),
    "blank_answer": Turn(role="assistant"),
    "blank_source": SourceLine(),
}


class StoredMessage(Protocol):
    """What is read of a row of `messages`."""

    id: UUID
    role: str
    body: str
    mode: str | None
    grounded: bool | None
    degraded: bool | None
    unsupported: list[int]
    made_by: dict[str, Any] | None


def turns(
    project_id: ProjectId | None,
    messages: Sequence[StoredMessage],
    sources: Mapping[MessageId, Sequence[Source]],
    *,
    open_turns: Sequence[TurnView] = (),
    ratings: Mapping[MessageId, str] = {},
) -> list[Turn]:
    """The turns of a stored conversation, oldest first; without a project their sources are only quoted.

    `open_turns` left no answer, or none yet; each stands after what answers its question.
    """
    shown = []
    asked: UUID | None = None
    for place, message in enumerate(messages):
        if message.role == "user":
            asked = message.id
            shown.append(Turn(role="user", text=message.body))
        else:
            answer = _answer(project_id, message, sources.get(MessageId(message.id), ()))
            shown.append(replace(answer, rating=ratings.get(MessageId(message.id), "")))
        if place + 1 == len(messages) or messages[place + 1].role == "user":
            waiting = (turn for turn in open_turns if turn.question_id == asked)
            shown += [Turn(role="assistant", id=str(turn.id), state=turn.state) for turn in waiting]
    return shown


def _answer(project_id: ProjectId | None, message: StoredMessage, sources: Sequence[Source]) -> Turn:
    html = answer_html(
        message.body, mode=message.mode, project_id=project_id, sources=sources, unsupported=message.unsupported
    )
    lines = tuple(
        SourceLine(
            href=passage_path(project_id, source),
            index=source.index,
            document=source.document,
            page=source.page,
            text=source.text,
        )
        for source in sources
    )
    return Turn(
        role="assistant",
        id=str(message.id),
        html=Markup(html),  # noqa: S704 - `answer_html` is the sanitiser
        mode=message.mode,
        grounded=message.grounded,
        degraded=bool(message.degraded),
        unsupported=len(message.unsupported),
        made_by=_maker(message.made_by) if message.made_by is not None else None,
        sources=lines,
    )


def _maker(made_by: Mapping[str, Any]) -> Maker:
    return Maker(made_by["model"], made_by["provider"], ", ".join(made_by["failed_over_from"]), made_by.get("cut"))

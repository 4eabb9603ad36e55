"""One turn: question in, events out, every claim resting on a passage the asker may read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pharos.chat.answer_cache import answer_key, find_answer, keep_answer
from pharos.chat.citations import check_citations, safe_prefix
from pharos.chat.extractive import Extract, Quotation, extract_answer
from pharos.chat.failures import failure_of, told_failure
from pharos.chat.follow_up import find_search_text, stands_alone
from pharos.chat.grounding import find_unsupported, judged_claims
from pharos.chat.history import AnswerCut, Draft, MadeBy, Source, Turn, close_turn, open_turn
from pharos.chat.prompt import build_prompt
from pharos.identity.model_managers import find_models_page
from pharos.identity.principal import Principal
from pharos.infra.errors import Invalid, PharosError, Unavailable
from pharos.infra.ids import ConversationId, ProjectId
from pharos.infra.logs import get_logger
from pharos.infra.metrics import ANSWER_SECONDS, CLAIMS_UNSUPPORTED
from pharos.providers.contract import Call, Candidate, Usage
from pharos.retrieval.search import FoundPassage, SearchOutcome, embed_question, search
from pharos.runtime import Runtime

if TYPE_CHECKING:  # as in `retrieval.search`
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

MIN_QUESTION_CHARACTERS = 2
MAX_QUESTION_CHARACTERS = 2000
PASSAGES_READ = 8
"""Passages an answer may rest on; more crowd out a small model's context and rarely hold the answer."""
LONGEST_SECONDS = 180.0
"""For a whole answer, beginning with the question. A small model that repeats itself would fill its length instead,
which takes it longer than anybody waits."""

FAILED = "Failed to generate response."
NOT_FOUND = "I did not find this in these documents."


@dataclass(frozen=True)
class Event:
    """One step of a turn as the browser gets it: `meta`, `sources`, `text`, `done` or `error`."""

    name: Literal["meta", "sources", "text", "done", "error"]
    data: dict[str, object]


@dataclass
class Answer:
    """A whole turn, gathered from its events."""

    answer: str = ""
    mode: str = ""
    grounded: bool = False
    confidence: float = 0.0
    degraded: bool = False
    unsupported: list[int] = field(default_factory=list)
    conversation_id: str = ""
    sources: list[Source] = field(default_factory=list)
    made_by: object = None


class Stop:
    """What ends the reading of a model before its end: somebody's wish, or the time that an answer may take.

    What the model has said then becomes the answer, and `cut` is why it ends there.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.cut: Literal["stopped", "time"] | None = None
        self._ends_at = time.monotonic() + LONGEST_SECONDS
        self._reader: asyncio.Task[object] | None = None

    def ask(self) -> None:
        """End the reading now, or before it begins; nothing else of the turn is cut off."""
        self.is_asked = True
        self._end("stopped")

    async def until(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """The pieces until somebody asks to stop or the time is over; `Unavailable` if it is before the first."""
        if self.is_asked:
            self.cut = "stopped"
            return
        reader = self._reader = asyncio.current_task()
        seconds_left = max(0.0, self._ends_at - time.monotonic())
        timer = asyncio.get_running_loop().call_later(seconds_left, self._end, "time")
        has_begun = False
        try:
            async for piece in pieces:
                has_begun = has_begun or bool(piece.strip())
                yield piece
        except asyncio.CancelledError:
            if self._reader is not None or reader is None:
                raise
            reader.uncancel()
            if self.cut == "time" and not has_begun:
                raise Unavailable("The model takes too long.", code="provider_timed_out") from None
        finally:
            timer.cancel()
            self._reader = None

    def _end(self, reason: Literal["stopped", "time"]) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self.cut = reason
            reader.cancel()


async def begin_turn(
    runtime: Runtime,
    principal: Principal,
    *,
    project_id: ProjectId,
    question: str,
    conversation_id: ConversationId | None = None,
    earlier: Sequence[tuple[str, str]] = (),
    wish: str | None = None,
    owner: str | None = None,
) -> Turn:
    """Store a question, and with an `owner` the turn that answers it as theirs.

    `earlier` are (role, body) of a conversation that this one goes on from; `wish` names a model. Raises `Invalid`,
    `NotFound`, `NotAllowed`, and `Unavailable` for a model that was wished for and is not there.
    """
    question = _checked(question)
    wished = await runtime.models.resolve(principal.tenant_id, wish) if wish is not None else None
    async with runtime.db.transaction(principal.tenant_id) as session:
        turn = await open_turn(
            session,
            principal,
            project_id=project_id,
            question=question,
            conversation_id=conversation_id,
            earlier=earlier,
            wish=wish,
            owner=owner,
        )
    # A project's own choice comes before a wish.
    return turn if turn.model is not None else replace(turn, candidates=wished)


async def answer_question(
    runtime: Runtime,
    principal: Principal,
    *,
    project_id: ProjectId,
    question: str,
    conversation_id: ConversationId | None = None,
    earlier: Sequence[tuple[str, str]] = (),
    wish: str | None = None,
) -> AsyncIterator[Event]:
    """Answer in this very call, for callers that nobody listens to elsewhere: the events of `answer_turn`, then `done`.

    Raises as `begin_turn` does, before the first event.
    """
    turn = await begin_turn(
        runtime,
        principal,
        project_id=project_id,
        question=question,
        conversation_id=conversation_id,
        earlier=earlier,
        wish=wish,
    )
    async for told in answer_turn(runtime, principal, turn):
        if isinstance(told, Event):
            yield told
            continue
        async with runtime.db.transaction(principal.tenant_id) as session:
            await close_turn(session, principal, turn, told)
        yield done_event(told)


async def answer_turn(
    runtime: Runtime, principal: Principal, turn: Turn, *, stop: Stop | None = None
) -> AsyncIterator[Event | Draft]:
    """`meta`, then `sources` and `text` in the order they are known; last the draft, which the caller stores.

    Without a model, or when it fails before its first word, the answer is made of cited sentences; when nothing
    relevant was found it says so and no model is asked. A model that fails later ends the turn with `error`, and one
    that was stopped before its first word leaves no draft. Raises what ails a model that was wished for by name.
    """
    stop = stop or Stop()
    with ANSWER_SECONDS.labels("total").time(), _embedding(runtime, turn) as embedding:
        candidates = await _find_models(runtime, principal, turn)
        key = answer_key(principal, turn, candidates)
        kept = await find_answer(runtime, key) if key is not None and not turn.is_anew else None
        if kept is not None:
            yield Event("meta", _meta(turn, mode=kept.mode, degraded=kept.degraded))
            yield _sources_event(kept)
            yield Event("text", {"delta": kept.body})
            yield kept
            return
        async for told in _make_answer(runtime, principal, turn, candidates, stop=stop, embedding=embedding):
            if isinstance(told, Draft) and key is not None and not stop.is_asked:
                await keep_answer(runtime, key, told)
            yield told


@contextmanager
def _embedding(runtime: Runtime, turn: Turn) -> Iterator[asyncio.Task[NDArray[np.float32]] | None]:
    """The question on its way to its vector while the models are looked up, if it is to be searched for as it is.

    An answer that is kept already throws it away, at the cost of some 5 ms of the embedder.
    """
    task = asyncio.create_task(embed_question(runtime, turn.question)) if stands_alone(turn) else None
    try:
        yield task
    finally:
        if task is not None:
            task.cancel()


async def _make_answer(
    runtime: Runtime,
    principal: Principal,
    turn: Turn,
    candidates: tuple[Candidate, ...],
    *,
    stop: Stop,
    embedding: asyncio.Task[NDArray[np.float32]] | None,
) -> AsyncIterator[Event | Draft]:
    """As `answer_turn`, by searching and asking a model, if there is one."""
    with ANSWER_SECONDS.labels("rewrite").time():
        question = await find_search_text(runtime, principal, turn, candidates, until=stop.until)
    if stop.is_asked:
        yield Event("meta", _meta(turn, mode="model" if candidates else "extractive", degraded=False))
        return
    with ANSWER_SECONDS.labels("retrieve").time():
        found = await search(
            runtime, principal, text=question, project_id=turn.project_id, limit=PASSAGES_READ, embedding=embedding
        )
    extract = extract_answer(question, found)
    candidates = candidates if extract.is_answered else ()
    reply, call = Reply(), Call()
    if candidates:
        yield Event("meta", _meta(turn, mode="model", degraded=found.degraded))
        request = build_prompt(
            turn.question,
            found.passages,
            history=turn.history,
            instructions=turn.instructions,
            memories=turn.memories,
        )
        try:
            words = stop.until(runtime.models.stream(principal.tenant_id, candidates, request, call))
            async for piece in _stream(words, reply, given=len(found.passages)):
                yield Event("text", {"delta": piece})
            ANSWER_SECONDS.labels("first_word").observe(call.first_token_seconds or 0.0)
            ANSWER_SECONDS.labels("llm").observe(call.seconds)
        except PharosError as error:
            log.warning("model.failed", model=call.model, code=error.code, begun=bool(reply.shown))
            if reply.shown:
                message = await _failure_words(runtime, principal, call, candidates)
                yield Event("error", told_failure(error, principal, message=message))
                return
            if turn.wish is not None:
                raise
            reply = Reply()  # what was held back is no answer
    if stop.is_asked and not reply.text.strip():
        return
    if reply.text.strip():
        draft = await _from_model(runtime, reply, found, call, cut=stop.cut or call.cut)
        yield _sources_event(draft, call.usage)
    else:
        # The model was asked and said nothing; where nothing was found it is not asked, and nothing is missing.
        draft = _from_extract(extract, degraded=found.degraded or bool(candidates))
        yield Event("meta", _meta(turn, mode="extractive", degraded=draft.degraded))
        yield _sources_event(draft)
        yield Event("text", {"delta": draft.body})
    yield draft


async def _failure_words(runtime: Runtime, principal: Principal, call: Call, candidates: tuple[Candidate, ...]) -> str:
    """What went wrong is for the log; who can mend it is told where (CH-03)."""
    failed = next((one for one in candidates if (one.provider, one.model) == (call.provider, call.model)), None)
    page = await find_models_page(runtime, principal, is_shared=failed.is_shared if failed is not None else None)
    return FAILED if page is None else f"{FAILED} The cause is in the log; see {page}."


def done_event(draft: Draft) -> Event:
    """What ends a turn that has an answer."""
    told = {"grounded": draft.grounded, "confidence": draft.confidence, "text": draft.body}
    return Event("done", {**told, "unsupported": list(draft.unsupported)})


def _sources_event(draft: Draft, usage: Usage | None = None) -> Event:
    """The passages; which model read them and who had failed before (LP-20), and what it took just now."""
    sources: dict[str, object] = {"sources": [asdict(source) for source in draft.sources]}
    if draft.made_by is None:
        return Event("sources", sources)
    used = asdict(usage) if usage is not None else None
    return Event("sources", {**sources, "made_by": {**asdict(draft.made_by), "usage": used}})


@dataclass
class Reply:
    """What a model has said so far, and how much of it was shown."""

    text: str = ""
    shown: int = 0


async def _find_models(runtime: Runtime, principal: Principal, turn: Turn) -> tuple[Candidate, ...]:
    """The models to ask, or none: without one the answer is extractive (C-31), but a wish is not passed over."""
    if turn.candidates is not None:
        return turn.candidates
    try:
        return await runtime.models.resolve(principal.tenant_id, turn.wish, project=turn.model)
    except PharosError as error:
        if turn.wish is not None:
            raise
        log.info("model.none", code=error.code)
        return ()


async def _stream(words: AsyncIterator[str], reply: Reply, *, given: int) -> AsyncIterator[str]:
    """The model's words as they come, citations checked; a mark is held back until it is whole.

    Only what is not settled is checked again: checking all of a long answer at each word took most of its time.
    """
    settled, shown = 0, 0
    cited: tuple[int, ...] = ()
    async for piece in words:
        reply.text += piece
        open_text = reply.text[settled:]
        safe = safe_prefix(open_text)
        checked = check_citations(open_text[:safe], given=given, before=cited)
        if len(checked.text) > shown:
            yield checked.text[shown:]
            reply.shown += len(checked.text) - shown
            shown = len(checked.text)
        if safe == len(open_text) and not open_text.endswith("]"):
            settled, shown, cited = len(reply.text), 0, checked.cited
    rest = check_citations(reply.text[settled:], given=given, before=cited).text
    if len(rest) > shown:
        yield rest[shown:]
        reply.shown += len(rest) - shown


async def _from_model(
    runtime: Runtime, reply: Reply, found: SearchOutcome, call: Call, *, cut: AnswerCut | None
) -> Draft:
    """What a model said, with the sentences named that the passages they cite do not support.

    To cite is not enough: it is grounded when one of its sentences is supported, and trusted by the share that is.
    """
    checked = check_citations(reply.text, given=len(found.passages))
    if checked.dropped:
        log.warning("citations.dropped", number=checked.dropped)
    sources = tuple(_passage_source(index, found.passages[n - 1]) for index, n in enumerate(checked.cited, start=1))
    claims = judged_claims(checked.text, is_cut=cut is not None)
    unsupported = await find_unsupported(runtime.embedding, claims, {each.index: each.text for each in sources})
    CLAIMS_UNSUPPORTED.inc(len(unsupported))
    share = (len(claims) - len(unsupported)) / max(len(claims), 1)
    return Draft(
        checked.text,
        "model",
        grounded=share > 0,
        confidence=max((source.score for source in sources), default=0.0) * share,
        degraded=found.degraded,
        sources=sources,
        unsupported=tuple(claim.end for claim in unsupported),
        made_by=MadeBy(call.provider, call.model, call.failed_over_from, cut),
    )


def _from_extract(extract: Extract, *, degraded: bool) -> Draft:
    if not extract.is_answered:
        return Draft(
            NOT_FOUND, "extractive", grounded=False, confidence=extract.confidence, degraded=degraded, sources=()
        )
    sources = tuple(_quotation_source(index, quoted) for index, quoted in enumerate(extract.quotations, start=1))
    body = "\n\n".join(f"{source.text} [{source.index}]" for source in sources)
    return Draft(body, "extractive", grounded=True, confidence=extract.confidence, degraded=degraded, sources=sources)


def _passage_source(index: int, passage: FoundPassage) -> Source:
    return Source(
        index=index,
        document_id=str(passage.document_id),
        document=passage.document_name,
        page=passage.page,
        start=passage.start_char,
        end=passage.end_char,
        text=passage.text,
        score=passage.score,
    )


def _quotation_source(index: int, quoted: Quotation) -> Source:
    passage = _passage_source(index, quoted.passage)
    return replace(passage, start=quoted.start, end=quoted.end, text=quoted.text, score=quoted.score)


async def gather_answer(events: AsyncIterator[Event]) -> Answer:
    """The whole answer of a turn, for callers that do not stream. Raises the error a turn ended with."""
    answer = Answer()
    async for event in events:
        match event.name:
            case "meta":
                answer.mode, answer.degraded = str(event.data["mode"]), bool(event.data["degraded"])
                answer.conversation_id = str(event.data["conversation_id"])
            case "sources":
                listed = event.data["sources"]
                assert isinstance(listed, list)
                answer.sources = [Source(**source) for source in listed]
                answer.made_by = event.data.get("made_by")
            case "done":
                answer.answer, answer.grounded = str(event.data["text"]), bool(event.data["grounded"])
                answer.confidence = float(str(event.data["confidence"]))
                ends = event.data["unsupported"]
                assert isinstance(ends, list)
                answer.unsupported = ends
            case "error":
                raise failure_of(event.data)
    return answer


def _checked(question: str) -> str:
    question = question.strip()
    if not MIN_QUESTION_CHARACTERS <= len(question) <= MAX_QUESTION_CHARACTERS:
        raise Invalid(
            f"A question has {MIN_QUESTION_CHARACTERS} to {MAX_QUESTION_CHARACTERS} characters.", code="bad_question"
        )
    return question


def _meta(turn: Turn, *, mode: str, degraded: bool) -> dict[str, object]:
    return {
        "conversation_id": str(turn.conversation_id),
        "message_id": str(turn.message_id),
        "mode": mode,
        "degraded": degraded,
    }

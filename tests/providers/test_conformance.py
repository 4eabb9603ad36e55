"""Every kind of provider keeps one promise: real SDKs, a real server, and each way in which it can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from tests.provider_server import OWN_WORDS, Fault, Provider, provider_server

from pharos.infra.errors import Invalid, LimitReached, NotAllowed, PharosError, Unavailable
from pharos.providers.anthropic import AnthropicChat
from pharos.providers.contract import ChatMessage, ChatRequest, Cut, Usage, VectorRequest
from pharos.providers.openai import OpenAIChat, OpenAIVectors

REQUEST = ChatRequest(
    messages=(
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Who keeps the light?"),
        ChatMessage("assistant", "A keeper."),
        ChatMessage("user", "Which?"),
    ),
    max_tokens=77,
)
KEY = "lamp-key-0123456789"
SILENCE_SECONDS = 0.4
Chat = OpenAIChat | AnthropicChat


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider_server() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Iterator[Provider]:
    fresh = Provider(port=running.port, release=running.release, huge_bytes=20 * 1024 * 1024)
    running.__dict__.update(fresh.__dict__)
    yield running
    running.release.set()
    running.release = type(running.release)()


@pytest.fixture(params=["openai", "anthropic"])
async def chat(request: pytest.FixtureRequest, provider: Provider) -> AsyncIterator[Chat]:
    options: dict[str, Any] = {"name": "lamp", "key": KEY, "allows_private": True, "silence_seconds": SILENCE_SECONDS}
    model = (
        OpenAIChat(base_url=provider.openai_url, **options)
        if request.param == "openai"
        else AnthropicChat(base_url=provider.anthropic_url, **options)
    )
    yield model
    await model.close()


@pytest.fixture
async def vectors(provider: Provider) -> AsyncIterator[OpenAIVectors]:
    model = OpenAIVectors(
        name="vectors", base_url=provider.openai_url, key=KEY, allows_private=True, silence_seconds=SILENCE_SECONDS
    )
    yield model
    await model.close()


async def read(chat: Chat) -> tuple[list[str], PharosError | None]:
    """The pieces that came, and the error that ended them."""
    pieces: list[str] = []
    try:
        async for piece in chat.stream(REQUEST):
            if isinstance(piece, str):
                pieces.append(piece)
    except PharosError as error:
        return pieces, error
    return pieces, None


async def test_pieces_come_in_order_and_then_what_the_provider_counted(chat: Chat, provider: Provider) -> None:
    *pieces, usage = [piece async for piece in chat.stream(REQUEST)]
    assert pieces == provider.words
    counted = 2 + 4 + 2 + 1 if isinstance(chat, OpenAIChat) else 4 + 2 + 1
    assert usage == Usage(counted, len(provider.words))


async def test_the_request_carries_key_model_bound_instructions_and_history(chat: Chat, provider: Provider) -> None:
    await read(chat)
    (asked,) = provider.asked
    assert KEY in asked.headers.get("authorization", "") + asked.headers.get("x-api-key", "")
    assert (asked.body["model"], asked.body["stream"], asked.body["max_tokens"]) == ("lamp", True, 77)
    said = [(message["role"], message["content"]) for message in asked.body["messages"]]
    if isinstance(chat, AnthropicChat):
        said = [("system", asked.body["system"]), *said]
    assert said == [(message.role, message.content) for message in REQUEST.messages]


REFUSALS: list[tuple[Fault, type[PharosError], str]] = [
    ("key_refused", NotAllowed, "provider_key_refused"),
    ("forbidden", NotAllowed, "provider_key_refused"),
    ("no_such_model", Unavailable, "no_such_model"),
    ("bad_request", Invalid, "provider_refused"),
    ("rate_limited", LimitReached, "provider_rate_limited"),
    ("insufficient_quota", NotAllowed, "provider_credit_used_up"),
    ("failed", Unavailable, "provider_failed"),
    ("overloaded", Unavailable, "provider_failed"),
    ("slow", Unavailable, "provider_timed_out"),
    ("hang_up", Unavailable, "provider_unreachable"),
    ("not_json", Unavailable, "provider_answer_bad"),
    ("truncated", Unavailable, "provider_answer_bad"),
    ("huge_line", Unavailable, "provider_answer_bad"),
    ("bomb", Unavailable, "provider_answer_bad"),
    ("redirect", Invalid, "provider_address_refused"),
]


@pytest.mark.parametrize(("fault", "kind", "code"), REFUSALS)
async def test_a_failure_has_its_name_and_asks_once(
    chat: Chat, provider: Provider, fault: Fault, kind: type[PharosError], code: str
) -> None:
    provider.always = fault
    pieces, error = await read(chat)
    assert isinstance(error, kind)
    assert error.code == code
    assert error.message.count(".") >= 1
    assert len(provider.asked) == 1, "it tried again by itself, or went where it was sent"
    assert pieces == ([] if fault != "huge_line" else provider.words[:1])


async def test_a_page_for_people_is_told_from_an_answer_without_words(chat: Chat, provider: Provider) -> None:
    provider.always = "not_json"
    _, error = await read(chat)
    assert "a page for people" in str(error)
    assert error is not None
    assert error.cause_words == "", "the provider itself said nothing"


@pytest.mark.parametrize("fault", ["stalled", "cut", "error_event", "huge"])
async def test_a_failure_in_the_middle_ends_the_words_with_its_name(
    chat: Chat, provider: Provider, fault: Fault
) -> None:
    provider.always = fault
    pieces, error = await read(chat)
    assert error is not None
    named = {"stalled": "provider_timed_out", "error_event": "provider_failed"}.get(fault, "provider_answer_bad")
    assert error.code == named
    if fault == "huge":
        assert sum(map(len, pieces)) <= 50_000
    else:
        assert pieces == provider.words[:1]


@pytest.mark.contract("LP-04", part="the provider's own words, kept for the log and for engineers")
@pytest.mark.contract("LP-25", part="the provider's status and words, the key never in them")
@pytest.mark.parametrize("fault", ["key_refused", "failed", "rate_limited"])
async def test_the_providers_own_words_are_kept_without_any_key(chat: Chat, provider: Provider, fault: Fault) -> None:
    provider.always = fault
    _, error = await read(chat)
    assert error is not None
    status = {"key_refused": "401", "failed": "500", "rate_limited": "429"}[fault]
    assert error.cause_words.startswith(f"{status} Incorrect key provided")
    assert OWN_WORDS.endswith("You said no.")
    assert error.cause_words.endswith("You said no.")
    assert "sk-" not in error.cause_words
    assert error.cause_words not in error.message


@pytest.mark.parametrize("fault", ["error_page", "not_json", "truncated"])
async def test_what_is_no_error_in_the_wire_format_is_not_repeated(
    chat: Chat, provider: Provider, fault: Fault
) -> None:
    """Whoever enters an address hears these words: they must not read by them what else listens there."""
    provider.always = provider.models_fault = fault
    _, error = await read(chat)
    with pytest.raises(PharosError) as refused:
        await chat.list_models()
    for each in (error, refused.value):
        assert each is not None
        for page in ("proxy", "Welcome", "doctype", "The kee"):
            assert page not in f"{each.message} {each.cause_words}"
    if fault == "error_page":
        assert error is not None
        assert (error.code, error.cause_words) == ("provider_failed", "500")


@pytest.mark.contract("LP-22", part="the provider's own Retry-After is known")
async def test_the_seconds_a_provider_asks_to_wait_are_kept(chat: Chat, provider: Provider) -> None:
    provider.always, provider.retry_after_seconds = "rate_limited", 11
    _, error = await read(chat)
    assert isinstance(error, LimitReached)
    assert error.retry_after_seconds == 11


async def test_an_answer_that_its_own_length_cut_says_so(chat: Chat, provider: Provider) -> None:
    provider.always = "at_limit"
    said = [piece async for piece in chat.stream(REQUEST)]
    assert [piece for piece in said if isinstance(piece, str)] == provider.words
    assert [piece for piece in said if isinstance(piece, Cut)] == [Cut("length")]


async def test_a_provider_that_says_nothing_at_all_is_answered_by_nothing(chat: Chat, provider: Provider) -> None:
    provider.always = "no_words"
    assert await read(chat) == ([], None)


async def test_a_reader_that_leaves_ends_the_call(chat: Chat, provider: Provider) -> None:
    provider.always = "stalled"
    async with asyncio.timeout(SILENCE_SECONDS / 2), aclosing(chat.stream(REQUEST)) as pieces:  # type: ignore[type-var]
        assert await anext(pieces) == provider.words[0]


async def test_an_answer_after_a_failure_is_whole(chat: Chat, provider: Provider) -> None:
    provider.faults.extend(["cut", "failed"])
    assert (await read(chat))[1] is not None
    assert (await read(chat))[1] is not None
    assert await read(chat) == (provider.words, None)


async def test_models_are_listed_by_name(chat: Chat, provider: Provider) -> None:
    assert await chat.list_models() == provider.models


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("key_refused", "provider_key_refused"),
        ("not_json", "provider_answer_bad"),
        ("truncated", "provider_answer_bad"),
        ("slow", "provider_timed_out"),
    ],
)
async def test_a_list_of_models_that_cannot_be_had_has_the_same_names(
    chat: Chat, provider: Provider, fault: Fault, code: str
) -> None:
    provider.models_fault = fault
    with pytest.raises(PharosError) as refused:
        await chat.list_models()
    assert refused.value.code == code


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    for model in (OpenAIChat, AnthropicChat):
        nobody = model(name="lamp", base_url="http://127.0.0.1:9999", key=None, allows_private=True)
        assert [getattr((await read(nobody))[1], "code", None)] == ["provider_unreachable"]
        await nobody.close()


@pytest.mark.contract("LP-11", part="the environment's keys are never taken for a tenant's")
async def test_no_key_of_the_environment_goes_to_a_provider(
    chat: Chat, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "the-operators-own-key")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: the-operators-own-key")
    url = provider.openai_url if isinstance(chat, OpenAIChat) else provider.anthropic_url
    keyless = type(chat)(name="lamp", base_url=url, key=None, allows_private=True)
    await read(keyless)
    await keyless.close()
    assert "the-operators-own-key" not in str(provider.asked[0].headers)


async def test_vectors_come_in_the_order_of_their_texts_with_length_one(
    vectors: OpenAIVectors, provider: Provider
) -> None:
    texts = tuple(f"text {number}" for number in range(30))
    rows, usage = await vectors.embed(VectorRequest(texts))
    assert (rows.shape, rows.dtype.name, usage) == ((30, provider.dimension), "float32", Usage(60, 0))
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    alone, _ = await vectors.embed(VectorRequest(texts[29:]))
    assert np.allclose(rows[29], alone[0])
    short, _ = await vectors.embed(VectorRequest(texts, dimension=12))
    assert short.shape == (30, 12)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("wrong_dimension", "provider_answer_bad"),
        ("shorter", "provider_answer_bad"),
        ("missing", "provider_answer_bad"),
        ("nan", "provider_answer_bad"),
        ("huge", "provider_answer_bad"),
        ("bomb", "provider_answer_bad"),
        ("not_json", "provider_answer_bad"),
        ("truncated", "provider_answer_bad"),
        ("failed", "provider_failed"),
        ("key_refused", "provider_key_refused"),
        ("slow", "provider_timed_out"),
    ],
)
async def test_vectors_that_cannot_be_used_end_in_a_named_error(
    vectors: OpenAIVectors, provider: Provider, fault: Fault, code: str
) -> None:
    provider.faults.append(fault)
    with pytest.raises(PharosError) as refused:
        await vectors.embed(VectorRequest(("one", "two"), dimension=provider.dimension))
    assert refused.value.code == code

"""What a provider's failure is to the rest of Pharos: the same names whatever wire format it came over."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

import httpx2

from pharos.infra.address_guard import AddressRefused
from pharos.infra.errors import Invalid, LimitReached, NotAllowed, PharosError, Unavailable
from pharos.infra.redact import HIDDEN, redact

WORDS_CHARACTERS = 300
LONGEST_WAIT_SECONDS = 3600.0
MALFORMED = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What reading an answer that is not in the wire format raises, in the SDKs and here."""


NAMED: dict[str, tuple[type[PharosError], str]] = {
    "provider_key_refused": (
        NotAllowed,
        "The provider refused its key. An administrator checks it, or enters it again.",
    ),
    "provider_rate_limited": (
        LimitReached,
        "The provider's own limit is reached. Wait a minute, or choose another model.",
    ),
    "provider_credit_used_up": (
        NotAllowed,
        "The provider's credit is used up: waiting does not help. An administrator adds credit on its billing page, or "
        "choose another model.",
    ),
    "no_such_model": (
        Unavailable,
        "The provider knows no such model. Check the model's name and the provider's address.",
    ),
    "provider_timed_out": (
        Unavailable,
        "The model's server did not answer in time. Ask again, or choose another model.",
    ),
    "provider_unreachable": (
        Unavailable,
        "The model's server does not answer. Check its address and whether it runs.",
    ),
    "provider_refused": (Invalid, "The provider refused this question. It may be too long for the model."),
    "provider_address_refused": (
        AddressRefused,
        "The provider's address leads elsewhere. Enter the one it leads to.",
    ),
    "provider_failed": (Unavailable, "Failed to generate response."),
}
CREDIT_WORDS = frozenset({"insufficient_quota", "billing_not_active", "credits_exhausted"})
"""What vendors call a 429, by its `code` or `type`, that ends only when somebody pays."""
CODE_OF_STATUS = {
    401: "provider_key_refused",
    402: "provider_credit_used_up",
    403: "provider_key_refused",
    404: "no_such_model",
    408: "provider_timed_out",
    429: "provider_rate_limited",
    504: "provider_timed_out",
}


def as_kind(error: Exception, *, key: str | None, has_begun: bool = False) -> PharosError:
    """The error of ours that an SDK's error, a transport's or an unreadable answer stands for.

    `key` is taken out of the provider's words. `has_begun`: the answer had already begun when it failed.
    """
    chain = list(_causes(error))
    if ours := next((one for one in chain if isinstance(one, PharosError)), None):
        return ours
    words = _words(error, key)
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 300:
        return _of_status(status, error, f"{status} {words}".strip())
    if any(isinstance(one, (httpx2.TimeoutException, TimeoutError)) for one in chain):
        return _named("provider_timed_out", words)
    is_connected = not any(isinstance(one, httpx2.ConnectError) for one in chain)
    if is_connected and any(isinstance(one, MALFORMED) for one in chain):  # a bad certificate is a ValueError as well
        return bad_answer("it is not what this kind of provider sends", words)
    if any(isinstance(one, httpx2.HTTPError) for one in chain):
        return bad_answer("it broke off", words) if has_begun else _named("provider_unreachable", words)
    return _named("provider_failed", words)


def bad_answer(reason: str, words: str = "") -> Unavailable:
    """An answer that nobody can use; `reason` completes "… cannot be used: …"."""
    return Unavailable(
        f"The model's answer cannot be used: {reason}. Ask again, or choose another model.",
        code="provider_answer_bad",
        cause_words=words,
    )


def nothing_came(content_type: str) -> Unavailable:
    """The error for an answer without a word; a page is what a wrong address sends, or a sign-in
    that stands before the right one."""
    if content_type.startswith("text/html"):
        return bad_answer("it is a page for people. Check the address, and whether a sign-in stands before it")
    return bad_answer("it holds nothing")


def _named(code: str, words: str, wait: float | None = None) -> PharosError:
    kind, message = NAMED[code]
    return kind(message, code=code, cause_words=words, retry_after_seconds=wait)


def _of_status(status: int, error: Exception, words: str) -> PharosError:
    response = getattr(error, "response", None)
    headers: Mapping[str, str] = response.headers if response is not None else {}
    if status < 400:
        place = headers.get("location", "").partition("?")[0][:WORDS_CHARACTERS]
        return _named("provider_address_refused", f"{words} -> {redact(place)}")
    if status == 429 and CREDIT_WORDS & {str(getattr(error, "code", None)), str(getattr(error, "type", None))}:
        return _named("provider_credit_used_up", words)
    other = "provider_refused" if status < 500 else "provider_failed"
    return _named(CODE_OF_STATUS.get(status, other), words, retry_after_seconds(headers))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long a provider asks to wait, as seconds or as a date, an hour at most; None where it does not say."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return min(float(value), LONGEST_WAIT_SECONDS)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _words(error: Exception, key: str | None) -> str:
    """What was said, in one line and short, with nothing in it that opens anything.

    Of an answer only the message of an error in the wire format: who enters an address hears these words, and must not
    read by them the pages of whatever else listens there.
    """
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    said = inner.get("message") if isinstance(inner, dict) else None
    if not isinstance(said, str):
        said = "" if hasattr(error, "status_code") else _own_words(error)
    said = said[: 4 * WORDS_CHARACTERS]
    if key:
        said = said.replace(key, HIDDEN)
    return " ".join(str(redact(said)).split())[:WORDS_CHARACTERS]


def _own_words(error: Exception) -> str:
    """What the library says of a failed connection; of an unreadable answer only its kind: it may quote the answer."""
    return type(error).__name__ if isinstance(error, MALFORMED) else str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""The six kinds of error. Each edge (API, page, command, job) maps a kind once.

A message is a sentence for the person who meets it and names the next step; `code` is stable and part of the API.
"""

from __future__ import annotations

from typing import ClassVar


class PharosError(Exception):
    """An expected failure.

    `details` are facts about it that may be shown to the caller (ids, limits), never secrets or document text.
    `cause_words` are what a part outside said, such as "401 Incorrect API key": for the log and for whoever manages
    that part, never for whoever only asks.
    `retry_after_seconds`: when it works again, where that is known.
    """

    code: str = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        cause_words: str = "",
        **details: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.cause_words = cause_words
        if code is not None:
            self.code = code
        self.details = details


class Invalid(PharosError):
    """The request itself is wrong; repeating it cannot help."""

    code = "invalid"
    http_status = 422
    exit_code = 2


class NotFound(PharosError):
    """There is no such thing, or the caller may not know that there is."""

    code = "not_found"
    http_status = 404
    exit_code = 3


class NotAllowed(PharosError):
    """The caller is known and may not do this."""

    code = "not_allowed"
    http_status = 403
    exit_code = 4


class NotSignedIn(NotAllowed):
    """Nobody is known to be asking."""

    code = "not_signed_in"
    http_status = 401


class Conflict(PharosError):
    """The state of things forbids it now."""

    code = "conflict"
    http_status = 409
    exit_code = 5


class LimitReached(PharosError):
    """A limit is used up; later, or with less, it works."""

    code = "limit_reached"
    http_status = 429
    exit_code = 6
    retryable = True


class TooLarge(LimitReached):
    """More bytes than allowed: sending the same again cannot help."""

    code = "too_large"
    http_status = 413
    retryable = False


class Unavailable(PharosError):
    """A part that is needed does not answer."""

    code = "unavailable"
    http_status = 503
    exit_code = 7
    retryable = True


class StorageFull(Unavailable):
    """The disk has no room; nothing of the request was kept."""

    code = "storage_full"
    http_status = 507

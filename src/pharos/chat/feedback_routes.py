"""Feedback over HTTP; it is taken also while the database is away."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pharos.chat.feedback import Given, now, spool_feedback, store_feedback
from pharos.chat.routes import Body
from pharos.identity.current import CurrentRuntime
from pharos.identity.principal import Principal
from pharos.identity.unproved import Unproved, asker_or_unproved, is_away, shown_by
from pharos.infra.ids import MessageId

router = APIRouter(tags=["chat"])


class NewFeedback(Body):
    message_id: UUID
    rating: Literal["up", "down"]
    comment: Annotated[str, Field(max_length=2000)] = ""


class StoredFeedback(Body):
    """`stored` is false while it waits for the database."""

    stored: bool


@router.post(
    "/feedback",
    status_code=201,
    responses={202: {"model": StoredFeedback, "description": "The database is away: kept, and stored when it is back"}},
)
async def give_feedback(
    *,
    request: Request,
    body: NewFeedback,
    asker: Annotated[Principal | Unproved, Depends(asker_or_unproved)],
    runtime: CurrentRuntime,
    response: Response,
) -> StoredFeedback:
    """Whether an answer in one's own conversation helps; one's last word counts."""
    given = Given(MessageId(body.message_id), body.rating, body.comment, now())
    if isinstance(asker, Principal):
        try:
            async with runtime.db.transaction(asker.tenant_id) as session:
                await store_feedback(session, asker, given)
        except (DBAPIError, PoolTimeout, OSError) as error:
            if not is_away(error):
                raise
        else:
            return StoredFeedback(stored=True)
        asker = shown_by(request)
    spool_feedback(runtime, asker, given)
    response.status_code = 202
    return StoredFeedback(stored=False)

"""The pages of the doors that open by mail. Opening one changes nothing; what its button does goes to the API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from pharos.identity import email_change, invitations, magic_link, password_reset
from pharos.identity.current import CurrentRuntime
from pharos.identity.one_time import BadLink
from pharos.infra.http import safe_next
from pharos.web.html import page
from pharos.web.visit import CurrentVisit, find_visit

router = APIRouter(include_in_schema=False)

Token = Annotated[str, Query(max_length=200)]
NextPath = Annotated[str | None, Query(alias="next", max_length=2000)]

ASK_LINK_PATH = "/sign-in/link"
FORGOT_PATH = "/password/forgot"
CHANGE_EMAIL_PATH = "/account/email"


@router.get(ASK_LINK_PATH)
def ask_link_page(request: Request, next_path: NextPath = None) -> Response:
    """Where to send a sign-in link."""
    action = "/api/auth/magic-link/request"
    return page(request, "mail_ask.html", kind="link", action=action, next_path=safe_next(next_path))


@router.get(FORGOT_PATH)
def forgot_page(request: Request) -> Response:
    """Where to send the link for a new password."""
    return page(request, "mail_ask.html", kind="forgot", action="/auth/password/forgot", next_path="/")


@router.get("/mail-sent")
async def mail_sent_page(request: Request, runtime: CurrentRuntime) -> Response:
    """What to do now; the same whether or not a mail was sent."""
    visit = await find_visit(request)
    has_mail_server = runtime.settings.smtp_url is not None
    return page(request, "mail_sent.html", has_mail_server=has_mail_server, **(visit.context if visit else {}))


@router.api_route(magic_link.LINK_PATH, methods=["GET", "HEAD"])
async def magic_link_page(request: Request, runtime: CurrentRuntime, token: Token = "") -> Response:
    """The button that signs in; a scanner of mail does not press it."""
    try:
        email, next_path = await magic_link.look_at_magic_link(runtime, token)
    except BadLink:
        return _bad_link(request, again=ASK_LINK_PATH)
    action = "/api/auth/magic-link/verify"
    return page(
        request, "mail_confirm.html", kind="enter", action=action, email=email, token=token, next_path=next_path
    )


@router.api_route(password_reset.RESET_PATH, methods=["GET", "HEAD"])
async def new_password_page(request: Request, runtime: CurrentRuntime, token: Token = "") -> Response:
    """Choose a new password."""
    try:
        email = await password_reset.look_at_password_reset(runtime, token)
    except BadLink:
        return _bad_link(request, again=FORGOT_PATH)
    return page(request, "new_password.html", email=email, token=token)


@router.api_route(invitations.INVITATION_PATH, methods=["GET", "HEAD"])
async def invitation_page(request: Request, runtime: CurrentRuntime, token: Token = "") -> Response:
    """Accept an invitation: with a name and a password, or with the account that is there."""
    try:
        seen = await invitations.look_at_invitation(runtime, token)
    except BadLink:
        return _bad_link(request, again=None)
    return page(request, "invitation.html", seen=seen, token=token)


@router.get(CHANGE_EMAIL_PATH)
async def change_email_page(request: Request, visit: CurrentVisit) -> Response:
    """Ask for another address."""
    return page(request, "account_email.html", **visit.context, email=visit.principal.name)


@router.api_route(email_change.CONFIRM_PATH, methods=["GET", "HEAD"])
async def confirm_email_page(request: Request, runtime: CurrentRuntime, token: Token = "") -> Response:
    """The button that gives the account its new address."""
    try:
        email = await email_change.look_at_email_change(runtime, token)
    except BadLink:
        return _bad_link(request, again=CHANGE_EMAIL_PATH)
    action = "/auth/email/confirm"
    return page(request, "mail_confirm.html", kind="address", action=action, email=email, token=token, next_path="/")


def _bad_link(request: Request, *, again: str | None) -> Response:
    """The same for a wrong, a used and an old link; `again` is where to ask for a new one oneself."""
    return page(request, "bad_link.html", status=401, again=again)

"""An error as a page: where the API answers JSON, a person at a browser gets words and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from pharos.access.shares import NO_LINK
from pharos.identity.current import PASSWORD_CHANGE_REQUIRED
from pharos.identity.setup import SETUP_PATH
from pharos.infra.errors import NotSignedIn, PharosError
from pharos.infra.http import error_headers
from pharos.web.html import HEADERS, page

NOT_INITIALIZED = "not_initialized"
CHANGE_PASSWORD_PATH = "/password/change"  # noqa: S105 - an address
KINDS = frozenset({403, 404, 422, 429, 500, 503})


def wants_page(request: Request) -> bool:
    """True for what a browser asks for by itself (an address, a plain form), false for our scripts and API clients."""
    return "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers


def error_page(request: Request, error: PharosError, *, request_id: str, visit: Mapping[str, Any]) -> Response:
    """The page for a failure. Nobody signed in leads to the sign-in page, nobody set up to the setup, and so on.

    `visit` is the context of who looks at it, empty for nobody.
    """
    if error.code == NOT_INITIALIZED:
        return RedirectResponse(SETUP_PATH, status_code=303, headers=HEADERS)
    if error.code == PASSWORD_CHANGE_REQUIRED:
        return RedirectResponse(CHANGE_PASSWORD_PATH, status_code=303, headers=HEADERS)
    if isinstance(error, NotSignedIn):
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        path = f"/sign-in?next={quote(wanted, safe='')}" if request.method == "GET" and wanted != "/" else "/sign-in"
        return RedirectResponse(path, status_code=303, headers=HEADERS)
    status = error.http_status
    kind = status if status in KINDS else (503 if status > 500 else 422)
    # What is missing is said in the page's own words: the API's name its addresses, which help nobody here.
    message = None if status in {404, 500} and error.code != NO_LINK.code else error.message
    context = {"kind": str(kind), "message": message, "request_id": request_id, "is_guest": error.code == NO_LINK.code}
    reply = page(request, "error.html", status=status, **context, **visit)
    reply.headers.update(error_headers(error))
    return reply

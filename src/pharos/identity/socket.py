"""Who opens a WebSocket: an access token or the session's cookie, never in the address, where logs would keep it.

Scripts of other sites may open sockets that carry our cookie, so with a cookie the handshake must come from one of our
own pages and bring the token that their forms bring.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import WebSocket

from pharos.identity.current import COOKIE, PASSWORD_CHANGE_REQUIRED, check_csrf_token, visitor_of
from pharos.identity.recognise import SignedIn, find_by_claims, find_by_session_token
from pharos.identity.tokens import read_access_token
from pharos.infra.errors import NotAllowed, NotSignedIn
from pharos.runtime import Runtime

PROTOCOL = "pharos"
"""What we answer of the protocols that a client offers; the others it offers are `bearer.TOKEN` and `csrf.TOKEN`."""


async def socket_holder(runtime: Runtime, socket: WebSocket) -> SignedIn:
    """Whoever holds what the handshake brought, if it holds at this moment. Raises `NotSignedIn` or `NotAllowed`."""
    if (token := _offered(socket, "bearer")) is not None:
        signed_in = await find_by_claims(runtime, read_access_token(runtime.settings, token))
    elif cookie := socket.cookies.get(COOKIE):
        origin = socket.headers.get("origin")
        if origin is None or urlsplit(origin).netloc != socket.headers.get("host"):
            raise NotAllowed("This socket was opened by another site and was refused.", code="cross_site")
        signed_in = await find_by_session_token(runtime, cookie)
        check_csrf_token(visitor_of(runtime, signed_in, by_cookie=True), _offered(socket, "csrf") or "")
    else:
        raise NotSignedIn("Offer the protocols `pharos` and `bearer.TOKEN`, with a token of `POST /auth/login`.")
    if signed_in.must_change_password:
        raise NotAllowed("Choose a password of your own first.", code=PASSWORD_CHANGE_REQUIRED)
    return signed_in


def _offered(socket: WebSocket, name: str) -> str | None:
    found = (each for each in socket.scope.get("subprotocols", ()) if each.startswith(f"{name}."))
    return next(found, "").removeprefix(f"{name}.") or None

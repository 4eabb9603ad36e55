"""Tokens: short-lived signed ones for the API, long-lived opaque ones for sessions, and the page's forgery token."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pharos.identity.signing_keys import (
    JWT,
    SESSION,
    SigningSecret,
    current_key,
    key_id,
    signing_key,
    verifying_keys,
)
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId, UserId
from pharos.infra.settings import Settings

ALGORITHM = "HS256"
ISSUER = "pharos"
AUDIENCE = "pharos-api"
REQUIRED_CLAIMS = ["iss", "aud", "sub", "exp", "iat", "jti", "tenant", "sid"]
SESSION_PREFIX = "phs"
REFRESH_PREFIX = "phr"
API_KEY_PREFIX = "pha"
SIGN_IN_AGAIN = "Your sign-in has ended. Sign in again."


@dataclass(frozen=True)
class AccessClaims:
    """What a verified access token says; whether it still holds is asked of the database."""

    tenant_id: TenantId
    user_id: UserId
    session_id: UUID


def issue_access_token(settings: Settings, *, tenant_id: TenantId, user_id: UserId, session_id: UUID) -> str:
    """A JWT that lives `access_token_minutes`."""
    now = datetime.now(UTC)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user_id),
        "iat": now,
        "exp": now + timedelta(minutes=settings.access_token_minutes),
        "jti": secrets.token_hex(16),
        "tenant": str(tenant_id),
        "sid": str(session_id),
    }
    import jwt  # here and below: commands, which sign and read none, would wait for its cryptography

    key = signing_key(settings)
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": key_id(key)})


def read_access_token(settings: Settings, token: str) -> AccessClaims:
    """The claims of a token we signed. Raises `NotSignedIn` for any other: forged, foreign, expired or incomplete.

    Only an expired one that was ours has a code of its own, `token_expired`: its client refreshes. All others are
    answered as an ended session is, so that nobody learns what was wrong with a token they made.

    The algorithm and the keys are ours; the token's header only chooses among the keys that count now.
    """
    import jwt

    keys = {key_id(key): key for key in verifying_keys(settings, JWT)}
    try:
        key = keys.get(jwt.get_unverified_header(token).get("kid", ""))
        if key is None:
            raise NotSignedIn(SIGN_IN_AGAIN)
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": REQUIRED_CLAIMS},
        )
        return AccessClaims(
            tenant_id=TenantId(UUID(claims["tenant"])),
            user_id=UserId(UUID(claims["sub"])),
            session_id=UUID(claims["sid"]),
        )
    except jwt.ExpiredSignatureError as error:
        raise NotSignedIn("Your access token has expired. Sign in again.", code="token_expired") from error
    except (jwt.PyJWTError, ValueError, AttributeError) as error:
        raise NotSignedIn(SIGN_IN_AGAIN) from error


def new_session_token(tenant_id: TenantId) -> str:
    """256 random bits behind the tenant's id, which leads to the row inside the fence."""
    return f"{SESSION_PREFIX}_{tenant_id.hex}_{secrets.token_urlsafe(32)}"


def new_refresh_token(tenant_id: TenantId) -> str:
    """The first refresh token of a session."""
    return f"{REFRESH_PREFIX}_{tenant_id.hex}_{secrets.token_urlsafe(32)}"


def successor_of(settings: Settings, refresh_token: str) -> str:
    """The refresh token that follows this one: always the same, and known to nobody without our key.

    So whoever loses a race for it gets it too, although only hashes are stored.
    """
    secret = _keyed(signing_key(settings), "successor", refresh_token)
    return f"{REFRESH_PREFIX}_{tenant_of(refresh_token, prefix=REFRESH_PREFIX).hex}_{secret}"


def new_api_key(tenant_id: TenantId) -> str:
    """The text of an API key, shown once."""
    return f"{API_KEY_PREFIX}_{tenant_id.hex}_{secrets.token_urlsafe(32)}"


def api_key_hash(key: str) -> str:
    """What is stored of an API key. Not keyed: 256 random bits need no secret to hide behind, and programs keep
    their keys when the secret of the sign-ins is rotated."""
    return hashlib.sha256(f"api-key:{key}".encode()).hexdigest()


def link_hash(token: str) -> str:
    """What is stored of the token in a mail or a share link. Not keyed, as with API keys: links that are on their way
    or with a guest outlive a rotation."""
    return hashlib.sha256(f"link:{token}".encode()).hexdigest()


def tenant_of(token: str, *, prefix: str = SESSION_PREFIX) -> TenantId:
    """Where an opaque token belongs. Raises `NotSignedIn` when it is none of this kind."""
    found, _, rest = token.partition("_")
    tenant, _, secret = rest.partition("_")
    try:
        if found != prefix or not secret:
            raise ValueError
        return TenantId(UUID(hex=tenant))
    except ValueError as error:
        raise NotSignedIn(SIGN_IN_AGAIN) from error


def token_hash(settings: Settings, token: str) -> str:
    """What is stored of an opaque token. Keyed: a new secret ends every session (C-03).

    Cookies rest on the secret of the sessions, all others on the one that signs access tokens.
    """
    return _keyed(current_key(settings, _secret_behind(token)), "token", token)


def token_hashes(settings: Settings, token: str) -> list[str]:
    """Every hash under which a token may be stored now: during the grace of a rotation there are two."""
    return [_keyed(key, "token", token) for key in verifying_keys(settings, _secret_behind(token))]


def login_hash(settings: Settings, login: str) -> str:
    """What stands for a name nobody here has: the same for the same name, and without our key it tells no name."""
    return _keyed(signing_key(settings), "login", login)[:16]


def csrf_token(settings: Settings, session_id: UUID) -> str:
    """What a page must send back with every change: proof that the request comes from a page of ours."""
    return _keyed(current_key(settings, SESSION), "csrf", str(session_id))


def _secret_behind(token: str) -> SigningSecret:
    return SESSION if token.startswith(f"{SESSION_PREFIX}_") else JWT


def _keyed(key: bytes, purpose: str, value: str) -> str:
    return hmac.new(key, f"{purpose}:{value}".encode(), hashlib.sha256).hexdigest()

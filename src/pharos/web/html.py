"""One page as a response: the template, the words of the reader's language, and the headers every page carries."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from pharos.identity.audit import detail_words
from pharos.providers.spend import dollars
from pharos.web.translate import catalog, pick_language, translator

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

HEADERS = {
    # Nothing inline, nothing from elsewhere: a hostile document or answer has no way to run or to call home.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    "Vary": "Cookie, Accept-Language",
}

# An address that opens something by itself is told to nobody and kept by no search engine. Only for pages that send
# by script: a plain form would come without an origin and be refused.
SECRET_ADDRESS_HEADERS = {**HEADERS, "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow"}

ANONYMOUS = "none"
"""What a page sends where nobody is signed in; that it sends a token at all tells the API that a page asks."""

# The first sign that is in a `User-Agent` decides: browsers also name those they descend from.
BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("CriOS/", "Chrome"),
    ("Safari/", "Safari"),
)
SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)

# The words the modules in static/ say; a test keeps this in step with their t("…") calls.
SPOKEN_PREFIXES = ("app.", "ask.", "documents.", "setup.show", "setup.hide")


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render `template` with `context`; `person` and `csrf_token` default to nobody and to nobody's."""
    language = pick_language(request.headers.get("accept-language", ""))
    body = (
        environment()
        .get_template(template)
        .render(
            {
                "person": None,
                "csrf_token": ANONYMOUS,
                "status": status,
                "language": language,
                "t": translator(language),
                "words": _spoken_words(language),
                **context,
            }
        )
    )
    has_token = "token" in request.path_params or "token" in request.query_params
    return HTMLResponse(body, status_code=status, headers=SECRET_ADDRESS_HEADERS if has_token else HEADERS)


@cache
def environment() -> Environment:
    """The templates: everything is escaped, and a name nobody gave is an error, never an empty space."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html", "svg"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["size"] = human_size
    jinja.filters["moment"] = moment
    jinja.filters["span"] = span
    jinja.filters["dollars"] = dollars
    jinja.filters["commands"] = commands
    jinja.filters["device"] = device
    jinja.filters["detail"] = detail_words
    jinja.globals["static"] = static_path
    return jinja


def static_path(name: str) -> str:
    """Where a browser finds a file of `static/`, below the version of them all: modules name each other beside them."""
    return f"/static/{static_version()}/{name}"


@cache
def static_version() -> str:
    """12 hexadecimal digits, others once any file of `static/` is another one."""
    digest = hashlib.sha256()
    for file in sorted(STATIC.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(STATIC)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def moment(at: datetime | None) -> str:
    """A time as pages show it, to the minute; "–" for one that has not come.

    >>> moment(datetime(2026, 3, 1, 9, 5, tzinfo=UTC)), moment(None)
    ('2026-03-01 09:05 UTC', '–')
    """
    return "–" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """A duration in the largest unit that leaves at least 2, as a person says it.

    >>> span(41.6), span(600), span(27 * 3600), span(93 * 86400)
    ('42 s', '10 min', '27 h', '93 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def commands(sentence: str) -> Markup:
    """A sentence whose commands, between backticks, stand out.

    >>> commands("Run `pharos drill` & wait")
    Markup('Run <code>pharos drill</code> &amp; wait')
    """
    parts = str(escape(sentence)).split("`")
    # Escaped before, so that only our own tags are tags; an odd backtick is one of the text's own.
    inside = [
        f"<code>{part}</code>" if index % 2 and index < len(parts) - 1 else part for index, part in enumerate(parts)
    ]
    return Markup("".join(inside))  # noqa: S704 - escaped above


def device(agent: str) -> tuple[str, str]:
    """The browser and the system behind a `User-Agent`; of another program its name, and no system.

    >>> device("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36")
    ('Chrome', 'Linux')
    >>> device("python-httpx/0.28.1"), device("")
    (('python-httpx', ''), ('', ''))
    """
    browser = next((name for sign, name in BROWSERS if sign in agent), "")
    system = next((name for sign, name in SYSTEMS if sign in agent), "")
    return (browser, system) if browser else (agent.partition("/")[0].strip()[:40], "")


def human_size(size_bytes: int) -> str:
    """`size_bytes` in the largest unit that leaves at least 1, decimal only below 10.

    >>> human_size(812), human_size(1536), human_size(100 * 1024 * 1024)
    ('812 B', '1.5 kB', '100 MB')
    """
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"


@cache
def _spoken_words(language: str) -> dict[str, str]:
    return {key: words for key, words in catalog(language).items() if key.startswith(SPOKEN_PREFIXES)}

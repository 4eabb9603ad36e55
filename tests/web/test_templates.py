"""Every page: nothing inline, nothing from elsewhere, whatever a name says is text, every field has its label."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from markupsafe import Markup

from pharos.web.admin_pages import SECTIONS
from pharos.web.html import STATIC, TEMPLATES, page, static_path
from pharos.web.reader import document_view
from pharos.web.views import BLANKS, Maker, SourceLine, Turn

HOSTILE = "\"><img src=x onerror=alert(1)>'{{ 7*7 }}"


def document(status: str) -> SimpleNamespace:
    return SimpleNamespace(
        id="d",
        name=HOSTILE,
        status=status,
        reason=HOSTILE,
        warning=HOSTILE,
        page_count=2,
        passage_count=1,
        size_bytes=2048,
    )


PROJECT = SimpleNamespace(id="p", name=HOSTILE, documents=1, is_private=True, is_handbook=True)
DOCUMENTS = [document(status) for status in ("pending", "processing", "indexed", "failed")]
SOURCE = SourceLine(href="/projects/p", index=1, document=HOSTILE, page=2, text=HOSTILE)
ANSWER = Turn(
    role="assistant",
    id="a",
    html=Markup("<p>Yes.</p>"),
    mode="model",
    grounded=True,
    made_by=Maker(HOSTILE, HOSTILE, HOSTILE),
    sources=(SOURCE,),
)
PERSON = {
    "person": SimpleNamespace(
        name=HOSTILE,
        email=HOSTILE,
        administrates=True,
        manages_groups=False,
        manages_installation=True,
        places=[SimpleNamespace(slug=HOSTILE, name=HOSTILE, is_here=here) for here in (True, False)],
    ),
    "csrf_token": HOSTILE,
}
SHELF = {"documents": DOCUMENTS, "busy": True, "more_count": 3, "filtered": False, "can_edit": True}
WORKBENCH = {
    **PERSON,
    **SHELF,
    **BLANKS,
    "project": PROJECT,
    "conversations": [SimpleNamespace(id="c", title=HOSTILE)],
    "conversation_id": "c",
    "max_upload_bytes": 1000,
    "can_share": True,
    "models_page": "/admin/models",
    "shared": None,
}
READER = {**PERSON, "project": PROJECT, "document": document("indexed"), "is_code": True}
VIEW = document_view(HOSTILE * 3, [0, 10], start=4, end=20)
SETUP = {"initialized": False, "token_valid": True, "token": HOSTILE}

LINK = {"email": HOSTILE, "token": HOSTILE}


def invited(*, has_account: bool) -> SimpleNamespace:
    return SimpleNamespace(email=HOSTILE, name=HOSTILE, tenant=HOSTILE, slug=HOSTILE, has_account=has_account)


AT = datetime(2026, 3, 1, tzinfo=UTC)


class Anything(SimpleNamespace):
    """A row of any kind: every text of it is hostile."""

    def __init__(self, **known: Any) -> None:
        texts = ("name", "email", "department", "requested_by", "project", "message", "decided_by", "grantee", "actor")
        more = ("person", "granted_by", "subject", "agent", "ip", "event_type", "created_by", "prefix", "action")
        times = dict.fromkeys(("at", "created_at", "expires_at", "decided_at", "last_used_at", "rotated_at"), AT)
        super().__init__(**(dict.fromkeys((*texts, *more), HOSTILE) | times | {"id": "r", "last_seen_at": AT} | known))


SESSION = Anything(id="s")
KEYS = {
    "keys": [Anything(scopes=["read"], user_id="u"), Anything(scopes=["read"], user_id=None)],
    "owners": {"u": HOSTILE},
    "scopes": ("read", "ask"),
    "chosen": ("read",),
    "default_days": 90,
    "for_program": True,
}
SOMEONE = Anything(platform_role="admin", org_position="ceo", is_disabled=True, department_id="d")
ACCOUNT = Anything(locked_until=AT, has_password=True, must_change_password=True, open_sessions=2, last_seen_at=None)
OPEN = Anything(locked_until=None, has_password=False, must_change_password=False, open_sessions=1, last_seen_at=AT)
GROUP = Anything(members=2)
GRANT = Anything(grantee_kind="user", tier="use", is_expired=False)
ACCESS = Anything(tier="use", source="group", project_id="p")
LINKED = Anything(state="approved", link=Anything(uses=1, is_open=True))
DECIDED = [LINKED, Anything(state="rejected", link=None)]
PEOPLE_OF_A_PROJECT = {
    **PERSON,
    "project": PROJECT,
    "grants": [GRANT, Anything(grantee_kind="group", tier="full", is_expired=True)],
    "who": [ACCESS],
    "groups": [GROUP],
    "departments": [GROUP],
    "tiers": ("use", "full"),
}
SHARED = {
    **BLANKS,
    "token": HOSTILE,
    "shared": Anything(title=HOSTILE),
    "conversation_id": "c",
    "messages": [Turn(role="user", text=HOSTILE), replace(ANSWER, sources=(replace(SOURCE, href="#quoted-1"),))],
    "branch": [Turn(role="user", text=HOSTILE)],
}
ROLES = {"roles": ("none", "admin"), "positions": ("member", "ceo"), "departments": [Anything(people=1)]}
EVENT = Anything(severity="low", user_id="u")
LISTED = {"words": HOSTILE, "following": "x"}
SECURITY: dict[str, Any] = {
    "event_type": HOSTILE,
    "who": HOSTILE,
    "severities": ("low",),
    "severity": "low",
    "days": 90,
    "events": [],
    "counts": [],
    "following": "x",
}
PROVIDER = Anything(
    is_enabled=False,
    id="n",
    kind="openai",
    preset=None,
    base_url=HOSTILE,
    models=[HOSTILE],
    key_prefix=HOSTILE,
    key_length=51,
    requests_per_minute=28,
    status_page=HOSTILE,
    input_price_micro=500_000,
    output_price_micro=1_500_000,
    is_default=False,
)
LOCAL = Anything(
    is_enabled=True,
    id="l",
    kind="local",
    preset=None,
    base_url=HOSTILE,
    models=[],
    input_price_micro=None,
    output_price_micro=None,
    key_prefix="",
    key_length=0,
    requests_per_minute=None,
    status_page=None,
    is_default=True,
)
MIXED = Anything(**vars(LOCAL) | {"id": "m", "models": [HOSTILE, "known"]})
UNKNOWN = Anything(**vars(MIXED) | {"id": "u"})
OFFER = Anything(models=(HOSTILE,), state="open")
PROVIDERS: dict[str, Any] = {
    "managed": [
        Anything(provider=PROVIDER, state="open", requests_left=3, unpriced=()),
        Anything(provider=LOCAL, state="closed", requests_left=None, unpriced=()),
        Anything(provider=MIXED, state="closed", requests_left=None, unpriced=(HOSTILE,)),
        Anything(provider=UNKNOWN, state="closed", requests_left=None, unpriced=(HOSTILE, "known")),
    ],
    "presets": [Anything(title=HOSTILE)],
    "preset_facts": {HOSTILE: HOSTILE},
    "shared": False,
    "allows_private": False,
}
TAKEN = Anything(provider=HOSTILE, calls=2, unpriced=1, cost_micro=3)
ALL_SPEND = Anything(by_provider=[TAKEN], by_tenant=[(HOSTILE, TAKEN)])
NO_SPEND = Anything(by_provider=[], by_tenant=[])
LINE = {"provider": HOSTILE, "model": HOSTILE, "failed": 1, "prompt_tokens": 1, "completion_tokens": 1}
MODELS: dict[str, Any] = PROVIDERS | {
    "answering": OFFER,
    "installations": [OFFER],
    "rules": Anything(
        llm_enabled=True, use_shared_providers=True, budget_warn_micro=None, budget_stop_micro=50_000_000
    ),
    "uncounted": [HOSTILE],
    "spend": Anything(month_micro=1, today_micro=2, calls=3, unpriced=1, is_anomalous=True),
    "lines": [
        Anything(**LINE, calls=1, cost_micro=1, unpriced=0),
        Anything(**LINE, calls=2, cost_micro=0, unpriced=2),
    ],
    "manages_installation": True,
}
OFF = Anything(llm_enabled=False, use_shared_providers=False, budget_warn_micro=1, budget_stop_micro=None)
RATED = Anything(project_id="p", question=HOSTILE, answer=HOSTILE, mode="model", comment=HOSTILE, given_at=AT)
KEPT = Anything(instructions=HOSTILE, memories=(HOSTILE,), model=HOSTILE)
OTHER = {**ROLES, "someone": SOMEONE, "visible": [ACCESS], "account": ACCOUNT, "is_self": False, "role_is_fixed": False}
OWN = {**ROLES, "someone": SOMEONE, "visible": [], "account": OPEN, "is_self": True, "role_is_fixed": True}
ADMINISTRATION: list[tuple[str, str, dict[str, Any]]] = [
    ("people", "people", {"people": [SOMEONE], "invited": [Anything()], "has_mail_server": True, **ROLES, **LISTED}),
    ("people", "people", {"people": [], "invited": [], "has_mail_server": False, **ROLES, **LISTED, "following": None}),
    ("person", "people", OTHER),
    ("person", "people", OWN),
    ("organisation", "organisation", {**ROLES, "groups": [GROUP], "called": HOSTILE}),
    ("organisation", "organisation", {"departments": [], "groups": [], "called": HOSTILE}),
    ("group", "organisation", {"group": GROUP, "members": [Anything(user_id="u")], "others": [Anything()], **LISTED}),
    ("shares", "shares", {"waiting": [Anything(conversation_id="c")], "decided": DECIDED, "titles": {"c": HOSTILE}}),
    ("shares", "shares", {"waiting": [], "decided": [], "titles": {}}),
    ("keys", "keys", KEYS),
    ("secrets", "secrets", {"secrets": [Anything(kind="github", length=51, is_enabled=False)], "kinds": ("github",)}),
    ("models", "models", MODELS),
    ("models", "models", MODELS | {"managed": [], "answering": None, "installations": [], "lines": [], "rules": OFF}),
    ("feedback", "feedback", {"rated": [RATED], "following": "x"}),
    ("feedback", "feedback", {"rated": [], "following": None}),
    ("secrets", "secrets", {"secrets": [], "kinds": ("github",)}),
    ("audit", "audit", {"entries": [Anything(detail={HOSTILE: HOSTILE})], "actor": HOSTILE, "action": "", **LISTED}),
    ("audit", "audit", {"entries": [], "actor": "", "action": "", "following": None}),
    ("security", "security", SECURITY | {"events": [EVENT], "counts": [Anything(events=2)]}),
    ("security", "security", SECURITY | {"following": None}),
]

PAGES: list[tuple[str, dict[str, Any]]] = [
    ("onboarding.html", SETUP),
    ("onboarding.html", SETUP | {"token_valid": False}),
    ("onboarding.html", SETUP | {"initialized": True}),
    ("sign_in.html", {"next_path": HOSTILE, "tenant": HOSTILE}),
    ("sign_in.html", {"next_path": HOSTILE, "tenant": ""}),
    ("mail_ask.html", {"kind": "link", "action": "/x", "next_path": HOSTILE}),
    ("mail_ask.html", {"kind": "forgot", "action": "/x", "next_path": "/"}),
    ("mail_sent.html", {"has_mail_server": True}),
    ("mail_sent.html", {"has_mail_server": False}),
    ("mail_confirm.html", LINK | {"kind": "enter", "action": "/x", "next_path": HOSTILE}),
    ("mail_confirm.html", LINK | {"kind": "address", "action": "/x", "next_path": "/"}),
    ("new_password.html", LINK),
    ("invitation.html", LINK | {"seen": invited(has_account=False)}),
    ("invitation.html", LINK | {"seen": invited(has_account=True)}),
    ("bad_link.html", {"again": "/sign-in/link"}),
    ("bad_link.html", {"again": None}),
    ("account_email.html", {**PERSON, "email": HOSTILE}),
    ("projects.html", {**PERSON, "projects": [], "can_create": True, "handbook": PROJECT, "hidden_handbook": None}),
    (
        "projects.html",
        {**PERSON, "projects": [PROJECT], "can_create": False, "handbook": None, "hidden_handbook": PROJECT},
    ),
    ("project.html", WORKBENCH | {"messages": [Turn(role="user", text=HOSTILE), ANSWER]}),
    ("project.html", WORKBENCH | {"messages": [], "documents": [], "conversations": []}),
    ("project.html", WORKBENCH | {"messages": [], "shared": LINKED}),
    ("change_password.html", {}),
    ("account.html", {**PERSON, **KEYS, "email": HOSTILE, "sessions": [SESSION], "current": "s", "for_program": False}),
    ("account.html", {**PERSON, **KEYS, "email": HOSTILE, "sessions": [SESSION] * 2, "current": "t", "keys": []}),
    ("project_people.html", PEOPLE_OF_A_PROJECT),
    ("project_people.html", PEOPLE_OF_A_PROJECT | {"grants": [], "groups": [], "departments": []}),
    ("project_instructions.html", {**PERSON, "project": PROJECT, "kept": KEPT, "models": [HOSTILE]}),
    ("engineer_providers.html", {**PERSON, **PROVIDERS, "shared": True, "given": [OFFER], "spend": ALL_SPEND}),
    ("engineer_providers.html", {**PERSON, **PROVIDERS, "managed": [], "given": [], "spend": NO_SPEND}),
    ("shared.html", SHARED),
    *(
        (f"admin_{name}.html", {**PERSON, "sections": SECTIONS, "section": section, **context})
        for name, section, context in ADMINISTRATION
    ),
    ("_documents.html", SHELF | {"project": PROJECT}),
    ("document.html", READER | {"view": VIEW}),
    ("document.html", READER | {"view": None}),
    ("document.html", READER | {"view": None, "document": document("failed")}),
    *(
        ("error.html", {"status": n, "kind": str(n), "message": HOSTILE, "request_id": "r", "is_guest": False})
        for n in (403, 404, 503)
    ),
]


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def rendered(template: str, context: dict[str, Any]) -> str:
    request = Request({"type": "http", "query_string": b"", "headers": [(b"accept-language", b"en")]})
    return bytes(page(request, template, **context).body).decode()


def elements(template: str, context: dict[str, Any]) -> list[tuple[str, dict[str, str | None]]]:
    return Elements(rendered(template, context)).found


every_page = pytest.mark.parametrize(("template", "context"), PAGES)


@every_page
def test_what_a_name_says_is_text(template: str, context: dict[str, Any]) -> None:
    found = elements(template, context)
    assert "img" not in {tag for tag, _ in found}
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert "49" not in rendered(template, context)


@every_page
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(template: str, context: dict[str, Any]) -> None:
    for tag, attributes in elements(template, context):
        assert tag not in {"style", "iframe", "object", "embed", "base"}
        assert "style" not in attributes
        if tag == "script":
            assert attributes.get("src") or attributes.get("type") == "application/json"
        for name in ("src", "href", "action"):
            address = attributes.get(name) or ""
            assert not address.startswith(("//", "http:", "https:", "data:", "javascript:")), address
            if address.startswith("/static/") and "vendor/" not in address:
                assert (STATIC / address.removeprefix(static_path(""))).exists()


@every_page
def test_every_field_has_a_label_and_every_button_a_name(template: str, context: dict[str, Any]) -> None:
    html = rendered(template, context)
    found = elements(template, context)
    labelled = {attributes.get("for") for tag, attributes in found if tag == "label"}
    for tag, attributes in found:
        if tag in {"input", "textarea"} and attributes.get("type") not in {"hidden", "checkbox"}:
            assert attributes.get("id") in labelled, attributes
    for attributes, content in re.findall(r"<button([^>]*)>(.*?)</button>", html, re.DOTALL):
        assert "aria-label=" in attributes or re.sub(r"<.*?>", "", content).strip()


@every_page
def test_ids_are_not_used_twice(template: str, context: dict[str, Any]) -> None:
    if template == "_documents.html" or context.get("documents"):
        context = context | {"documents": DOCUMENTS[:1]}
    ids = [str(attributes["id"]) for _, attributes in elements(template, context) if attributes.get("id")]
    assert sorted(ids) == sorted(set(ids))


def test_no_template_switches_escaping_off() -> None:
    for path in TEMPLATES.iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text("utf-8")), path


def test_the_headers_allow_only_our_own_files() -> None:
    reply = page(
        Request({"type": "http", "query_string": b"", "headers": []}), "sign_in.html", next_path="/", tenant=""
    )
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["cache-control"] == "no-store"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "pair",
    [
        ("ink", "paper"), ("ink", "surface"), ("ink-soft", "paper"), ("ink-soft", "surface"), ("ink-soft", "sunken"),
        ("sea", "paper"), ("sea", "surface"), ("sea", "sunken"), ("on-sea", "sea"), ("sea-strong", "sea-faint"),
        ("ink", "sea-faint"), ("ink-soft", "sea-faint"), ("beam-ink", "beam-faint"), ("good-ink", "good-faint"),
        ("bad-ink", "bad-faint"), ("bad-ink", "paper"), ("beam-ink", "paper"), ("mark-ink", "mark"),
        ("on-sea", "sea-strong"), ("on-sea", "bad"), ("paper", "ink"),
    ],
)  # fmt: skip
def test_words_can_be_read_on_their_ground(scheme: str, pair: tuple[str, str]) -> None:
    light, dark = (STATIC / "pharos.css").read_text("utf-8").split("@media (prefers-color-scheme: dark)")
    tokens = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    one, other = sorted((luminance(tokens[name]) for name in pair), reverse=True)
    assert (one + 0.05) / (other + 0.05) >= 4.5


def test_what_was_stopped_before_it_could_cite_is_not_said_to_be_missing() -> None:
    written = Turn(role="assistant", grounded=False, made_by=Maker("lamp-large", "lamp"))
    assert written.is_unfounded
    assert not replace(written, made_by=Maker("lamp-large", "lamp", cut="stopped")).is_unfounded

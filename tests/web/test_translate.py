"""Every word of the pages comes from the catalog, and the catalog holds no word nobody says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from pharos.access.projects import ORDER, TIERS
from pharos.identity.api_keys import SCOPES
from pharos.identity.principal import ORG_POSITIONS, PLATFORM_ROLES
from pharos.identity.security import SEVERITIES
from pharos.identity.tenant_secrets import KINDS as KINDS_OF_SECRETS
from pharos.ops.backup.store import FAILED, OFFSITE, VERIFIED_STATE, WRITTEN
from pharos.providers.breaker import STATE_NUMBERS
from pharos.providers.contract import Kind
from pharos.web.admin_pages import OF_THE_INSTALLATION, SECTIONS
from pharos.web.html import SPOKEN_PREFIXES
from pharos.web.translate import CATALOGS, DEFAULT, catalog, languages, pick_language, translator

WEB = CATALOGS.parent
# Keys built from a state or a kind, where the template puts a value into the key.
BUILT = {
    "documents.%s": ("pending", "processing", "indexed", "failed"),
    **dict.fromkeys(("error.%s", "error.%s_lead", "mail.%s", "mail.%s_lead", "mail.%s_submit"), ()),
}
KINDS = {
    "admin.%s": (*SECTIONS, *OF_THE_INSTALLATION),
    "admin.%s_lead": (*SECTIONS, *OF_THE_INSTALLATION),
    "backups.state_%s": (FAILED, WRITTEN, VERIFIED_STATE, OFFSITE),
    "backups.measured_by_%s": ("drill", "verification"),
    "role.%s": PLATFORM_ROLES,
    "position.%s": ORG_POSITIONS,
    "tier.%s": TIERS,
    "source.%s": ORDER,
    "severity.%s": SEVERITIES,
    "access.kind_%s": ("user", "group", "department"),
    "access.to_%s": ("user", "group", "department"),
    "keys.scope_%s": SCOPES,
    "secrets.kind_%s": KINDS_OF_SECRETS,
    "shares.%s": ("closed", "rejected"),
    "models.kind_%s": get_args(Kind),
    "models.state_%s": tuple(STATE_NUMBERS),
}
ERROR_KINDS = ("403", "404", "422", "429", "500", "503")
MAIL_KINDS = ("link", "forgot", "enter", "address")


def keys_in(path: Path) -> set[str]:
    return set(re.findall(r"""\bt\(\s*["']([a-z_]+\.[a-z_0-9.%]+)["']""", path.read_text("utf-8")))


def said_anywhere() -> set[str]:
    texts = [path for pattern in ("templates/*", "static/*.js", "*.py") for path in WEB.glob(pattern)]
    said = set().union(*map(keys_in, texts)) - set(BUILT) - set(KINDS)
    in_lists = re.findall(r'"((?:ask|documents)\.[a-z_0-9]+)"', "".join(path.read_text("utf-8") for path in texts))
    said |= set(in_lists) | {f"documents.{state}" for state in BUILT["documents.%s"]}
    said |= {key % value for key, values in KINDS.items() for value in values}
    said |= {f"mail.{kind}{end}" for kind in MAIL_KINDS for end in ("", "_lead", "_submit")}
    return said | {f"error.{kind}{end}" for kind in ERROR_KINDS for end in ("", "_lead")}


def test_every_word_said_stands_in_the_catalog_and_the_reverse() -> None:
    stems = {re.sub(r"\.(one|other)$", "", key) for key in catalog(DEFAULT)}
    assert said_anywhere() == stems


def test_the_modules_are_given_every_word_they_say() -> None:
    spoken = set().union(*(keys_in(path) for path in (WEB / "static").glob("*.js")))
    assert [key for key in sorted(spoken) if not key.startswith(SPOKEN_PREFIXES)] == []


@pytest.mark.parametrize("language", sorted(languages()))
def test_a_catalog_keeps_the_places_for_values(language: str) -> None:
    places = re.compile(r"\{\w+\}")
    for key, words in catalog(language).items():
        assert set(places.findall(words)) == set(places.findall(catalog(DEFAULT)[key])), key


def test_a_word_said_with_a_count_has_both_forms() -> None:
    texts = [path.read_text("utf-8") for pattern in ("templates/*", "static/*.js") for path in WEB.glob(pattern)]
    counted = set(re.findall(r"""\bt\("([a-z_.]+)",\s*\{?\s*count\b""", "".join(texts)))
    assert {f"{key}.{form}" for key in counted for form in ("one", "other")} <= set(catalog(DEFAULT))
    assert counted == {key.removesuffix(".one") for key in catalog(DEFAULT) if key.endswith(".one")}


def test_no_words_stand_in_a_template() -> None:
    markup = re.compile(r"\{% block main_class %\}.*?endblock|\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", re.DOTALL)
    for path in (WEB / "templates").glob("*.html"):
        left = markup.sub(" ", path.read_text("utf-8"))
        assert re.findall(r"[A-Za-z]{2,}", left.replace("pharos setup-link", "").replace("doctype", "")) == [], path


@pytest.mark.parametrize(
    ("header", "language"), [("", "en"), ("xx-YY", "en"), ("en-GB,de;q=0.9", "en"), ("a;q=x, *;q=0.1", "en")]
)
def test_the_language_is_one_we_speak(header: str, language: str) -> None:
    assert pick_language(header) == language


def test_a_count_chooses_its_form() -> None:
    t = translator("en")
    assert [t("ask.sources", count=n) for n in (0, 1, 2)] == ["0 sources", "1 source", "2 sources"]

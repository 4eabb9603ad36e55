"""The words of the pages: one catalog per language in `catalog/`, JSON of key to sentence.

English is complete; another language may lack keys and then shows the English ones. A key with forms for counts has
`.one` and `.other` after it. `{name}` in a sentence is a place for a value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

CATALOGS = Path(__file__).parent / "catalog"
DEFAULT = "en"

Translate = Callable[..., str]


@cache
def catalog(language: str) -> Mapping[str, str]:
    """Every key of `language`, those it lacks in English."""
    sentences: dict[str, str] = json.loads((CATALOGS / f"{DEFAULT}.json").read_text("utf-8"))
    if language != DEFAULT:
        sentences |= json.loads((CATALOGS / f"{language}.json").read_text("utf-8"))
    return sentences


@cache
def languages() -> frozenset[str]:
    """The languages there is a catalog for."""
    return frozenset(path.stem for path in CATALOGS.glob("*.json"))


def pick_language(accept_language: str) -> str:
    """The first language of an Accept-Language header that we speak, by its weights; English when none is."""
    wanted: list[tuple[float, str]] = []
    for part in accept_language.split(",")[:20]:
        tag, _, weight = part.strip().partition(";q=")
        try:
            wanted.append((float(weight or 1), tag.split("-")[0].lower()))
        except ValueError:
            continue
    ranked = sorted(wanted, key=lambda entry: -entry[0])
    return next((tag for _, tag in ranked if tag in languages()), DEFAULT)


def translator(language: str) -> Translate:
    """`t(key, **values)` for one language; a value called `count` chooses between `.one` and `.other`."""
    sentences = catalog(language)

    def t(key: str, **values: object) -> str:
        if "count" in values:
            key = f"{key}.one" if values["count"] == 1 else f"{key}.other"
        return sentences[key].format(**values)

    return t

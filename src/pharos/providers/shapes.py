"""What can be seen of a provider and its key before anybody is called: slips of copying, and another vendor's key."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pharos.infra.errors import Invalid
from pharos.providers.choice import ENVIRONMENT
from pharos.providers.presets import PRESETS

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MODEL = re.compile(r"[^\s\x00-\x1f]{1,200}")
MOST_MODELS = 100
MIN_KEY_CHARACTERS, MAX_KEY_CHARACTERS = 8, 8192
SHELL_LEFTOVERS = re.compile(r"^export\s|^[A-Z][A-Z0-9_]*=|^(?i:bearer)\s|^\$|[`\"'\\<>]|\$\{|;$")
"""`export OPENAI_API_KEY="sk-…";`, a variable that was not filled in, quotes, a header, `<your key>`."""


def check_name(name: str) -> str:
    """Raise `Invalid` for what cannot stand before the slash of `provider/model`."""
    if not NAME.fullmatch(name) or name == ENVIRONMENT:
        raise Invalid(
            "A provider's name has small letters, digits and . _ -, at most 63 of them, and is not "
            f"“{ENVIRONMENT}”, which is the one of PHAROS_LLM_*.",
            code="bad_name",
        )
    return name


def check_models(models: Sequence[str]) -> list[str]:
    """The models without repeats, in their order. Raises `Invalid`."""
    listed = list(dict.fromkeys(model.strip() for model in models))
    if len(listed) > MOST_MODELS or any(MODEL.fullmatch(model) is None for model in listed):
        raise Invalid(
            f"A model's name has 1 to 200 characters and no blanks; a provider lists {MOST_MODELS} at most.",
            code="bad_model",
        )
    return listed


def check_key(key: str, *, preset: str | None) -> str:
    """The key without blanks around it. Raises `Invalid` for one that cannot be right, and says what is wrong (LP-05).

    >>> check_key(" sk-ant-0123456789 ", preset="anthropic")
    'sk-ant-0123456789'
    """
    key = key.strip()
    if SHELL_LEFTOVERS.search(key):
        raise _bad("it holds more than the key: quotes, a variable's name or a rest of a command")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise _bad("there is a blank, a line end or a letter in it that no key has")
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS:
        raise _bad(f"it has {len(key)} characters")
    known = PRESETS.get(preset or "")
    if known is None or not known.key_prefixes:
        return key
    if not key.startswith(known.key_prefixes):
        raise _bad(f"a key of {known.title} begins with {' or '.join(known.key_prefixes)}")
    longest = max((prefix for prefix in known.key_prefixes if key.startswith(prefix)), key=len)
    for other in PRESETS.values():
        if any(key.startswith(prefix) and len(prefix) > len(longest) for prefix in other.key_prefixes):
            raise _bad(f"it begins like a key of {other.title}, not of {known.title}")
    return key


def _bad(what: str) -> Invalid:
    return Invalid(f"This key cannot be right: {what}. Copy it again.", code="bad_key")

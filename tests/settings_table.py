"""The table of docs/settings.md, made from the settings themselves: `python -m tests.settings_table` writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from pharos.infra.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
TABLE = re.compile(r"^\| variable \|.*?(?=^[^|]|\Z)", re.MULTILINE | re.DOTALL)


def render_table() -> str:
    """One line a setting, in the order of the code: variable, other names, default, meaning."""
    lines = ["| variable | also | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable, *others = names_of(name, field)
        also = ", ".join(f"`{other}`" for other in others)
        lines.append(f"| `{variable}` | {also} | {default_of(field)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def names_of(name: str, field: FieldInfo) -> list[str]:
    """All variables that set it, ours first."""
    alias = field.validation_alias
    names = [choice for choice in alias.choices if isinstance(choice, str)] if isinstance(alias, AliasChoices) else []
    return list(dict.fromkeys([f"PHAROS_{name.upper()}", *names]))


def default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, SecretStr):
        return "a secret"
    if value in (None, ""):
        return "unset"
    # what lies in this environment lies elsewhere in another
    return f"`{str(value).replace(sys.prefix, '<environment>')}`"


def table_of(page: str) -> str:
    found = TABLE.search(page)
    return found[0].rstrip() + "\n" if found else ""


def main() -> None:
    page = PAGE.read_text()
    PAGE.write_text(page.replace(table_of(page), render_table()))


if __name__ == "__main__":
    main()

"""Tables of commands: what the next command needs is whole, however narrow the place."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pharos.infra import terminal
from pharos.infra.errors import Invalid
from pharos.infra.ids import new_id

REASON = "The server refused the address of the recipient: mailbox unavailable, look at its spelling and send it again"
HEADINGS = ["id", "to", "subject", "state", "tries", "reason"]


def shown(monkeypatch: pytest.MonkeyPatch, rows: list[list[object]], *, is_terminal: bool, width: int = 80) -> str:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=is_terminal, width=width))
    terminal.echo_table(HEADINGS, rows, empty="")
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80])
def test_ids_are_whole_and_reasons_complete_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    mails: list[list[object]] = [[new_id(), "ada@example.org", "Welcome", "failed", 3, REASON] for _ in range(2)]
    said = shown(monkeypatch, mails, is_terminal=True, width=width)
    assert all(str(mail[0]) in said for mail in mails)
    letters = "".join(said.split())
    assert all(letters.count(word[:4]) >= 2 for word in REASON.split() if len(word) >= 4)
    assert "…" not in said


def test_a_table_that_is_piped_has_one_whole_line_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    mail_id = new_id()
    lines = shown(monkeypatch, [[mail_id, "ada@example.org", "[b]", "failed", 3, REASON]], is_terminal=False)
    assert len(lines.splitlines()) == 2
    assert all(line == line.rstrip() for line in lines.splitlines())
    assert all(text in lines for text in (str(mail_id), REASON, "[b]"))


def test_a_beginning_of_an_id_leads_to_the_command_that_shows_it_whole() -> None:
    read = terminal.id_shown_by("pharos mail list")
    mail_id = new_id()
    assert read(str(mail_id)) == mail_id
    with pytest.raises(Invalid, match=r"“019f” is no id\. `pharos mail list` shows them"):
        read("019f")

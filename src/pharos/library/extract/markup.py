"""HTML and mail: every word a page shows, in its order.

The sanitiser's parser, which is the one of browsers, balances the tags; what is left is written as Markdown, because
headings, lists, code and rows of tables are known by it from here on. The office parser drops words that stand beside
a block (`<div>lost<p>kept</p>lost</div>`) and all that stands in a form.
"""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage, MIMEPart
from html.parser import HTMLParser
from itertools import pairwise

import nh3

HEADINGS = {"title": "# ", **{f"h{level}": "#" * level + " " for level in range(1, 7)}}
LINE_END = "\x1e"
"""Where `<br>` stood; a control character that no page may hold."""
CELLS = frozenset({"td", "th"})
# fmt: off
BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "button", "caption", "center", "dd", "details", "dialog",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "legend", "li",
    "main", "menu", "nav", "ol", "option", "p", "pre", "search", "section", "select", "summary", "table", "tbody",
    "textarea", "tfoot", "thead", "tr", "ul", *HEADINGS, *CELLS,
})
# fmt: on
KEPT = {*BLOCKS, "br", "code"}
UNSEEN = {"script", "style", "template", "noscript", "iframe", "svg", "math", "object", "audio", "video", "datalist"}
"""What stands in them is no text of the page. Of all other tags the text is kept."""
HEADERS = ("From", "To", "Cc", "Date", "Subject")
PERMALINK = re.compile(r"[\u00b6\uf0c1]$")
"""The mark behind a heading that leads to itself, as documentation generators write it."""


class _Markdown(HTMLParser):
    """Balanced tags to Markdown; linear in its input whatever the nesting: no tree is built."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._words: list[str] = []
        self._mark = ""
        self._row: list[str] | None = None
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "code":
            self._tick()
        elif tag == "br":
            self._words.append(LINE_END)
        elif tag in BLOCKS:
            self._end_block()
            self._pre += tag == "pre"
            self._mark = HEADINGS.get(tag) or ("- " if tag == "li" else self._mark)
            if tag == "tr":
                self._end_row()
                self._row = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "code":
            self._tick()
        elif tag in BLOCKS:
            self._end_block()
            self._pre -= tag == "pre"
            self._mark = ""
            if tag == "tr":
                self._end_row()

    def handle_data(self, data: str) -> None:
        self._words.append(data)

    def close(self) -> None:
        super().close()
        self._end_block()

    def _tick(self) -> None:
        if not self._pre:
            self._words.append("`")

    def _end_block(self) -> None:
        text = "".join(self._words)
        self._words.clear()
        if self._pre and text.strip():
            code = text.replace(LINE_END, "\n").strip("\n")
            self.blocks.append(f"```\n{code}\n```")
            return
        lines = (" ".join(line.split()) for line in text.split(LINE_END))
        line = ("\n" if self._row is None and not self._mark else " ").join(filter(None, lines))
        if not line:
            return
        if self._row is not None:
            self._row.append(line)
            return
        self.blocks.append(self._mark + (PERMALINK.sub("", line) if self._mark.startswith("#") else line))
        self._mark = ""

    def _end_row(self) -> None:
        if self._row:
            self.blocks.append(f"| {' | '.join(self._row)} |")
        self._row = None


def html_text(html: str) -> str:
    """The words of a page as Markdown. Scripts, styles and what is embedded are left out, nothing is fetched."""
    # Two links side by side are two words; the text of one behind the other's would be one.
    apart = html.replace("</a><a ", "</a> <a ")
    balanced = nh3.clean(apart, tags=KEPT, clean_content_tags=UNSEEN, attributes={}, link_rel=None)
    page = _Markdown()
    page.feed(balanced)
    page.close()
    text = ""
    for before, block in pairwise(["", *page.blocks]):
        belongs = block[:2] == before[:2] and block[:2] in {"- ", "| "}
        text += ("\n" if belongs else "\n\n") + block if text else block
    return text


def mail_text(data: bytes) -> str:
    """Headers a reader wants, then the body; HTML only where there is no plain text. Attachments are named."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
    message = email.message_from_bytes(data, policy=email.policy.default)
    lines = [f"{name}: {message[name]}" for name in HEADERS if message[name]]
    body = message.get_body(("plain", "html")) if isinstance(message, EmailMessage) else None
    if body is not None:
        lines += ["", _body_text(body)]
    lines += [f"Attachment: {part.get_filename()}" for part in message.iter_attachments() if part.get_filename()]
    return "\n".join(lines)


def _body_text(body: MIMEPart) -> str:
    try:
        content = body.get_content()
    except (LookupError, UnicodeError):  # an encoding nobody knows
        content = bytes(body.get_payload(decode=True) or b"").decode("utf-8", "replace")
    return html_text(content) if body.get_content_type() == "text/html" else str(content)

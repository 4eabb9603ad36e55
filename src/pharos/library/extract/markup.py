"""HTML and mail with the standard library: the fallback where the parser gives up on hostile or odd input."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage, MIMEPart
from html.parser import HTMLParser

# fmt: off
BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td",
    "th", "title", "tr", "ul",
})
# fmt: on
SILENT = frozenset({"script", "style", "template", "noscript"})
HEADERS = ("From", "To", "Cc", "Date", "Subject")


class _Text(HTMLParser):
    """Linear in its input whatever the nesting: no tree is built."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self._silent += 1
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def html_text(html: str) -> str:
    """The words of a page, one block a line; scripts and styles are left out, nothing is fetched."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


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

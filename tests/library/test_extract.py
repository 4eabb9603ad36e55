"""Every format gives its text, every hostile file a sentence, and the process that asks stays alive."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
from email.message import EmailMessage
from pathlib import Path

import pytest
from tests.library import made_files as make

from pharos.library.extract import Extracted, extract_document, run
from pharos.library.extract.extracted import NO_TEXT, REPLACED_BYTES, Limits, UnreadableFile
from pharos.library.extract.sniff import safe_name, sniff_file

SENTENCE = "The lighthouse of Alexandria"


async def extract(folder: Path, content: bytes, name: str, limits: Limits = run.DEFAULT_LIMITS) -> Extracted:
    (folder / "blob").write_bytes(content)
    return await extract_document(folder / "blob", name=name, limits=limits)


def a_mail(*, html: bool = False) -> bytes:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "Grüße vom Hafen", "A <a@example.org>", "b@example.org"
    body = f"<p>{SENTENCE}</p><p>Schöne Grüße</p>" if html else f"{SENTENCE}\nSchöne Grüße"
    mail.set_content(body, subtype="html" if html else "plain", charset="iso-8859-1", cte="quoted-printable")
    mail.add_attachment(b"...", maintype="application", subtype="pdf", filename="plan.pdf")
    return mail.as_bytes()


FORMATS = {
    "a.pdf": make.pdf(SENTENCE),
    "a.docx": make.docx(SENTENCE),
    "a.pptx": make.pptx(SENTENCE),
    "a.xlsx": make.xlsx(Lights=SENTENCE),
    "a.odt": make.odt(SENTENCE),
    "a.epub": make.epub(SENTENCE),
    "a.rtf": rb"{\rtf1\ansi " + SENTENCE.encode() + rb"\par}",
    "a.eml": a_mail(),
    "a.html": f"<!doctype html><html><body><h1>x</h1><p>{SENTENCE}</p></body></html>".encode(),
    "a.md": f"# Title\n\n{SENTENCE}\n".encode(),
    "a.csv": f"a,b\n1,{SENTENCE}\n".encode(),
    "a.tsv": f"a\tb\n1\t{SENTENCE}\n".encode(),
    "a.txt": SENTENCE.encode(),
    "a.json": f'{{"a": "{SENTENCE}"}}'.encode(),
    "a.py": f"# {SENTENCE}\n".encode(),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_each_format_gives_its_text_without_a_warning(tmp_path: Path, name: str) -> None:
    extracted = await extract(tmp_path, FORMATS[name], name)
    assert SENTENCE in extracted.text
    assert extracted.warnings == []


@pytest.mark.contract("FI-06", part="the type is sniffed from the content, not from the name")
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in {"a.md", "a.csv", "a.tsv", "a.py", "a.txt"}])
async def test_a_wrong_name_does_not_hide_what_a_file_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "blob").write_bytes(FORMATS[name])
    right = sniff_file(tmp_path / "blob", name=name)
    assert sniff_file(tmp_path / "blob", name="x.bin") == right
    extracted = await extract(tmp_path, FORMATS[name], "misleading.md" if name == "a.pdf" else "misleading.pdf")
    if name != "a.pdf":
        assert SENTENCE in extracted.text
    if right not in {"text/markdown", "application/pdf"}:
        assert "The name ends in .pdf" in extracted.warnings[0]


async def test_pages_slides_and_sheets_begin_where_their_text_does(tmp_path: Path) -> None:
    pdf = await extract(tmp_path, make.pdf("Erste Seite", "Second page", "Third page"), "a.pdf")
    assert [pdf.text[start:].splitlines()[0] for start in pdf.page_starts] == [
        "Erste Seite",
        "Second page",
        "Third page",
    ]
    pptx = await extract(tmp_path, make.pptx("Größe und 大小", "Zweite Folie", "Third"), "a.pptx")
    assert [pptx.text[start:].split("\n")[0] for start in pptx.page_starts] == [
        "Größe und 大小",
        "Zweite Folie",
        "Third",
    ]
    xlsx = await extract(tmp_path, make.xlsx(Größen="eins", Second="zwei"), "a.xlsx")
    assert [xlsx.text[start:].split("\n")[0] for start in xlsx.page_starts] == ["Größen", "Second"]


async def test_a_mail_gives_headers_body_and_the_names_of_its_attachments(tmp_path: Path) -> None:
    for html in (False, True):
        text = (await extract(tmp_path, a_mail(html=html), "a.eml")).text
        assert "Subject: Grüße vom Hafen" in text
        assert all(words in text for words in (SENTENCE, "Schöne Grüße"))
        assert "plan.pdf" in text


ENCODED = {
    "utf-8": "Grüße, naïve café",
    "utf-8-sig": "Grüße, naïve café",
    "utf-16": "Grüße und 灯塔",
    "utf-16-le": "Plain words without a mark",
    "utf-16-be": "Plain words without a mark",
    "utf-32": "Grüße und 灯塔",
    "cp1252": "Die schöne Frau – “naïve” café, don’t, 15,50 €",
    "cp932": "名前,年齢,住所\n佐藤太郎,30,東京\n三木英子,25,大阪",
    "euc_jp": "灯台は岬の上に立っています。夜になると光ります。",
    "euc_kr": "등대는 곶 위에 서 있습니다. 밤이 되면 빛납니다.",
    "gb18030": "灯塔矗立在海角上。夜晚它会发光。",
    "big5": "燈塔矗立在海角上。夜晚它會發光。",
    "cp1251": "Маяк стоит на мысе. Ночью он светит.",
}


@pytest.mark.parametrize("encoding", ENCODED)
async def test_a_text_is_its_decoded_file_exactly(tmp_path: Path, encoding: str) -> None:
    text = ENCODED[encoding].replace("\n", "\r\n") + "\r\n"
    extracted = await extract(tmp_path, text.encode(encoding), "a.txt")
    assert (extracted.text, extracted.warnings) == (text, [])


async def test_a_page_in_windows_letters_keeps_them(tmp_path: Path) -> None:
    page = "<html><body><p>Die schöne Frau zahlt 15 €</p></body></html>".encode("cp1252")
    assert "Die schöne Frau zahlt 15 €" in (await extract(tmp_path, page, "a.html")).text


async def test_nul_and_broken_bytes_are_replaced_in_place(tmp_path: Path) -> None:
    nul = await extract(tmp_path, b"one\x00two three four five six seven", "a.txt")
    assert nul.text == "one\ufffdtwo three four five six seven"
    broken = await extract(tmp_path, "Grüße aus Köln, schöne Grüße".encode() + b"\xff end", "a.txt")
    assert broken.text == "Grüße aus Köln, schöne Grüße\ufffd end"
    assert broken.warnings == [REPLACED_BYTES]


DEEP = b"<div>" * 30_000 + b"the needle" + b"</div>" * 30_000


async def test_thirty_thousand_nested_tags_give_their_text(tmp_path: Path) -> None:
    assert "the needle" in (await extract(tmp_path, DEEP, "a.html")).text


async def test_pictures_in_a_page_do_not_become_text(tmp_path: Path) -> None:
    page = f'<html><body><img alt="map" src="data:image/png;base64,{"QUJD" * 500}"><p>{SENTENCE}</p></body></html>'
    assert "QUJDQUJD" not in (await extract(tmp_path, page.encode(), "a.html")).text


PAGE = """<html><body><h2>Install<a class="headerlink" href="#install" title="Permalink">¶</a></h2>
<p>Read <a href="https://example.org/a_(b)">the <b>long</b> guide</a><img src="map.png" alt="map"> <em>first</em>.</p>
<p><a href="/home">Home</a><a href="/about">About</a></p><svg><path d="M0"/></svg>
<a href="/card"><div><h3>Card</h3><p>Words in a link.</p></div></a>
<p>Stars in text stay: 2 * 3, [as](written), <code>a_b</code>.</p></body></html>"""


async def test_a_page_gives_the_words_it_shows_and_no_targets_pictures_or_permalinks(tmp_path: Path) -> None:
    text = (await extract(tmp_path, PAGE.encode(), "a.html")).text
    assert "Install\n" in text
    assert "Read the long guide first." in text
    assert "Home About" in text
    assert "Words in a link." in text
    assert "Stars in text stay: 2 * 3, [as](written), `a_b`." in text
    for unseen in ("](https:", "](#", "![", "map.png", "**", "¶", "svg"):
        assert unseen not in text


BESIDE_BLOCKS = """<html><head><title>one</title></head><body>two<div>three<p>four</p>five<ul><li>six<ul><li>seven</ul>
eight</ul>nine</div><details><summary>ten</summary>eleven<p>twelve</p>thirteen</details><form>fourteen<p>fifteen</p>
sixteen<button>seventeen</button><select><option>eighteen</select></form><blockquote>nineteen<p>twenty</p>twentyone
</blockquote><table><tr><td>twentytwo<table><tr><td>twentythree</table>twentyfour<th>twentyfive</table><dl><dt>twentysix
<dd>twentyseven</dl><pre>twentyeight</pre>twentynine<br>thirty <x-own>thirtyone<p>thirtytwo</p></x-own>thirtythree"""


async def test_words_beside_and_inside_blocks_of_every_kind_are_kept_in_their_order(tmp_path: Path) -> None:
    text = (await extract(tmp_path, BESIDE_BLOCKS.encode(), "a.html")).text
    shown = re.sub("<[^>]*>", " ", BESIDE_BLOCKS).split()
    assert len(shown) == 33
    assert re.findall(r"\w+", text) == shown


async def test_a_page_is_markdown_headings_lists_code_and_rows_of_tables(tmp_path: Path) -> None:
    page = (
        "<title>Guide</title><h1>Guide</h1><p>First<br>second.<h2>Steps <i>now</i></h2><ol><li><p>One<li>Two</ol><pre>"
        "# not a heading\n  make</pre><table><tr><th>Key<th>Value<tr><td>a<td>b</table><script>unseen</script>"
    )
    assert (await extract(tmp_path, page.encode(), "a.html")).text == (
        "# Guide\n\n# Guide\n\nFirst\nsecond.\n\n## Steps now\n\n- One\n- Two\n\n```\n# not a heading\n  make\n```\n\n"
        "| Key | Value |\n| a | b |"
    )


HOSTILE = {
    "empty": ("empty_file", b""),
    "PDF with a password": ("encrypted_file", make.pdf("secret", encrypted=True)),
    "Office file with a password": ("encrypted_file", make.locked_office()),
    "container with a password": ("encrypted_file", make.locked_zip()),
    "OpenDocument with a password": ("encrypted_file", make.odt("x", manifest="<a><encryption-data/></a>")),
    "PDF cut off": ("damaged_file", make.pdf(SENTENCE)[:60]),
    "DOCX cut off": ("damaged_file", make.docx(SENTENCE)[:-80]),
    "PDF of pictures": ("no_text_layer", make.pdf(make.SCAN, make.SCAN)),
    "picture": ("no_text_layer", b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "too many parts": ("bomb_file", b"made below"),
    "noise": ("unknown_format", make.noise(20_000)),
    "program": ("unknown_format", b"\x7fELF" + bytes(200)),
    "unknown container": ("unknown_format", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)),
    "archive": ("unknown_format", make.container({"a.txt": "x"})),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_file_ends_with_a_sentence(tmp_path: Path, case: str) -> None:
    code, content = HOSTILE[case]
    if case == "too many parts":  # half a second of every collection, if it were made above
        content = make.container({"word/document.xml": "", **{f"{n}": "" for n in range(20_001)}})
    with pytest.raises(UnreadableFile) as refused:
        await extract(tmp_path, content, "a.pdf")
    assert refused.value.code == code
    assert refused.value.message.endswith(".")


async def test_a_bomb_is_refused_by_what_it_declares_and_by_what_it_holds(tmp_path: Path) -> None:
    limits = Limits(unpacked_bytes=16 * 1024**2)
    bomb = make.docx("x", **{"word/media/x.bin": bytes(24 * 1024**2)})
    for content in (bomb, make.lying_docx(24)):
        with pytest.raises(UnreadableFile) as refused:
            await extract(tmp_path, content, "a.docx", limits)
        assert refused.value.code == "bomb_file"


async def test_scanned_pages_among_others_are_named(tmp_path: Path) -> None:
    extracted = await extract(tmp_path, make.pdf("Page one", make.SCAN, "Page three"), "a.pdf")
    assert "page 2" in extracted.warnings[0]
    assert len(extracted.page_starts) == 3


async def test_a_file_or_a_text_above_the_limit_is_refused(tmp_path: Path) -> None:
    for limits, code in ((Limits(file_bytes=100), "too_large_file"), (Limits(text_characters=100), "too_much_text")):
        for content in (b"word " * 100, make.docx("word " * 100)):
            with pytest.raises(UnreadableFile) as refused:
                await extract(tmp_path, content, "a.docx", limits)
            assert refused.value.code == code


async def test_a_document_without_words_is_told_so(tmp_path: Path) -> None:
    assert NO_TEXT in (await extract(tmp_path, make.docx(" "), "a.docx")).warnings


@pytest.mark.parametrize("limits", [Limits(wall_seconds=0.0001), Limits(memory_bytes=64 * 1024**2)])
async def test_a_parser_beyond_its_limits_is_killed_and_the_next_file_is_read(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(UnreadableFile, match="time or memory"):
        await extract(tmp_path, make.docx(SENTENCE), "a.docx", limits)
    assert SENTENCE in (await extract(tmp_path, make.docx(SENTENCE), "a.docx")).text


@pytest.mark.slow
def test_the_kernel_ends_a_parser_that_never_stops() -> None:
    code = (
        "from pharos.library.extract.child import *\n"
        "ours, theirs = socket.socketpair()\n"
        "import pharos.library.extract.child as child\n"
        "def spin(*_):\n    while True: pass\n"
        "child.read = spin\n"
        "limits = dataclasses.asdict(Limits(cpu_seconds=1))\n"
        "print(parse_in_fork({'path': '/x', 'media_type': 'y', 'limits': limits}, ours).decode())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, start_new_session=True)
    assert "too_costly_file" in done.stdout


async def test_a_child_that_was_killed_meanwhile_is_replaced(tmp_path: Path) -> None:
    await extract(tmp_path, make.docx(SENTENCE), "a.docx")
    for child in run._idle:
        child.process.kill()
        child.process.wait()
    assert SENTENCE in (await extract(tmp_path, make.docx(SENTENCE), "a.docx")).text


async def test_cancelling_kills_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await extract(tmp_path, make.docx(SENTENCE), "a.docx")
    child = run._idle[-1]
    asked = asyncio.Event()

    async def never_answered(_self: object, _request: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(type(child), "ask", never_answered)
    task = asyncio.create_task(extract(tmp_path, make.docx(SENTENCE), "a.docx"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert child.process.returncode == -signal.SIGKILL


async def test_the_child_knows_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHAROS_SECRET_KEY", "do not tell the parser")
    run._kill_idle()
    await extract(tmp_path, make.docx(SENTENCE), "a.docx")
    environment = await asyncio.to_thread(Path(f"/proc/{run._idle[-1].process.pid}/environ").read_bytes)
    assert sorted(line.split(b"=")[0] for line in environment.split(b"\0") if line) == [b"LANG", b"PATH"]


@pytest.mark.slow
def test_the_child_ends_when_its_worker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(make.docx(SENTENCE))
    code = (
        "import asyncio, pathlib, sys\n"
        "from pharos.library.extract import extract_document, run\n"
        f"asyncio.run(extract_document(pathlib.Path({str(tmp_path / 'a.docx')!r}), name='a.docx'))\n"
        "print(run._idle[0].process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        descriptor = os.pidfd_open(int(worker.stdout.readline()))
        worker.kill()
    try:
        assert select.select([descriptor], [], [], 10)[0] == [descriptor]
    finally:
        os.close(descriptor)


def test_the_child_has_no_network() -> None:
    code = (
        "import socket, sys\n"
        "from pharos.library.extract.child import leave_network\n"
        "leave_network()\n"
        "print(sorted(name for _, name in socket.if_nameindex()))\n"
        "socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", code, str(server.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if "lo" in done.stdout and len(done.stdout.split(",")) > 1:
        pytest.skip("this kernel lets an unprivileged process make no network namespace")
    assert done.returncode != 0
    assert "Error" in done.stderr


@pytest.mark.contract("FI-06", part="names are safe")
@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\Users\\x\\plan.pdf", "Users/x/plan.pdf"),
        ("/absolute/plan.pdf", "absolute/plan.pdf"),
        ("plan\x00\r\n.pdf", "plan.pdf"),
        ("plan\u202efdp.exe", "planfdp.exe"),
        ("", "unnamed"),
        ("././.", "unnamed"),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
        ("灯塔 – Grüße.md", "灯塔 – Grüße.md"),
    ],
)
def test_a_name_is_shown_without_its_tricks(name: str, safe: str) -> None:
    assert safe_name(name) == safe

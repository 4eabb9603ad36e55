"""The parsers. This runs in a child with limits and nowhere else: it may crash, hang or eat all it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kreuzberg
import pypdfium2
import pypdfium2.raw

from pharos.library.extract.archive import check_archive
from pharos.library.extract.extracted import Extracted, Limits, unreadable
from pharos.library.extract.markup import html_text, mail_text
from pharos.library.extract.plain import decode
from pharos.library.extract.sniff import HTML, MAIL, PDF

SLIDES = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
SHEETS = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
HYPHEN = re.compile("[\ufffe\x02]\n?")
"""What PDFium puts in place of a hyphen at the end of a line: the word goes on."""
SLIDE_MARK = re.compile(r"\x1d\d+\n")
MANY_PAGES = 10


def read(path: Path, media_type: str, limits: Limits) -> Extracted:
    """The text of a file that is not plain text. Raises `UnreadableFile`, `MemoryError`, or what a parser raises."""
    if media_type == PDF:
        return read_pdf(path)
    if media_type == MAIL:
        return Extracted(text=mail_text(path.read_bytes()), media_type=media_type)
    if media_type == HTML:
        return read_html(path)
    if path.open("rb").read(2) == b"PK":
        check_archive(path, limits)
    return read_office(path, media_type)


def read_pdf(path: Path) -> Extracted:
    """Page by page. PDFium alone gives exact pages and keeps the words of a right-to-left line in their order."""
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        # PDFium answers a password and an unknown security handler alike: only the owner can open it.
        is_protected = (
            pypdfium2.raw.FPDF_GetLastError()
            in {
                pypdfium2.raw.FPDF_ERR_PASSWORD,
                pypdfium2.raw.FPDF_ERR_SECURITY,
            }
            or "password" in str(error).lower()
        )
        raise unreadable("encrypted_file" if is_protected else "damaged_file") from error
    pages: list[str] = []
    pictures: list[int] = []
    for number in range(len(document)):
        try:
            page = document[number]
            text = page.get_textpage().get_text_range()
        except pypdfium2.PdfiumError:
            pages.append("")
            pictures.append(number + 1)
            continue
        pages.append(HYPHEN.sub("", text.replace("\r\n", "\n")))
        if not text.strip() and _has_picture(page):
            pictures.append(number + 1)
        page.close()
    text, starts = join_pages(pages)
    if not text.strip():
        raise unreadable("no_text_layer")
    return Extracted(text=text, media_type=PDF, page_starts=starts, warnings=_about_pictures(pictures))


def _has_picture(page: Any) -> bool:
    return any(True for _ in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def _about_pictures(pages: list[int]) -> list[str]:
    if not pages:
        return []
    named = ", ".join(map(str, pages[:MANY_PAGES])) + (" …" if len(pages) > MANY_PAGES else "")
    return [f"No text layer on page {named}: run text recognition (OCR) to make it searchable."]


def join_pages(pages: list[str]) -> tuple[str, list[int]]:
    """One text, and the offset at which each page begins; an empty page begins where the next one does.

    >>> join_pages(["one", "", "two"])
    ('one\\n\\ntwo', [0, 5, 5])
    """
    parts: list[str] = []
    starts: list[int] = []
    position = 0
    for page in pages:
        starts.append(position)
        body = page.strip("\n")
        if body:
            parts.append(body)
            position += len(body) + 2
    text = "\n\n".join(parts)
    return text, [min(start, len(text)) for start in starts]


def read_html(path: Path) -> Extracted:
    """The words a page shows, from its bytes in whatever encoding."""
    source, warnings = decode(path.read_bytes())
    return Extracted(text=html_text(source), media_type=HTML, warnings=warnings)


def read_office(path: Path, media_type: str) -> Extracted:
    """Office formats, RTF and books. Slides and sheets are pages; a DOCX knows no pages before it is printed."""
    try:
        result = kreuzberg.extract_file_sync(str(path), mime_type=media_type, config=_config())
    except kreuzberg.KreuzbergError as error:
        raise unreadable(_reason(str(error))) from error
    if media_type == SLIDES:
        # The parser's own byte offsets are off by one more with every slide; its marks are where they belong.
        text, starts = join_pages(SLIDE_MARK.split(result.content)[1:])
        return Extracted(text=text, media_type=media_type, page_starts=starts)
    starts = sheet_starts(result.content, result.metadata) if media_type == SHEETS else []
    return Extracted(text=result.content, media_type=media_type, page_starts=starts)


def _config() -> Any:
    # A control character that XML forbids: no slide can hold it.
    pages = kreuzberg.PageConfig(extract_pages=True, insert_page_markers=True, marker_format="\n\n\x1d{page_num}\n\n")
    return kreuzberg.ExtractionConfig(use_cache=False, pages=pages)


def sheet_starts(content: str, metadata: Mapping[str, Any]) -> list[int]:
    """Each sheet begins with its name on a line of its own; none when one of them is not found."""
    starts: list[int] = []
    for name in metadata.get("sheet_names") or []:
        found = re.compile(rf"^{re.escape(name)}[ \t]*$", re.MULTILINE).search(content, starts[-1] + 1 if starts else 0)
        if found is None:
            return []
        starts.append(found.start())
    return starts


def _reason(said: str) -> str:
    lower = said.lower()
    if "password" in lower or "encrypt" in lower:
        return "encrypted_file"
    if "security limit" in lower or "zip bomb" in lower or "too large" in lower:
        return "bomb_file"
    return "unknown_format" if "unsupported" in lower else "damaged_file"

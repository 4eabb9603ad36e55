"""The child that parses: `python -m pharos.library.extract.child FILE MEDIA_TYPE`, one JSON object on stdout.

It runs with limits of its own, in a session of its own, with an empty environment. Whatever a document does to the
parser, it does it here.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

MEMORY_BYTES = 2 * 1024**3
CPU_SECONDS = 60
WRITTEN_BYTES = 64 * 1024**2


def limit_resources() -> None:
    """Memory, processor time, written bytes and core files of this process; the kernel enforces them."""
    for kind, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, WRITTEN_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def parse(path: Path, media_type: str) -> dict[str, object]:
    """`text` and `page_starts`, or `error` with a word and what the parser said."""
    from kreuzberg import ExtractionConfig, KreuzbergError, PageConfig, extract_file_sync

    config = ExtractionConfig(use_cache=False, pages=PageConfig(extract_pages=True), disable_ocr=True)  # type: ignore[call-arg] # missing in its stubs
    try:
        result = extract_file_sync(str(path), mime_type=media_type, config=config)
    except (KreuzbergError, ValueError, RuntimeError, OSError) as error:
        if media_type == "application/pdf":
            return _parse_pdf(path, said=str(error))
        return {"error": _word(str(error)), "said": str(error)[:500]}
    text, starts = result.content, _page_starts(result.content, result.metadata)
    if media_type == "application/pdf" and not text.strip():
        return _parse_pdf(path, said="")
    return {"text": text, "page_starts": starts}


def _page_starts(content: str, metadata: object) -> list[int]:
    """The parser counts bytes; everything else in Pharos counts characters. Converted once, here."""
    pages = metadata.get("pages") if isinstance(metadata, dict) else None
    boundaries = (pages or {}).get("boundaries") or []
    encoded = content.encode()
    starts, position, characters = [], 0, 0
    for boundary in boundaries:
        byte = min(int(boundary["byte_start"]), len(encoded))
        characters += len(encoded[position:byte].decode("utf-8", "ignore"))
        position = byte
        starts.append(characters)
    return starts


def _parse_pdf(path: Path, *, said: str) -> dict[str, object]:
    """A second opinion on a PDF: page by page with PDFium."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
        pages = [page.get_textpage().get_text_range() for page in document]
    except (pypdfium2.PdfiumError, ValueError, OSError) as error:
        return {"error": _word(f"{said} {error}"), "said": f"{said} {error}"[:500]}
    starts, position = [], 0
    for page in pages:
        starts.append(position)
        position += len(page) + 1
    return {"text": "\n".join(pages), "page_starts": starts}


def _word(said: str) -> str:
    lower = said.lower()
    if "password" in lower or "encrypt" in lower:
        return "encrypted"
    if "security limit" in lower or "zip bomb" in lower or "too large" in lower:
        return "bomb"
    if "unsupported" in lower:
        return "unsupported"
    return "damaged"


def main() -> None:
    limit_resources()
    try:
        answer = parse(Path(sys.argv[1]), sys.argv[2])
    except MemoryError:
        answer = {"error": "too_costly", "said": "out of memory"}
    sys.stdout.buffer.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()

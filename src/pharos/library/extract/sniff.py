"""What a file is, by its content; its name only decides where content cannot."""

from __future__ import annotations

import mmap
import re
import unicodedata
from pathlib import Path, PurePosixPath

HEAD_BYTES = 65536
TAIL_BYTES = 262144
MAX_NAME_CHARACTERS = 255

PDF = "application/pdf"
HTML = "text/html"
MAIL = "message/rfc822"
UNKNOWN = "application/octet-stream"
EMPTY = "application/x-empty"
OLE = "application/x-ole-storage"
OLE_ENCRYPTED = "application/x-ole-encrypted"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", PDF),
    (b"{\\rtf", "application/rtf"),
    (b"\x89PNG\r\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"\x1f\x8b", "application/gzip"),
    (b"7z\xbc\xaf", "application/x-7z-compressed"),
    (b"Rar!", "application/vnd.rar"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ\x90", "application/x-executable"),
)
# The main part of each format; looked for at both ends of the container, where the names of its parts stand.
OFFICE = {
    b"word/document": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    b"ppt/presentation": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    b"xl/workbook": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
DECLARED = re.compile(rb"mimetype(application/epub\+zip|application/vnd\.oasis\.opendocument\.[a-z-]+)")
# Streams of an OLE container, named in UTF-16. Office wraps a document that has a password into the first.
STREAMS = {
    "EncryptedPackage": OLE_ENCRYPTED,
    "WordDocument": "application/msword",
    "PowerPoint Document": "application/vnd.ms-powerpoint",
    "Workbook": "application/vnd.ms-excel",
    "__substg1.0_": "application/vnd.ms-outlook",
}
BY_SUFFIX = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".eml": MAIL,
}
PROMISED = BY_SUFFIX | {
    ".pdf": PDF,
    ".rtf": "application/rtf",
    ".docx": OFFICE[b"word/document"],
    ".pptx": OFFICE[b"ppt/presentation"],
    ".xlsx": OFFICE[b"xl/workbook"],
    ".odt": "application/vnd.oasis.opendocument.text",
    ".epub": "application/epub+zip",
}
"""What the end of a name promises. Only `BY_SUFFIX` decides anything; the rest is for telling a person."""

TEXT_TYPES = {"text/plain", "text/markdown", "text/csv", "text/tab-separated-values", "application/json"}
HTML_START = re.compile(
    rb"(?:<\?xml[^>]*>\s*)?(?:<!--.{0,4096}?-->\s*)?<(?:!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
JSON_START = re.compile(rb"\{\s*\"[^\"\n]{0,200}\"\s*:|\[\s*[\[{\"]")
MAIL_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:|[ \t]")
MAIL_FIELDS = (b"from:", b"subject:", b"date:", b"mime-version:", b"message-id:", b"received:", b"to:")
CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\r\f\x1b")
UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe_name(name: str) -> str:
    """A document's display name: a relative path without tricks.

    No control or direction-changing characters, no empty, `.` or `..` parts, no leading slash or drive, at most 255
    characters with the suffix kept. It is shown, never used as a path.

    >>> safe_name("..\\\\..\\\\etc/passwd")
    'etc/passwd'
    """
    kept = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in UNSAFE_CATEGORIES)
    parts = [part.strip() for part in re.split(r"[/\\]+", kept)]
    clean = "/".join(part for part in parts if part not in {"", ".", ".."} and not re.fullmatch(r"[A-Za-z]:", part))
    if len(clean) > MAX_NAME_CHARACTERS:
        suffix = PurePosixPath(clean).suffix[:16]
        clean = clean[: MAX_NAME_CHARACTERS - len(suffix)] + suffix
    return clean or "unnamed"


def sniff_file(path: Path, *, name: str) -> str:
    """The media type of a stored file. Reads both ends, never a directory that a stranger wrote."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        tail = file.read(TAIL_BYTES)
    by_magic = next((kind for magic, kind in MAGIC if head.startswith(magic)), None)
    if by_magic is not None:
        return by_magic
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _sniff_zip(head, tail)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _sniff_ole(path)
    if b"%PDF-" in head[:1024] and name.lower().endswith(".pdf"):
        return PDF  # some printers put a header of their own before it; a text that speaks of %PDF- is a text
    return _sniff_text(head, suffix=PurePosixPath(name.lower()).suffix) if head else EMPTY


def mislabelled(media_type: str, *, name: str) -> str | None:
    """The end of a name that promises something else than the content is; None when they agree."""
    suffix = PurePosixPath(name.lower()).suffix
    return suffix if PROMISED.get(suffix, media_type) != media_type else None


def _sniff_zip(head: bytes, tail: bytes) -> str:
    declared = DECLARED.search(head[:256])
    if declared is not None:
        return declared.group(1).decode()
    return next((kind for part, kind in OFFICE.items() if part in tail or part in head), "application/zip")


def _sniff_ole(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return next((kind for stream, kind in STREAMS.items() if content.find(stream.encode("utf-16-le")) >= 0), OLE)


def _sniff_text(head: bytes, *, suffix: str) -> str:
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_wide(head)
    flat = head.replace(b"\x00", b"") if is_wide else head
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"):
        flat = flat.removeprefix(mark)
    start = flat.lstrip()
    if not is_wide and _share_of_controls(head) > 0.02:
        return UNKNOWN
    if HTML_START.match(start):
        return HTML
    if _looks_like_mail(start):
        return MAIL
    if suffix not in BY_SUFFIX and JSON_START.match(start):
        return "application/json"
    return BY_SUFFIX.get(suffix, "text/plain")


def _looks_like_mail(start: bytes) -> bool:
    """At least three header lines, two of them of the kind that every mail has."""
    lines = start[:8192].split(b"\n\n")[0].split(b"\r\n\r\n")[0].splitlines()
    fields = {field for field in MAIL_FIELDS for line in lines if line.lower().startswith(field)}
    return len(lines) >= 3 and len(fields) >= 2 and all(MAIL_HEADER.match(line) for line in lines[:3])


def _looks_wide(head: bytes) -> bool:
    """UTF-16 without a mark: every other byte of mostly Latin text is zero."""
    sample = head[:512]
    return len(sample) >= 8 and max(sample[::2].count(0), sample[1::2].count(0)) > len(sample) * 0.4


def _share_of_controls(data: bytes) -> float:
    """NUL bytes weigh little: a text with a few of them is still a text."""
    controls = len(data) - len(data.translate(None, CONTROLS))
    return (controls - 0.5 * data.count(0)) / max(1, len(data))

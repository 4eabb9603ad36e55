"""What a file is, by its content; its name only decides where content cannot."""

from __future__ import annotations

import re
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath

HEAD_BYTES = 8192
MAX_NAME_CHARACTERS = 255

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "application/pdf"),
    (b"{\\rtf", "application/rtf"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"\x89PNG\r\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"\x1f\x8b", "application/gzip"),
    (b"7z\xbc\xaf", "application/x-7z-compressed"),
    (b"Rar!", "application/vnd.rar"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ", "application/x-executable"),
)
OFFICE = {
    "word/": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "ppt/": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "xl/": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
BY_SUFFIX = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".eml": "message/rfc822",
}
TEXT_TYPES = {"text/plain", "text/markdown", "text/csv", "text/tab-separated-values", "application/json"}
UNKNOWN = "application/octet-stream"
HTML_START = re.compile(
    rb"^\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
MAIL_START = re.compile(rb"^(?:[A-Za-z][A-Za-z0-9-]*:[^\n]*\r?\n(?:[ \t][^\n]*\r?\n)*){3,}")
MAIL_FIELDS = (b"from:", b"subject:", b"date:", b"mime-version:", b"message-id:", b"received:", b"to:")
UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe_name(name: str) -> str:
    """A document's display name: a relative path without tricks.

    No control or direction-changing characters, no empty, `.` or `..` parts, no leading slash or drive, at most 255
    characters with the suffix kept. It is shown, never used as a path.
    """
    kept = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in UNSAFE_CATEGORIES)
    parts = [part.strip() for part in re.split(r"[/\\]+", kept)]
    clean = "/".join(part for part in parts if part not in {"", ".", ".."} and not re.fullmatch(r"[A-Za-z]:", part))
    if len(clean) > MAX_NAME_CHARACTERS:
        suffix = PurePosixPath(clean).suffix[:16]
        clean = clean[: MAX_NAME_CHARACTERS - len(suffix)] + suffix
    return clean or "unnamed"


def sniff_file(path: Path, *, name: str) -> str:
    """The media type of a stored file."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    by_magic = next((kind for magic, kind in MAGIC if head.startswith(magic)), None)
    if by_magic is None and b"%PDF-" in head[:1024]:
        by_magic = "application/pdf"
    if by_magic is not None:
        return by_magic
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _sniff_zip(path)
    return _sniff_text(head, suffix=PurePosixPath(name.lower()).suffix)


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:2000]
            declared = archive.read("mimetype")[:100].decode("ascii", "replace") if "mimetype" in names else ""
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError):
        return "application/zip"
    if declared.startswith(("application/epub+zip", "application/vnd.oasis.opendocument")):
        return declared.strip()
    for prefix, kind in OFFICE.items():
        if any(entry.startswith(prefix) for entry in names):
            return kind
    return "application/zip"


def _sniff_text(head: bytes, *, suffix: str) -> str:
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_wide(head)
    if b"\x00" in head and not is_wide and _share_of_controls(head) > 0.02:
        return UNKNOWN
    flat = head.replace(b"\x00", b"") if is_wide else head
    flat = flat.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    if HTML_START.match(flat):
        return "text/html"
    start = flat.lstrip()[:4096]
    if MAIL_START.match(start) and sum(field in start.lower() for field in MAIL_FIELDS) >= 2:
        return "message/rfc822"
    if not is_wide and _share_of_controls(flat) > 0.1:
        return UNKNOWN
    return BY_SUFFIX.get(suffix, "text/plain")


def _looks_wide(head: bytes) -> bool:
    """UTF-16 without a mark: every other byte of mostly Latin text is zero."""
    sample = head[:512]
    return len(sample) >= 8 and max(sample[::2].count(0), sample[1::2].count(0)) > len(sample) * 0.4


def _share_of_controls(data: bytes) -> float:
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in data)
    return controls / max(1, len(data))

"""What a reader gives back, what it may cost, and the ways in which a file can be unreadable."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.infra.errors import Invalid

MIB = 1024**2


@dataclass(frozen=True)
class Extracted:
    """`page_starts` are the character offsets at which pages, slides or sheets begin, empty where there are none.

    For plain text and source code `text` is the decoded file, character by character, so spans index the original;
    only what the database cannot hold (NUL, half of a surrogate pair) is replaced by U+FFFD.
    """

    text: str
    media_type: str
    page_starts: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """What one file may cost. Honest files of the largest size allowed stay far below."""

    wall_seconds: float = 90.0
    cpu_seconds: int = 60
    memory_bytes: int = 2048 * MIB
    file_bytes: int = 100 * MIB
    text_characters: int = 20_000_000
    """About 25,000 passages; what is longer is a data set, not a document."""
    unpacked_bytes: int = 512 * MIB
    unpacked_ratio: int = 200
    """The largest ratio seen in honest office files is about 60; it counts from `unpacked_bytes` / 16 on."""
    entries: int = 20_000


class UnreadableFile(Invalid):
    """The file cannot be read, now or later; the message says what a person can do about it."""

    code = "unreadable_file"


REASONS = {
    "empty_file": "The file is empty. Check it and upload it again.",
    "encrypted_file": "The file is password-protected: remove the password and upload it again.",
    "damaged_file": "The file is damaged or cut off and cannot be read. Export it again and upload the new file.",
    "too_costly_file": "Reading the file takes more time or memory than allowed. Split it, or convert it to text.",
    "too_large_file": "The file is larger than a document may be. Split it and upload the parts.",
    "too_much_text": "The file holds more text than a document may. Split it and upload the parts.",
    "bomb_file": "The file unpacks to far more than it should and was not opened. Re-create it with smaller parts.",
    "no_text_layer": "No text layer: the pages are pictures. Run text recognition (OCR) on it and upload the result.",
    "unknown_format": "This kind of file is not supported. Convert it to PDF, DOCX or plain text.",
}

NO_TEXT = "No text was found in it."
REPLACED_BYTES = "Some characters could not be read and are shown as \ufffd."
"""A warning: the file's encoding is unknown or broken in places."""


def unreadable(code: str) -> UnreadableFile:
    """The error for one of `REASONS`."""
    return UnreadableFile(REASONS[code], code=code)

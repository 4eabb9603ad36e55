"""What a reader gives back, and how a file can be unreadable."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.infra.errors import Invalid


@dataclass(frozen=True)
class Extracted:
    """`page_starts` are the character offsets at which pages begin, empty where there are none.

    For plain text and source code `text` is the decoded file, character by character, so spans index the original;
    only NUL, which the database cannot hold, is replaced by U+FFFD.
    """

    text: str
    media_type: str
    page_starts: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class UnreadableFile(Invalid):
    """The file cannot be read, now or later; the message says what a person can do about it."""

    code = "unreadable_file"


ENCRYPTED = "The file is protected by a password. Remove the password and upload it again."
DAMAGED = "The file is damaged or cut off and cannot be read. Export it again and upload the new file."
TOO_COSTLY = "Reading the file takes more time or memory than allowed. Split it, or convert it to PDF or text."
BOMB = "The file unpacks to far more than it should and was not opened. Re-create it with fewer or smaller parts."
NO_TEXT_LAYER = "No text layer: the pages are pictures. Run text recognition (OCR) on it and upload the result."
NO_TEXT = "No text was found in it."
UNKNOWN_FORMAT = "This kind of file is not supported. Convert it to PDF, DOCX or plain text."
REPLACED_BYTES = "Some characters could not be read and are shown as \ufffd."
"""A warning: the file's encoding is unknown or broken in places."""

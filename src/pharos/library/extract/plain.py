"""Plain text, Markdown, CSV, JSON and source code: decoded, otherwise untouched."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from pharos.library.extract.extracted import REPLACED_BYTES, Extracted

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HIGH = re.compile(rb"[\x80-\xff]")
LATIN = re.compile(rb"[A-Za-z]")
# The byte pairs of everyday characters. A text whose high bytes are nearly all such pairs is in that encoding; ties go
# to the narrower one, which stands first (every Korean pair is also a Chinese one).
EVERYDAY = {
    "cp932": re.compile(
        rb"\x82[\x9f-\xf1]|\x83[\x40-\x96]|\x81[\x40-\xac]|[\x88-\x97\xe0-\xee\xfb][\x40-\x7e\x80-\xfc]"
    ),
    "euc_jp": re.compile(rb"(?:[\xa4\xa5][\xa1-\xf6])+(?:[\xa1\xb0-\xcf][\xa1-\xfe])*"),
    "euc_kr": re.compile(rb"[\xa1\xb0-\xc8][\xa1-\xfe]"),
    "gb18030": re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]"),
    "big5": re.compile(rb"[\xa1\xa4-\xc6][\x40-\x7e\xa1-\xfe]"),
    "cp1251": re.compile(rb"[\xc0-\xff\xa8\xb8]{3,}"),
}
SAMPLE_BYTES = 65536


def read_plain(path: Path, *, media_type: str) -> Extracted:
    """Decode a text file: by its mark, as UTF-8, as an East Asian or Cyrillic encoding, or as Windows-1252."""
    text, warnings = decode(path.read_bytes())
    return Extracted(text=text, media_type=media_type, warnings=warnings)


def decode(data: bytes) -> tuple[str, list[str]]:
    """Text and warnings; never fails: bytes that the encoding does not explain become U+FFFD.

    >>> decode("Grüße".encode("cp1252"))
    ('Grüße', [])
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode(_encoding(data), "replace")
    else:
        if "\x00" in text[:512] and (wide := _wide(data)) is not None:
            text = data.decode(wide, "replace")
    return text, [REPLACED_BYTES] if "\ufffd" in text else []


def _encoding(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding
    return _wide(data) or ("utf-8" if _is_broken_utf8(data) else _legacy(data[:SAMPLE_BYTES]))


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of mostly Latin text is zero."""
    sample = data[:512]
    if len(sample) >= 8 and sample[1::2].count(0) > len(sample) * 0.4:
        return "utf-16-le"
    if len(sample) >= 8 and sample[::2].count(0) > len(sample) * 0.4:
        return "utf-16-be"
    return None


def _is_broken_utf8(data: bytes) -> bool:
    """Valid multi-byte characters hardly ever arise by chance: when they outnumber the faults, it is UTF-8."""
    text = data.decode("utf-8", "replace")
    faults = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) - faults > 2 * faults


def _legacy(sample: bytes) -> str:
    high = len(HIGH.findall(sample))
    if high < 0.15 * (high + len(LATIN.findall(sample))):
        return "cp1252"  # scattered accents and curly quotes, whatever pairs they happen to form
    scores = {
        encoding: sum(len(HIGH.findall(match)) for match in pattern.findall(sample)) / high
        for encoding, pattern in EVERYDAY.items()
    }
    best = max(scores, key=lambda encoding: scores[encoding])
    return best if scores[best] >= 0.85 else "cp1252"

"""Plain text, Markdown, CSV, JSON and source code: decoded, otherwise untouched."""

from __future__ import annotations

import codecs

from pharos.library.extract.extracted import REPLACED_BYTES, Extracted

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_plain(data: bytes, *, media_type: str) -> Extracted:
    """Decode a text file: by its mark, as UTF-8, as an East Asian encoding, or as Windows-1252."""
    text, warnings = decode(data)
    return Extracted(text=text.replace("\x00", "\ufffd"), media_type=media_type, warnings=warnings)


def decode(data: bytes) -> tuple[str, list[str]]:
    """Text and warnings; never fails: what no encoding explains is UTF-8 with replaced characters."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _with_warning(data.decode(encoding, "replace"))
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    wide = _decode_wide(data)
    if wide is not None:
        return _with_warning(wide)
    return _with_warning(_decode_legacy(data))


def _decode_wide(data: bytes) -> str | None:
    sample = data[:512]
    if len(sample) < 8:
        return None
    if sample[1::2].count(0) > len(sample) * 0.4:
        return data.decode("utf-16-le", "replace")
    if sample[::2].count(0) > len(sample) * 0.4:
        return data.decode("utf-16-be", "replace")
    return None


def _decode_legacy(data: bytes) -> str:
    """The stricter encodings first: they refuse what is not theirs, Windows-1252 refuses almost nothing."""
    broken = data.decode("utf-8", "replace")
    high = sum(byte >= 0x80 for byte in data)
    if broken.count("\ufffd") <= 0.1 * high:
        return broken
    for encoding in ("shift_jis", "gb18030", "euc_kr", "big5"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _is_east_asian(text, high):
            return text
    return data.decode("cp1252", "replace")


def _is_east_asian(text: str, high_bytes: int) -> bool:
    wide = sum("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7af" for c in text)
    return wide * 2 >= 0.6 * high_bytes


def _with_warning(text: str) -> tuple[str, list[str]]:
    return text, [REPLACED_BYTES] if "\ufffd" in text else []

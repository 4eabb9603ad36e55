"""A file in a form, as it arrives: nothing of it is gathered in memory or in a temporary file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from pharos.infra.errors import Invalid

MAX_HEADER_BYTES = 16 * 1024
WHAT_TO_SEND = "Send one file as multipart/form-data in the field `file`."


@dataclass(frozen=True)
class SentFile:
    """The name the sender gave, and the content; the content must be read to its end before anything is believed."""

    name: str
    chunks: AsyncIterator[bytes]


async def read_file_part(body: AsyncIterator[bytes], content_type: str) -> SentFile:
    """The part called `file` of a form. Raises `Invalid`, also from `chunks` when the form was cut off."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Invalid(WHAT_TO_SEND, code="no_file")
    form = _Form(options[b"boundary"])
    before_file = 0
    async for piece in body:
        before_file += len(piece)
        form.feed(piece)
        if form.name is not None:
            return SentFile(name=form.name, chunks=_content(form, body))
        if before_file > MAX_HEADER_BYTES:
            break
    raise Invalid(WHAT_TO_SEND, code="no_file")


async def _content(form: _Form, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in form.take():
        yield piece
    async for piece in body:
        form.feed(piece)
        for part in form.take():
            yield part
    if not form.is_complete:
        raise Invalid("The upload was cut off; nothing of it was kept. Send it again.", code="upload_cut_off")


class _Form:
    """Callbacks of the parser, turned into what has been read so far."""

    def __init__(self, boundary: bytes) -> None:
        self.name: str | None = None
        self.is_complete = False
        self._in_file = False
        self._pieces: list[bytes] = []
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_field,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            raise Invalid(f"The form cannot be read. {WHAT_TO_SEND}", code="bad_form") from error

    def take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        self._headers = {}

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if self.name is None and options.get(b"name") == b"file" and b"filename" in options:
            self.name = options[b"filename"].decode("utf-8", errors="replace")
            self._in_file = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self._in_file:
            self._in_file, self.is_complete = False, True

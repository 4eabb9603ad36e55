"""Files of every format, made from a few bytes: as a program writes them, and as nobody should."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence

SCAN = "scan"
"""A page that is a picture."""

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"
KIND = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def container(parts: Mapping[str, str | bytes], *, stored: Sequence[str] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content, zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _links(*targets: tuple[str, str]) -> str:
    rows = "".join(
        f'<Relationship Id="r{n}" Type="{KIND}/{kind}" Target="{to}"/>' for n, (kind, to) in enumerate(targets)
    )
    return f'<Relationships xmlns="{RELATIONSHIPS}">{rows}</Relationships>'


def docx(*paragraphs: str, **extra: bytes) -> bytes:
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    return container(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": _links(("officeDocument", "word/document.xml")),
            "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
            **extra,
        }
    )


def pptx(*slides: str) -> bytes:
    numbers = range(1, len(slides) + 1)
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="r{n - 1}"/>' for n in numbers)
    shape = "<p:sp><p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    shape = f"<p:sld {P} {A}><p:cSld><p:spTree>{shape}</p:spTree></p:cSld></p:sld>"
    return container(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": _links(("officeDocument", "ppt/presentation.xml")),
            "ppt/presentation.xml": f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": _links(*(("slide", f"slides/slide{n}.xml") for n in numbers)),
            **{f"ppt/slides/slide{n}.xml": shape.format(text=slides[n - 1]) for n in numbers},
        }
    )


def xlsx(**sheets: str) -> bytes:
    names = list(sheets)
    rows = "".join(f'<sheet name="{name}" sheetId="{n + 1}" r:id="r{n}"/>' for n, name in enumerate(names))
    cell = '<row r="1"><c r="A1" t="inlineStr"><is><t>{text}</t></is></c></row>'
    cell = f"<worksheet {S}><sheetData>{cell}</sheetData></worksheet>"
    return container(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": _links(("officeDocument", "xl/workbook.xml")),
            "xl/workbook.xml": f"<workbook {S} {R}><sheets>{rows}</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": _links(
                *(("worksheet", f"worksheets/sheet{n + 1}.xml") for n in range(len(names)))
            ),
            **{f"xl/worksheets/sheet{n + 1}.xml": cell.format(text=sheets[name]) for n, name in enumerate(names)},
        }
    )


def odt(text: str, *, manifest: str = "<manifest/>") -> bytes:
    office = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
    words = "urn:oasis:names:tc:opendocument:xmlns:text:1.0"
    content = (
        f'<office:document-content xmlns:office="{office}" xmlns:text="{words}"><office:body><office:text>'
        f"<text:p>{text}</text:p></office:text></office:body></office:document-content>"
    )
    parts = {
        "mimetype": "application/vnd.oasis.opendocument.text",
        "content.xml": content,
        "META-INF/manifest.xml": manifest,
    }
    return container(parts, stored=["mimetype"])


def epub(text: str) -> bytes:
    opf = "http://www.idpf.org/2007/opf"
    return container(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
            "book.opf": f'<package xmlns="{opf}" version="3.0"><metadata/><manifest><item id="c" href="c.xhtml" '
            'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
            "c.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{text}</p></body></html>',
        },
        stored=["mimetype"],
    )


def pdf(*pages: str, encrypted: bool = False) -> bytes:
    """Each page is a line of text, or `SCAN`."""
    bodies: list[bytes] = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    bodies.append(
        _stream(b"\x80", "/Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8")
    )
    kids = []
    for text in pages:
        drawing = b"200 0 0 200 0 0 cm /I Do" if text == SCAN else b"BT /F 12 Tf 20 100 Td (%s) Tj ET" % text.encode()
        bodies.append(_stream(drawing, ""))
        kids.append(f"{len(bodies) + 1} 0 R")
        resources = "/Resources<</Font<</F 3 0 R>>/XObject<</I 4 0 R>>>>"
        bodies.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 200]{resources}/Contents {len(bodies)} 0 R>>".encode()
        )
    bodies[1] = f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(kids)}]>>".encode()
    trailer = "/Root 1 0 R"
    if encrypted:
        bodies.append(f"<</Filter/Standard/V 1/R 2/P -4/O<{'ab' * 32}>/U<{'cd' * 32}>>>".encode())
        trailer += f"/Encrypt {len(bodies)} 0 R/ID[<{'01' * 16}><{'01' * 16}>]"
    return _numbered(bodies, trailer)


def _stream(content: bytes, entries: str) -> bytes:
    return f"<<{entries}/Length {len(content)}>>stream\n".encode() + content + b"\nendstream"


def _numbered(bodies: list[bytes], trailer: str) -> bytes:
    file, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj" % number + body + b"endobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(bodies) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}{trailer}>>\nstartxref\n{len(file)}\n%%EOF"
    return file + end.encode()


def lying_docx(megabytes: int) -> bytes:
    """A part that unpacks to so much and declares ten bytes, in both of its headers."""
    size = megabytes * 1024**2 + 0x1357
    honest = docx("small", **{"word/media/x.bin": bytes(size)})
    declared = struct.pack("<I", size)
    assert honest.count(declared) == 2
    return honest.replace(declared, struct.pack("<I", 10))


def locked_zip() -> bytes:
    """The flag that says: encrypted."""
    plain = bytearray(docx("secret"))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = plain.find(mark)
        while at >= 0:
            plain[at + offset] |= 1
            at = plain.find(mark, at + 4)
    return bytes(plain)


def locked_office() -> bytes:
    """What Office writes when a document has a password: the head of an OLE container and the stream's name."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1016) + "EncryptedPackage".encode("utf-16-le") + bytes(512)


def noise(size: int) -> bytes:
    """Bytes that mean nothing, the same every time."""
    blocks = (zlib.crc32(b"noise%d" % n).to_bytes(4, "little") for n in range(size // 4))
    return b"".join(blocks)

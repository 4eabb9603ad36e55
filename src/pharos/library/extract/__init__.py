"""From a file's bytes to its text: plain text here, everything else in a child that can be killed."""

from pharos.library.extract.extracted import Extracted
from pharos.library.extract.run import extract_document

__all__ = ["Extracted", "extract_document"]

"""Pharos: a private knowledge base that an organisation runs itself."""

__version__ = "0.1.0"

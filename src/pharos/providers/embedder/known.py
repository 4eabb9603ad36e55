"""Vectors computed at install, of texts that come with the release: a new installation need not compute them.

A text has the same vector whatever stands beside it (docs/adr/0018-embedder-determinism.md), so that looking one up is
the same as computing it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pharos.infra.logs import get_logger
from pharos.providers.embedder.model import LocalModel, clean_text, read_manifest

log = get_logger(__name__)

KNOWN_FILE = "known.npz"

KnownVectors = dict[bytes, NDArray[np.float32]]
"""Vectors by `text_key`."""


def text_key(text: str) -> bytes:
    """What a text is known by: as much of it as the model reads."""
    return hashlib.sha256(clean_text(text).encode()).digest()


def read_known(folder: Path) -> KnownVectors:
    """The vectors beside a model, or none: of another model's graph, damaged, or never made."""
    graph = read_manifest(folder).graph_sha256
    try:
        with (folder / KNOWN_FILE).open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["graph_sha256"]) != graph:
                return {}
            keys, vectors = kept["keys"], kept["vectors"]
            return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("known_vectors.unreadable", folder=str(folder), error=str(error))
        return {}


def write_known(folder: Path, texts: Sequence[str]) -> int:
    """Make the known vectors those of `texts`, computing what was not known; gives how many were computed."""
    known = read_known(folder)
    wanted = {text_key(text): text for text in texts}
    missing = [text for key, text in wanted.items() if key not in known]
    if not missing and len(known) == len(wanted):
        return 0
    if missing:
        computed = LocalModel(folder, verify=False).embed_texts(missing)
        known |= dict(zip(map(text_key, missing), computed, strict=True))
    partial = folder / f".{KNOWN_FILE}.{os.getpid()}"
    with partial.open("wb") as file:
        np.savez(
            file,
            graph_sha256=read_manifest(folder).graph_sha256,
            keys=np.frombuffer(b"".join(wanted), dtype=np.uint8).reshape(len(wanted), 32),
            vectors=np.array([known[key] for key in wanted], dtype=np.float32),
        )
    partial.replace(folder / KNOWN_FILE)
    return len(missing)

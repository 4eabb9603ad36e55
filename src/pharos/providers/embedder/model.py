"""The prepared model in this process: texts to vectors on the processor, each text on its own.

No batch is ever formed: a text alone has no padding, and on two cores two texts side by side on one thread each are
as fast as a batch over both (docs/adr/0018-embedder-determinism.md has the figures).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from pharos.infra.errors import Unavailable
from pharos.providers.embedder.minilm import DIMENSION, MAX_CHARACTERS, MAX_TOKENS, MODEL_NAME

GRAPH_FILE, TOKENIZER_FILE, MANIFEST_FILE = "model.onnx", "tokenizer.json", "manifest.json"
PREPARE = "Run `pharos models prepare`."


@dataclass(frozen=True)
class Manifest:
    """What lies beside it. `recipe` changes when the way of building does."""

    model: str
    dimension: int
    max_tokens: int
    recipe: str
    weights_sha256: str
    graph_sha256: str
    tokenizer_sha256: str

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def model_folder(models_dir: Path) -> Path:
    return models_dir / MODEL_NAME


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read it and compare the files with it (about 30 ms). Raises `Unavailable` when they are missing or changed."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST_FILE).read_text()))
        found = (file_sha256(folder / GRAPH_FILE), file_sha256(folder / TOKENIZER_FILE))
    except FileNotFoundError as error:
        raise Unavailable(f"The local model is not prepared in {folder}. {PREPARE}", code="model_missing") from error
    except (ValueError, TypeError) as error:
        raise Unavailable(f"{folder / MANIFEST_FILE} is damaged. {PREPARE}", code="model_damaged") from error
    if found != (manifest.graph_sha256, manifest.tokenizer_sha256):
        raise Unavailable(f"The local model in {folder} is damaged. {PREPARE}", code="model_damaged")
    return manifest


def usable_cores() -> int:
    """Physical cores this process may run on: more threads than that make a vector unit wait for itself."""
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return max(1, min(allowed or 1, psutil.cpu_count(logical=False) or 1))


class LocalModel:
    """Thread-safe once made; making it takes about half a second. Raises `Unavailable` when it is not prepared."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        if verify:
            read_manifest(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        # One thread a text: sums are then added in one order on every machine, whatever else runs.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
        )

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token ids of each text, at most `MAX_TOKENS`; an empty text has its two marks."""
        encodings = self._tokenizer.encode_batch_fast([clean_text(text) for text in texts])
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text with its two marks, counted up to `MAX_TOKENS`."""
        return len(self._tokenizer.encode(clean_text(text)).ids)

    def embed_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vector of one text, shape (384,), length 1."""
        vector: NDArray[np.float32] = self._session.run(None, {"input_ids": ids[np.newaxis]})[0][0]
        return vector

    def embed_texts(self, texts: Sequence[str], *, threads: int | None = None) -> NDArray[np.float32]:
        """Shape (len(texts), 384), rows of length 1, in the order of `texts`; `threads` default to the usable cores."""
        with ThreadPoolExecutor(threads or usable_cores()) as pool:
            vectors = list(pool.map(self.embed_tokens, self.tokenize(texts)))
        return np.array(vectors, dtype=np.float32).reshape(len(texts), DIMENSION)


def clean_text(text: str) -> str:
    """What the model reads: no half surrogates, which no tokenizer takes, and no more than any 256 tokens need."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")

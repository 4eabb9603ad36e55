"""The page for refused uploads names what the doors really answer."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import open_client
from tests.make import MadeTenant, make_project

from pharos.runtime import Runtime

PAGE = Path(__file__).parents[2] / "docs" / "runbook" / "uploads.md"
ROW = re.compile(r"^\| (?P<status>\d{3}) `(?P<code>\w+)` \|", re.MULTILINE)
LIMIT_BYTES = 200_000


def as_it_is(runtime: Runtime, _folder: Path) -> Runtime:
    return runtime


def with_a_limit(runtime: Runtime, _folder: Path) -> Runtime:
    return replace(runtime, settings=runtime.settings.model_copy(update={"max_upload_bytes": 1000}))


def without_its_folder(runtime: Runtime, folder: Path) -> Runtime:
    (folder / "a-file").write_text("not a folder")
    return replace(runtime, blobs=type(runtime.blobs)(folder / "a-file"))


REFUSALS: dict[str, tuple[Callable[[Runtime, Path], Runtime], bytes]] = {
    "server_misconfigured": (without_its_folder, b"note"),
    "too_large": (with_a_limit, b"x" * 1001),
    "empty_file": (as_it_is, b""),
    "duplicate_document": (as_it_is, b"the same again"),
    "storage_full": (as_it_is, b"x" * (LIMIT_BYTES + 1)),
}


def test_the_page_has_each_refusal_once() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert sorted(code for _, code in rows) == sorted(REFUSALS)


@pytest.mark.parametrize(("status", "code"), ROW.findall(PAGE.read_text()))
async def test_a_refused_upload_answers_as_the_page_says(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path, status: str, code: str
) -> None:
    world, content = REFUSALS[code]
    path = f"/projects/{await make_project(runtime.db, tenant.admin, name='Refused')}/documents"
    async with open_client(world(runtime, tmp_path), tenant.admin) as client:
        if code == "duplicate_document":
            assert (await client.post(path, files={"file": ("first.txt", content)})).status_code == 201
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The kernel refuses files beyond this size with the same path through the code as a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
        try:
            answer = await client.post(path, files={"file": ("note.txt", content)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (str(answer.status_code), answer.json()["error"]) == (status, code)

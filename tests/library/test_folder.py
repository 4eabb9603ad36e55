"""Folders come in whole, and coming in again changes what changed and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project

from pharos.infra import jobs
from pharos.infra.errors import Invalid
from pharos.infra.ids import ProjectId
from pharos.library import documents
from pharos.library.check import check_index
from pharos.library.folder import TOGETHER_FILES, FileOutcome, ingest_files, list_files
from pharos.runtime import Runtime


async def bring(runtime: Runtime, tenant: MadeTenant, project: ProjectId, *paths: Path) -> list[FileOutcome]:
    files = list_files(paths)
    return [each async for each in ingest_files(runtime, tenant.admin, project_id=project, files=files)]


async def names(runtime: Runtime, tenant: MadeTenant, project: ProjectId) -> list[str]:
    async with runtime.db.transaction(tenant.id) as session:
        return [d.name for d in await documents.list_documents(session, tenant.admin, project_id=project)]


@pytest.mark.contract("IQ-01", part="unchanged files are skipped")
async def test_a_folder_is_added_then_skipped_then_replaced_where_it_changed(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("The first note.")
    (folder / "sub" / "b.txt").write_text("The second note.")
    (folder / ".hidden").write_text("not this one")

    async def go() -> list[tuple[str, str]]:
        files = list_files([folder])
        return [(o.name, o.outcome) async for o in ingest_files(runtime, tenant.admin, project_id=project, files=files)]

    assert await go() == [("a.txt", "added"), ("sub/b.txt", "added")]
    assert await go() == [("a.txt", "unchanged"), ("sub/b.txt", "unchanged")]
    (folder / "a.txt").write_text("The first note, revised.")
    assert await go() == [("a.txt", "replaced"), ("sub/b.txt", "unchanged")]
    async with runtime.db.transaction(tenant.id) as session:
        assert len(await documents.list_documents(session, tenant.admin, project_id=project)) == 2


def test_two_files_of_the_same_name_are_refused_before_one_replaces_the_other(tmp_path: Path) -> None:
    for folder in ("2023", "2024"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "report.txt").write_text(f"The report of {folder}.")
    with pytest.raises(Invalid, match=r"report\.txt"):
        list_files([tmp_path / "2023", tmp_path / "2024"])
    with pytest.raises(Invalid):
        list_files([tmp_path / "2023" / "report.txt", tmp_path / "2024" / "report.txt"])
    assert [name for _, name in list_files([tmp_path])] == ["2023/report.txt", "2024/report.txt"]


async def test_a_file_that_now_equals_another_is_no_longer_there_in_its_old_version(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    (tmp_path / "a.txt").write_text("The tariff is 5 euros.")
    (tmp_path / "b.txt").write_text("The tariff is 6 euros.")
    await bring(runtime, tenant, project, tmp_path)
    (tmp_path / "a.txt").write_text("The tariff is 6 euros.")
    outcomes = {each.name: each.outcome for each in await bring(runtime, tenant, project, tmp_path)}
    assert outcomes == {"a.txt": "replaced", "b.txt": "unchanged"}
    assert await names(runtime, tenant, project) == ["b.txt"]


async def test_where_several_documents_have_the_name_none_is_taken_away(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    for content in (b"One upload.", b"Another upload."):
        await make_document(runtime, tenant.admin, project, name="a.txt", content=content)
    (tmp_path / "a.txt").write_text("The file of the folder.")
    (outcome,) = await bring(runtime, tenant, project, tmp_path)
    assert outcome.outcome == "added"
    assert await names(runtime, tenant, project) == ["a.txt"] * 3


async def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    (tmp_path / "b.txt").write_text("A note that is there.")
    files = [(tmp_path / "a.txt", "a.txt"), *list_files([tmp_path])]
    outcomes = [each async for each in ingest_files(runtime, tenant.admin, project_id=project, files=files)]
    assert [each.outcome for each in outcomes] == ["refused", "added"]
    assert "cannot be read" in (outcomes[0].reason or "")


async def test_many_files_make_few_jobs_and_each_its_document(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    for number in range(2 * TOGETHER_FILES + 1):
        (tmp_path / f"{number:03}.txt").write_text(f"Note {number} on the lighthouse.")
    (tmp_path / "000-again.txt").write_text("Note 0 on the lighthouse.")
    outcomes = await bring(runtime, tenant, project, tmp_path)
    assert [each.name for each in outcomes] == [name for _, name in list_files([tmp_path])]
    assert sorted(each.outcome for each in outcomes) == ["added"] * (2 * TOGETHER_FILES + 1) + ["unchanged"]
    async with runtime.db.transaction(tenant.id) as session:
        (line,) = await jobs.list_queue(session)
    assert line.jobs == 3
    await run_jobs(runtime)
    async with runtime.db.transaction(tenant.id) as session:
        found = await documents.list_documents(session, tenant.admin, project_id=project)
        assert (await check_index(session)).out_of_step == 0
    assert {(each.status, each.passage_count) for each in found} == {("indexed", 1)}


async def test_two_files_that_swap_their_bytes_lose_neither(
    runtime: Runtime, tenant: MadeTenant, tmp_path: Path
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    (tmp_path / "a.txt").write_text("The tariff is 5 euros.")
    (tmp_path / "b.txt").write_text("The tariff is 6 euros.")
    before = {each.document_id for each in await bring(runtime, tenant, project, tmp_path)}
    (tmp_path / "a.txt").write_text("The tariff is 6 euros.")
    (tmp_path / "b.txt").write_text("The tariff is 5 euros.")
    assert {each.document_id for each in await bring(runtime, tenant, project, tmp_path)} == before
    assert len(await names(runtime, tenant, project)) == 2

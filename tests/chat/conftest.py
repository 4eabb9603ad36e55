"""What most tests of chat begin with: a project that knows where the lighthouse stood."""

from __future__ import annotations

import pytest
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project

from pharos.infra.ids import ProjectId
from pharos.runtime import Runtime


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> ProjectId:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    return project_id

"""Who manages models, in a real Chromium: a provider added, tested, asked, made to fail; budgets; what did not help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import delete
from tests.journeys.served import Served, serve
from tests.journeys.test_admin_browser import (
    OpenWindow,
    an_operator,
    browser,
    enter,
    fits_both,
    house,
    made_project,
    press,
    record,
    window,
)
from tests.journeys.test_browser import PHONE
from tests.journeys.test_browser import pytestmark as of_a_browser
from tests.make import MadeTenant, make_person
from tests.provider_server import Provider, provider_server

from pharos.identity.principal import Principal
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import TenantId
from pharos.providers import models as rows
from pharos.providers.breaker import FAILURES_TO_OPEN, Outcome, pass_breaker, report

__all__ = ["browser", "house", "window"]

pytestmark = [*of_a_browser, pytest.mark.xdist_group("models_browser")]

KEY = "sk-lamp-0123456789abcdef"
QUESTION = "When are the pumps of building C serviced?"
RIGHT = "The pumps of building C are serviced twice a year, in April and in October [1]. "
WRONG = "The director of the museum plays the violin on Sundays [1]."


@pytest.fixture(scope="module")
def served(database_urls: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data_dir = tmp_path_factory.mktemp("served")
    with serve(database_urls, data_dir, free_port(), allow_private_providers=True) as running:
        yield running


@pytest.fixture
def provider() -> Iterator[Provider]:
    with provider_server(Provider(words=[RIGHT, WRONG], key=KEY)) as running:
        yield running


@pytest.fixture
def engineer(served: Served) -> Iterator[Principal]:
    """An engineer of the installation's own organisation; whose providers are gone afterwards for all other tests."""
    tenant_id = served.run(ensure_default_tenant(served.runtime))
    yield served.run(make_person(served.runtime.db, tenant_id, platform_role="engineer"))
    served.run(forget_providers(served, tenant_id))


async def forget_providers(served: Served, tenant_id: TenantId) -> None:
    async with served.runtime.db.transaction(tenant_id) as session:
        await session.execute(delete(rows.Provider))


async def fail_until_it_opens(served: Served, tenant_id: TenantId) -> None:
    candidate = (await served.runtime.models.resolve(tenant_id))[0]
    for _ in range(FAILURES_TO_OPEN):
        passed = await pass_breaker(served.runtime.db, candidate)
        await report(served.runtime.db, candidate, passed, Outcome.FAILURE)


def add_provider(page: Page, provider: Provider, *, key: str) -> None:
    page.get_by_label("Provider", exact=True).select_option("openai")
    expect(page.get_by_label("Address")).to_have_value("https://api.openai.com/v1")
    page.get_by_label("Name").fill("lamp")
    page.get_by_label("Address").fill(provider.openai_url)
    page.get_by_label("Models, one a line").fill("lamp-large\nlamp-small")
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Add").click()


def no_button_moves_when_a_test_fails(record: Locator, provider: Provider) -> None:
    provider.always = "failed"
    buttons = record.get_by_role("button").all()
    before = [button.bounding_box() for button in buttons]
    record.get_by_role("button", name="Test").click()
    expect(record.get_by_role("alert")).to_contain_text("500")
    assert [button.bounding_box() for button in buttons] == before
    provider.always = None


@pytest.mark.contract("LP-01", part="added in the browser")
@pytest.mark.contract("LP-05", part="seen in the browser")
@pytest.mark.contract("LP-06", part="in the browser")
def test_an_engineer_adds_a_provider_tests_it_asks_and_closes_its_breaker(
    served: Served, engineer: Principal, provider: Provider, window: OpenWindow, tmp_path: Path
) -> None:
    project_id = served.run(made_project(served, served.run(an_operator(served)), name="Works"))
    page = window(engineer, f"/projects/{project_id}", viewport=PHONE, dark=True)
    press(page, page.get_by_role("link", name="Set one up"))
    fits_both(page, tmp_path / "empty.png")
    add_provider(page, provider, key="sk-lamp-of-somebody-else")
    expect(page.get_by_role("alert")).to_contain_text("You said no.", timeout=30_000)  # the first call loads the SDK
    fits_both(page, tmp_path / "refused.png")
    page.get_by_label("Key").fill(KEY)
    enter(page)
    lamp = record(page, "lamp-large")
    expect(lamp).to_contain_text("sk-lamp-… 24 characters")
    expect(lamp).to_contain_text("in use")
    press(page, lamp.get_by_role("button", name="Test"))
    expect(page.get_by_text("lamp-large answered in")).to_be_visible()
    no_button_moves_when_a_test_fails(lamp, provider)
    fits_both(page, tmp_path / "tested.png")
    expect(lamp).to_contain_text("Price unknown, not counted")
    lamp.get_by_text("Edit").click()
    lamp.get_by_label("of question").fill("0.5")
    lamp.get_by_label("of answer").fill("1.5")
    lamp.get_by_label("Name").fill("lantern")
    lamp.get_by_label("Status page").fill("")
    press(page, lamp.get_by_role("button", name="Save"))
    expect(lamp).to_contain_text("24 characters")  # an empty key keeps the old one
    expect(lamp.get_by_role("link", name="Status page")).to_have_count(0)
    expect(lamp).to_contain_text("$0.5 a million tokens of question, $1.5 of answer")
    press(page, lamp.get_by_role("button", name="Switch off"))
    expect(lamp).to_contain_text("Switched off")
    press(page, lamp.get_by_role("button", name="Switch on"))
    served.run(fail_until_it_opens(served, engineer.tenant_id))
    page.reload()
    expect(lamp).to_contain_text("left alone")
    lamp.get_by_text("Edit").click()
    fits_both(page, tmp_path / "full.png")
    press(page, lamp.get_by_role("button", name="Try again now"))
    expect(lamp).to_contain_text("in use")

    page.goto(f"{served.origin}/projects/{project_id}")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("[data-answer]")).to_contain_text("violin")
    expect(page.locator("[data-unsupported]").last).to_be_visible()
    fits_both(page, tmp_path / "asked.png")
    page.goto(f"{served.origin}/engineer/providers")
    press(page, lamp.get_by_role("button", name="Remove"))
    expect(page.get_by_text("None yet. Choose one below")).to_be_visible()


def test_an_administrator_sets_a_budget_switches_models_off_and_reads_what_did_not_help(
    served: Served, house: MadeTenant, provider: Provider, window: OpenWindow, tmp_path: Path
) -> None:
    project_id = served.run(made_project(served, house.admin))
    page = window(house.admin, "/admin/models", viewport=PHONE, dark=True)
    fits_both(page, tmp_path / "empty.png")
    add_provider(page, provider, key=KEY)
    expect(page.get_by_text("Questions are answered by lamp-large of lamp")).to_be_visible()

    page.goto(f"{served.origin}/projects/{project_id}/instructions")
    page.get_by_label("Instructions for the model").fill("Answer in two sentences.")
    page.get_by_label("Facts it should know").fill("Building C is the old mill.")
    page.get_by_label("Model", exact=True).select_option("lamp/lamp-small")
    press(page, page.get_by_role("button", name="Save"))
    expect(page.get_by_label("Facts it should know")).to_have_value("Building C is the old mill.")
    fits_both(page, tmp_path / "instructions.png")
    page.goto(f"{served.origin}/projects/{project_id}")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="This answer does not help")).to_be_visible()
    asked = provider.asked[-1].body
    assert asked["model"] == "lamp-small"
    assert "Answer in two sentences." in str(asked["messages"])
    assert "the old mill" in str(asked["messages"])
    page.get_by_role("button", name="This answer does not help").click()
    expect(page.get_by_text("your feedback is stored")).to_be_visible()
    page.get_by_label("What was right or wrong?").fill("It is the fiddle.")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("What was right or wrong?")).to_be_hidden()
    page.goto(f"{served.origin}/admin/feedback")
    expect(record(page, QUESTION)).to_contain_text("It is the fiddle.")
    record(page, QUESTION).get_by_text("The answer").click()
    expect(record(page, QUESTION)).to_contain_text("violin")
    fits_both(page, tmp_path / "feedback.png")

    page.goto(f"{served.origin}/admin/models")
    page.get_by_label("Stop at").fill("12.50")
    page.get_by_label("Warn from").fill("10")
    page.get_by_label("Models may be asked").uncheck()
    press(page, page.get_by_role("region", name="What is allowed").get_by_role("button", name="Save"))
    expect(page.get_by_text("Models are switched off for this organisation.")).to_be_visible()
    expect(page.get_by_label("Stop at")).to_have_value("12.50")
    expect(page.get_by_role("region", name="Spend")).to_contain_text("of $12.50")
    fits_both(page, tmp_path / "full.png")

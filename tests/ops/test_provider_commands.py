"""`pharos provider`: what is typed wrong is refused before anything is looked up."""

from __future__ import annotations

import pytest
from tests.make import MadeTenant
from typer.testing import CliRunner

from pharos.cli import app
from pharos.infra.errors import Invalid
from pharos.ops.provider_changes import MOST_PRICE_MICRO, Draft, add_provider
from pharos.runtime import Runtime


def refused(*words: str) -> tuple[int, str]:
    error = CliRunner().invoke(app, ["provider", *words]).exception
    assert isinstance(error, Invalid)
    return error.exit_code, error.code


@pytest.mark.parametrize("amount", ["inf", "1e13"])
def test_an_amount_that_is_no_number_or_beyond_all_reason_is_refused(amount: str) -> None:
    assert refused("add", "lamp", "--input-price", amount, "--output-price", "1") == (2, "bad_amount")
    assert refused("budget", "--stop", amount) == (2, "bad_amount")


@pytest.mark.parametrize("price", ["--input-price", "--output-price"])
def test_a_price_is_not_stated_and_taken_away_at_once(price: str) -> None:
    assert refused("add", "lamp", price, "1", "--no-price") == (2, "bad_price")


async def test_a_price_has_a_bound_whoever_states_it(runtime: Runtime, tenant: MadeTenant) -> None:
    draft = Draft(
        name="lamp",
        base_url="https://lamp.example/v1",
        input_price_micro=MOST_PRICE_MICRO,
        output_price_micro=MOST_PRICE_MICRO + 1,
    )
    with pytest.raises(Invalid) as error:
        await add_provider(runtime, tenant.admin, draft, ping=False)
    assert error.value.code == "bad_price"

"""Which provider a wish means, and that nobody is called who cannot be."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from tests.make import MadeTenant
from tests.providers.worlds import KEY, make_provider, patient

from pharos.infra.errors import NotFound, PharosError, Unavailable
from pharos.providers.catalog import open_chat_model
from pharos.providers.choice import Known, choose
from pharos.providers.contract import Candidate, Kind
from pharos.runtime import Runtime


def known(name: str, *models: str, key: str | None = "a key", **fields: Any) -> Known:
    values: dict[str, Any] = {"kind": "openai", "base_url": f"https://{name}.example/v1", "is_default": False}
    values |= {"is_shared": False, "state_key": name, "label": name} | fields
    return Known(id=uuid4(), name=name, models=models, key=key, **values)


def chosen(*providers: Known, wish: str | None = None, project: str | None = None) -> list[str]:
    return [f"{one.provider}/{one.model}" for one in choose(providers, wish=wish, project=project)]


def refused(*providers: Known, wish: str | None = None, project: str | None = None) -> PharosError:
    with pytest.raises((NotFound, Unavailable)) as caught:
        choose(providers, wish=wish, project=project)
    return caught.value


GROQ = known("groq", "llama", "openai/gpt-oss")
OPENAI = known("openai", "gpt", "gpt-mini", is_default=True)
OURS = known("ours", "llama", key=None, kind="local")


@pytest.mark.contract("LP-02")
def test_the_projects_setting_comes_before_a_wish_and_a_wish_before_the_default() -> None:
    assert chosen(GROQ, OPENAI)[0] == "openai/gpt"
    assert chosen(GROQ, OPENAI, wish="groq/llama")[0] == "groq/llama"
    assert chosen(GROQ, OPENAI, wish="groq/llama", project="openai/gpt-mini")[0] == "openai/gpt-mini"
    assert chosen(GROQ, OPENAI, wish="gpt-mini") == ["openai/gpt-mini"]
    assert chosen(GROQ, OPENAI, wish="openai/gpt-mini") == ["openai/gpt-mini"]
    assert chosen(GROQ, known("spare", "gpt"), wish="openai/gpt-oss") == ["groq/openai/gpt-oss"]  # no provider's name
    assert chosen(GROQ, OPENAI, wish="groq")[0] == "groq/llama"


@pytest.mark.contract("LP-02", part="never an empty key")
def test_a_model_that_only_a_provider_without_a_key_offers_is_refused_by_name_and_passed_over_otherwise() -> None:
    locked = known("locked", "gpt", key=None, is_default=True)
    assert refused(locked).code == "llm_disabled"
    assert refused(locked, wish="gpt").code == "llm_disabled"
    assert refused(locked, GROQ, wish="locked/gpt").code == "llm_disabled"
    assert chosen(locked, OPENAI, wish="gpt") == ["openai/gpt"]
    assert chosen(locked, known("house", "llama", is_shared=True, is_default=True)) == ["house/llama"]


@pytest.mark.contract("LP-01", part="the cause and where to mend it")
@pytest.mark.contract("LP-02", part="no_provider before any call")
def test_without_a_fitting_provider_the_cause_says_what_to_do() -> None:
    nothing = refused()
    assert (nothing.code, "/engineer/providers" in nothing.message) == ("no_provider", True)
    assert refused(GROQ).code == "no_provider"  # none is the default
    assert refused(GROQ, OPENAI, wish="claude").code == "no_provider"
    assert "groq/llama" in refused(GROQ, known("spare", "llama"), wish="llama").message
    assert refused(GROQ, wish="groq/claude").code == "no_provider"
    kinds = [type(refused(GROQ, **named)) for named in ({"wish": "groq/claude"}, {"wish": "x"}, {"project": "x"})]
    assert kinds == [NotFound, NotFound, Unavailable]


def test_a_named_model_fails_over_to_the_same_one_only_and_the_default_to_all() -> None:
    spare = known("spare", "gpt", "gpt-nano")
    assert chosen(OPENAI, GROQ, spare, wish="openai/gpt") == ["openai/gpt", "spare/gpt"]
    assert chosen(OPENAI, GROQ, spare) == ["openai/gpt", "spare/gpt", "groq/llama"]
    assert chosen(OPENAI, GROQ, spare, project="openai/gpt") == ["openai/gpt", "spare/gpt"]
    assert chosen(OPENAI, GROQ, spare, project="gpt-nano") == ["spare/gpt-nano"]


def test_behind_a_local_model_stand_local_ones_alone() -> None:
    house = known("house", "llama", is_shared=True, is_default=True)
    second = known("second", "qwen", key=None, kind="local")
    ours = known("ours", "llama", key=None, kind="local", is_default=True)
    assert chosen(GROQ, second, ours, house) == ["ours/llama", "second/qwen"]
    assert chosen(GROQ, ours, house, project="ours/llama") == ["ours/llama"]
    assert chosen(GROQ, ours, house, wish="ours/llama") == ["ours/llama"]
    assert refused(known("ours", key=None, kind="local", is_default=True), house).code == "no_provider"
    assert chosen(known("openai", "gpt", is_default=True), OURS) == ["openai/gpt", "ours/llama"]


def test_a_tenants_own_provider_comes_before_a_shared_one_of_the_same_name_or_model() -> None:
    house = known("house", "llama", is_shared=True, is_default=True)
    assert chosen(GROQ, house)[0] == "house/llama"
    assert chosen(GROQ, house, wish="llama")[0] == "groq/llama"
    assert chosen(OPENAI, house)[0] == "openai/gpt"
    assert chosen(known("house", "gpt"), house, wish="house/gpt") == ["house/gpt"]


@pytest.mark.contract("LP-14", part="a local server is a provider without a key")
def test_a_local_server_needs_no_key() -> None:
    assert chosen(OURS, wish="ours/llama") == ["ours/llama"]


@pytest.mark.contract("LP-03")
async def test_each_choice_logs_address_prefix_and_length_and_never_the_key(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    world = patient(runtime)
    await make_provider(world, tenant.id, "https://api.lamp.example/v1", is_default=True)
    with capture_logs() as logs:
        await world.models.resolve(tenant.id)
    (line,) = [log["event"] for log in logs if "resolveProvider" in log["event"]]
    assert line == f"[LLM] resolveProvider -> url=https://api.lamp.example/v1 keyPrefix=sk-lamp- keyLen={len(KEY)}"
    assert KEY not in str(logs)


@pytest.mark.parametrize(("kind", "seconds"), [("openai", 30), ("anthropic", 30), ("local", 60)])
def test_a_provider_that_says_nothing_is_not_waited_for_and_a_local_one_may_load_its_model(
    kind: Kind, seconds: float
) -> None:
    opened: Any = open_chat_model(Candidate("lamp", kind, "https://lamp.example/v1", "m", "lamp", "lamp", key=KEY))
    timeout = opened._client.timeout
    assert getattr(timeout, "read", timeout) == seconds

"""Tests that share what takes long to make are given to one process."""

from __future__ import annotations

import pytest
from tests.conftest import keep_groups_together
from xdist.scheduler import LoadGroupScheduling


def scope_of(test: pytest.Item) -> str:
    """What pytest-xdist gives out together with it."""
    return str(LoadGroupScheduling._split_scope(None, test.nodeid))  # it asks nothing of itself


def test_a_group_is_read_where_tests_are_given_out(request: pytest.FixtureRequest) -> None:
    tests: list[pytest.Item] = [
        pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None)
        for name in ("test_an_address[a@example.org]", "test_another")
    ]
    for test in tests:
        test.add_marker(pytest.mark.xdist_group("together"))
    assert [scope_of(test) for test in tests] == [test.nodeid for test in tests]
    for _ in range(2):
        keep_groups_together(tests)
        assert [scope_of(test) for test in tests] == ["together", "together"]
        assert tests[0].nodeid.endswith("[a@example.org]@together")

"""Which passwords are refused when somebody chooses one."""

from __future__ import annotations

import pytest

from pharos.identity.passwords import check_new_password, random_password
from pharos.infra.errors import Invalid


@pytest.mark.parametrize(
    "password",
    ["password1234", "Pharos-2026-2026", "qwertyuiop12", "123456789012", "tree7tree7tree7", "Admin_Password!1"],
)
def test_what_is_guessed_first_is_refused(password: str) -> None:
    with pytest.raises(Invalid, match="first that are guessed"):
        check_new_password(password)


@pytest.mark.parametrize("password", ["four unrelated calm words", "canary-password", "a long enough password"])
def test_a_phrase_may_hold_a_common_word(password: str) -> None:
    check_new_password(password)
    check_new_password(random_password())

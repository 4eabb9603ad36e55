"""Which passwords are refused when somebody chooses one."""

from __future__ import annotations

import pytest

from pharos.identity.passwords import check_new_password, hash_password, password_matches, random_password
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


@pytest.mark.usefixtures("real_hashing")
def test_a_stored_password_costs_who_tries_them_all_64_megabytes_and_three_passes_each() -> None:
    stored = hash_password("four unrelated calm words")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert password_matches("four unrelated calm words", stored)
    assert not password_matches("four unrelated calm word", stored)

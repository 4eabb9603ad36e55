"""Who looks at a page: signed in, or led to the page that changes that."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request

from pharos.identity.current import Visitor, current_visitor, get_runtime
from pharos.identity.principal import Principal
from pharos.identity.setup import is_initialised
from pharos.infra.errors import NotSignedIn, Unavailable
from pharos.runtime import Runtime
from pharos.web.errors import NOT_INITIALIZED


@dataclass(frozen=True)
class Person:
    """Who the page greets; what they manage decides which links it offers."""

    name: str
    email: str
    administrates: bool
    manages_groups: bool


@dataclass(frozen=True)
class Visit:
    """A signed-in person at a page."""

    runtime: Runtime
    visitor: Visitor

    @property
    def principal(self) -> Principal:
        return self.visitor.principal

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """One transaction of the person's tenant."""
        return self.runtime.db.transaction(self.principal.tenant_id)

    @property
    def led_department(self) -> UUID | None:
        """The department whose groups the person manages although they do not administrate."""
        is_manager = self.principal.org_position == "manager" and not self.principal.administrates
        return self.principal.department_id if is_manager else None

    @property
    def _person(self) -> Person:
        return Person(
            self.visitor.signed_in.display_name,
            self.principal.name,
            administrates=self.principal.administrates,
            manages_groups=self.led_department is not None,
        )

    @property
    def context(self) -> dict[str, Any]:
        """What every page of a signed-in person shows or sends back."""
        return {"person": self._person, "csrf_token": self.visitor.csrf_token}


async def current_visit(request: Request) -> Visit:
    """The visit of a signed-in person. Raises `NotSignedIn`, or `Unavailable` before the first setup (ID-02)."""
    runtime = get_runtime(request)
    try:
        return Visit(runtime=runtime, visitor=await current_visitor(request))
    except NotSignedIn:
        if await is_initialised(runtime):
            raise
        raise Unavailable(
            "This installation has no account yet. Open the setup link that `pharos setup-link` prints.",
            code=NOT_INITIALIZED,
        ) from None


CurrentVisit = Annotated[Visit, Depends(current_visit)]

"""Who looks at a page: signed in, or led to the page that changes that."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request

from pharos.identity.current import COOKIE, Visitor, current_visitor, get_runtime, visitor_of
from pharos.identity.model_managers import managed_scopes
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_session_token
from pharos.identity.setup import is_initialised
from pharos.identity.tenants import list_tenants_of
from pharos.infra.errors import NotSignedIn, Unavailable
from pharos.runtime import Runtime
from pharos.web.errors import NOT_INITIALIZED, wants_page


@dataclass(frozen=True)
class Place:
    """An organisation the person belongs to; `is_here`: the one they are in."""

    slug: str
    name: str
    is_here: bool


@dataclass(frozen=True)
class Person:
    """Who the page greets; what they manage decides which links it offers.

    `places` is empty for who belongs to one organisation alone: they need neither its name nor a way to another.
    """

    name: str
    email: str
    administrates: bool
    manages_groups: bool
    manages_installation: bool
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Visit:
    """A signed-in person at a page."""

    runtime: Runtime
    visitor: Visitor
    places: tuple[Place, ...] = ()
    manages_installation: bool = False

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
            manages_installation=self.manages_installation,
            places=self.places,
        )

    @property
    def context(self) -> dict[str, Any]:
        """What every page of a signed-in person shows or sends back."""
        return {"person": self._person, "csrf_token": self.visitor.csrf_token}


async def current_visit(request: Request) -> Visit:
    """The visit of a signed-in person. Raises `NotSignedIn`, or `Unavailable` before the first setup (ID-02)."""
    runtime = get_runtime(request)
    try:
        visitor = await current_visitor(request)
    except NotSignedIn:
        if await is_initialised(runtime):
            raise
        raise Unavailable(
            "This installation has no account yet. Open the setup link that `pharos setup-link` prints.",
            code=NOT_INITIALIZED,
        ) from None
    return await _visit(request, runtime, visitor)


async def find_visit(request: Request) -> Visit | None:
    """The visit of whoever is signed in, for a page that anybody may see, such as that of an error."""
    runtime = get_runtime(request)
    try:
        signed_in = await find_by_session_token(runtime, request.cookies.get(COOKIE, ""))
    except NotSignedIn:
        return None
    if signed_in.must_change_password:
        return None
    return await _visit(request, runtime, visitor_of(runtime, signed_in, by_cookie=True))


async def _visit(request: Request, runtime: Runtime, visitor: Visitor) -> Visit:
    me = visitor.principal
    if not wants_page(request) or me.user_id is None:
        return Visit(runtime, visitor)
    tenants = await list_tenants_of(runtime, me.user_id)
    places = tuple(Place(each.slug, each.name, is_here=each.id == me.tenant_id) for each in tenants)
    manages_installation = True in await managed_scopes(runtime, me)
    return Visit(runtime, visitor, places if len(places) > 1 else (), manages_installation)


CurrentVisit = Annotated[Visit, Depends(current_visit)]

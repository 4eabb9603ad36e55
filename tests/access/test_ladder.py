"""The ladder: what each rung gives, which of several counts, and that every question gets the same answer."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from tests.make import MadeTenant, make_department, make_group, make_person, make_project, make_tenant

from pharos.access.models import Project, ProjectGrant, ProjectMember
from pharos.access.projects import ORDER, Source, Tier, require, tiers_of, tiers_on, visible_projects
from pharos.identity.models import Department, Group, GroupMember, Membership, User
from pharos.identity.principal import Principal, operator
from pharos.infra.db import Database
from pharos.infra.errors import NotAllowed, NotFound
from pharos.infra.ids import ProjectId, UserId, new_id

NUMBERS = {"use": 1, "edit": 2, "full": 3}
Verdict = tuple[int | None, Source | None]


async def verdict(db: Database, principal: Principal, project_id: ProjectId) -> Verdict:
    """Tier and source, asked in the three ways there are; they must agree."""
    tiers, everybody = tiers_of(principal), tiers_on(project_id)
    async with db.transaction(principal.tenant_id) as session:
        row = (await session.execute(select(tiers).where(tiers.c.id == project_id))).one()
        seen = (await session.execute(visible_projects(principal).where(Project.id == project_id))).first()
        other = (await session.execute(select(everybody).where(everybody.c.user_id == principal.user_id))).first()
    assert (row.tier is not None) == (seen is not None)
    if principal.kind == "person":
        assert other is not None
        assert (other.tier, other.source) == (row.tier, row.source)
    return row.tier, row.source


@dataclass(frozen=True)
class Given:
    """Gives tiers on projects of one tenant."""

    db: Database
    tenant: MadeTenant

    async def __call__(
        self, project_id: ProjectId, kind: str, grantee_id: UUID | None, tier: Tier, *, ended: bool = False
    ) -> None:
        grant = ProjectGrant(
            tenant_id=self.tenant.id,
            project_id=project_id,
            grantee_kind=kind,
            grantee_id=grantee_id,
            tier=tier,
            expires_at=datetime.now(UTC) - timedelta(seconds=1) if ended else None,
        )
        async with self.db.transaction(self.tenant.id) as session:
            session.add(grant)


@pytest.fixture
def give(db: Database, tenant: MadeTenant) -> Given:
    return Given(db, tenant)


@pytest.fixture
async def private(db: Database, tenant: MadeTenant) -> ProjectId:
    return await make_project(db, replace(tenant.admin, user_id=None), is_private=True)


@pytest.mark.contract("AC-01")
@pytest.mark.parametrize("role", ["admin", "engineer", "superadmin"])
async def test_a_platform_role_has_all_of_every_project(
    db: Database, tenant: MadeTenant, private: ProjectId, role: str
) -> None:
    if role == "superadmin":
        person = tenant.admin
    else:
        person = await make_person(db, tenant.id, platform_role=role)  # type: ignore[arg-type]  # parametrized
    assert await verdict(db, person, private) == (3, "platform")
    assert await verdict(db, operator(tenant.id), private) == (3, "platform")


@pytest.mark.contract("AC-02")
@pytest.mark.contract("AC-03")
async def test_the_decision_about_a_ceo_who_owns_or_was_granted_a_project(
    db: Database, tenant: MadeTenant, private: ProjectId, give: Given
) -> None:
    assert ORDER == ("platform", "owner", "ceo", "direct", "group", "department", "public")
    ceo = await make_person(db, tenant.id, org_position="ceo")
    own = await make_project(db, ceo, is_private=True)
    await give(private, "user", ceo.user_id, "full")
    assert await verdict(db, ceo, own) == (3, "owner")
    assert await verdict(db, ceo, private) == (1, "ceo")


@pytest.mark.contract("AC-04")
async def test_of_several_grants_the_most_specific_counts_and_in_one_kind_the_highest(
    db: Database, tenant: MadeTenant, private: ProjectId, give: Given
) -> None:
    department = await make_department(db, tenant.id)
    person = await make_person(db, tenant.id, department_id=department)
    weak = await make_group(db, person, tenant_id=tenant.id)
    strong = await make_group(db, person, tenant_id=tenant.id)
    assert await verdict(db, person, private) == (None, None)
    await give(private, "department", department, "full")
    assert await verdict(db, person, private) == (3, "department")
    await give(private, "group", weak, "use")
    assert await verdict(db, person, private) == (1, "group")
    await give(private, "group", strong, "edit")
    assert await verdict(db, person, private) == (2, "group")
    await give(private, "user", person.user_id, "use")
    assert await verdict(db, person, private) == (1, "direct")
    async with db.transaction(tenant.id) as session:
        session.add(ProjectMember(tenant_id=tenant.id, project_id=private, user_id=person.user_id, tier="full"))
    assert await verdict(db, person, private) == (3, "direct")


@pytest.mark.contract("AC-05")
async def test_an_open_project_gives_its_baseline_and_never_lowers_a_grant(
    db: Database, tenant: MadeTenant, give: Given
) -> None:
    person = await make_person(db, tenant.id)
    opened = await make_project(db, tenant.admin)
    generous = await make_project(db, tenant.admin, baseline_tier="edit")
    assert await verdict(db, person, opened) == (1, "public")
    assert await verdict(db, person, generous) == (2, "public")
    await give(opened, "user", person.user_id, "edit")
    assert await verdict(db, person, opened) == (2, "direct")


@pytest.mark.contract("AC-04")
@pytest.mark.parametrize("kind", ["user", "group", "department"])
async def test_an_expired_grant_does_not_count(
    db: Database, tenant: MadeTenant, private: ProjectId, kind: str, give: Given
) -> None:
    department = await make_department(db, tenant.id)
    person = await make_person(db, tenant.id, department_id=department)
    group = await make_group(db, person, tenant_id=tenant.id)
    grantee = {"user": person.user_id, "group": group, "department": department}[kind]
    await give(private, kind, grantee, "full", ended=True)
    assert await verdict(db, person, private) == (None, None)


async def test_a_guest_uses_one_project_and_a_program_without_a_person_the_open_ones(
    db: Database, tenant: MadeTenant, private: ProjectId
) -> None:
    opened = await make_project(db, tenant.admin)
    guest = Principal(tenant.id, None, "guest", kind="guest", guest_project_id=private, guest_share_id=new_id())
    program = Principal(tenant.id, None, "key:ci", kind="program", scopes=frozenset())
    assert await verdict(db, guest, private) == (1, "direct")
    assert await verdict(db, guest, opened) == (None, None)
    assert await verdict(db, program, private) == (None, None)
    assert await verdict(db, program, opened) == (1, "public")
    async with db.transaction(tenant.id) as session:
        with pytest.raises(NotFound):
            await require(session, guest, opened, "use")
        with pytest.raises(NotAllowed):
            await require(session, guest, private, "edit")


async def test_a_program_has_no_platform_role_whoever_it_acts_for(
    db: Database, tenant: MadeTenant, private: ProjectId
) -> None:
    program = replace(tenant.admin, kind="program", platform_role="none", scopes=frozenset({"ask"}))
    tiers = tiers_of(program)
    async with db.transaction(tenant.id) as session:
        row = (await session.execute(select(tiers.c.tier).where(tiers.c.id == private))).scalar_one()
    assert row is None


@pytest.mark.contract("AC-06")
async def test_no_access_is_refused_and_another_tenants_project_is_not_there(
    db: Database, tenant: MadeTenant, private: ProjectId
) -> None:
    person, foreign = await make_person(db, tenant.id), (await make_tenant(db)).admin
    async with db.transaction(tenant.id) as session:
        with pytest.raises(NotAllowed) as refusal:
            await require(session, person, private, "use")
    assert refusal.value.code == "no_access"
    async with db.transaction(foreign.tenant_id) as session:
        for project_id in (private, ProjectId(new_id())):
            with pytest.raises(NotFound):
                await require(session, foreign, project_id, "use")


# ---- Whole organisations at random, and the ladder said again in plain Python ----


@dataclass
class Organisation:
    """Everything that decides about access, as rows and as what a reader can follow."""

    people: list[Principal] = field(default_factory=list)
    projects: list[Project] = field(default_factory=list)
    groups: dict[UUID, set[UUID]] = field(default_factory=dict)
    grants: list[ProjectGrant] = field(default_factory=list)
    members: list[ProjectMember] = field(default_factory=list)


def expected(world: Organisation, person: Principal, project: Project) -> Verdict:
    """The ladder as its readers tell it."""
    if person.platform_role != "none":
        return (1 if project.is_handbook else 3), "platform"  # nobody but the product itself edits the handbook
    if project.owner_id == person.user_id:
        return 3, "owner"
    if person.org_position == "ceo":
        return 1, "ceo"
    now = datetime.now(UTC)
    live = [g for g in world.grants if g.project_id == project.id and (g.expires_at is None or g.expires_at > now)]
    direct = [g.tier for g in live if g.grantee_kind == "user" and g.grantee_id == person.user_id]
    direct += [m.tier for m in world.members if m.project_id == project.id and m.user_id == person.user_id]
    mine = {group for group, members in world.groups.items() if person.user_id in members}
    grouped = [g.tier for g in live if g.grantee_kind == "group" and g.grantee_id in mine]
    departmental = [g.tier for g in live if g.grantee_kind == "department" and g.grantee_id == person.department_id]
    kinds: list[tuple[Source, list[str]]] = [("direct", direct), ("group", grouped), ("department", departmental)]
    for source, tiers in kinds:
        if tiers:
            return max(NUMBERS[tier] for tier in tiers), source
    if project.is_handbook:
        return 1, "public"
    return (None, None) if project.is_private else (NUMBERS[project.baseline_tier], "public")


def give_at_random(world: Organisation, dice: random.Random, groups: list[UUID], departments: list[UUID]) -> None:
    key = {"tenant_id": world.people[0].tenant_id}
    ids = [person.user_id for person in world.people]
    grantees: dict[str, list[UUID | None]] = {
        "user": [*ids],
        "group": [*groups],
        "department": [*departments],
    }
    ends = [None, datetime.now(UTC) - timedelta(minutes=1), datetime.now(UTC) + timedelta(hours=1)]
    for project in world.projects:
        for kind, several in grantees.items():
            for grantee in dice.sample(several, k=dice.randint(0, 2)):
                world.grants.append(
                    ProjectGrant(
                        **key,
                        id=new_id(),
                        project_id=project.id,
                        grantee_kind=kind,
                        grantee_id=grantee,
                        tier=dice.choice(list(NUMBERS)),
                        expires_at=dice.choice(ends),
                    )
                )
        for one in dice.sample(ids, k=dice.randint(0, 1)):
            world.members.append(
                ProjectMember(**key, project_id=project.id, user_id=one, tier=dice.choice(list(NUMBERS)))
            )


async def random_organisation(db: Database, tenant: MadeTenant, dice: random.Random) -> Organisation:
    world, key = Organisation(people=[tenant.admin]), {"tenant_id": tenant.id}
    departments = [Department(**key, id=new_id(), name=f"D{n}") for n in range(3)]
    roles = ["none"] * 12 + ["admin", "engineer"]
    places = []
    for number, role in enumerate(roles):
        user = User(id=new_id(), email=f"{secrets.token_hex(6)}@example.org", name="P")
        position = "ceo" if number == 0 else dice.choice(["member", "manager"])
        department = None if position == "ceo" else dice.choice([None, *(one.id for one in departments)])
        place = {"platform_role": role, "org_position": position, "department_id": department}
        world.people.append(Principal(tenant.id, UserId(user.id), user.email, **place))  # type: ignore[arg-type]
        places.append((user, Membership(**key, user_id=user.id, **place)))
    ids = [person.user_id for person in world.people]
    groups = [Group(**key, id=new_id(), name=f"G{n}") for n in range(4)]
    world.groups = {group.id: {one for one in ids if one and dice.random() < 0.3} for group in groups}
    for number in range(12):
        owner, baseline = dice.choice([None, *ids]), dice.choice(["use", "edit", "full"])
        world.projects.append(
            Project(
                **key,
                id=new_id(),
                name=f"P{number}",
                owner_id=owner,
                is_private=dice.random() < 0.6,
                baseline_tier=baseline,
                is_handbook=number == 0,
            )
        )
    give_at_random(world, dice, [one.id for one in groups], [one.id for one in departments])
    rows: list[list[object]] = [
        [*departments, *groups, *(user for user, _ in places)],
        [place for _, place in places],
        [*world.projects],
    ]
    rows.append([GroupMember(**key, group_id=g, user_id=one) for g, members in world.groups.items() for one in members])
    batches: list[list[object]] = [*rows, [*world.grants], [*world.members]]
    async with db.transaction(tenant.id) as session:
        for batch in batches:
            session.add_all(batch)
            await session.flush()
    return world


@pytest.mark.contract("AC-04")
@pytest.mark.contract("AC-08")
@pytest.mark.parametrize("seed", [1, random.SystemRandom().randrange(10**9)], ids=["1", "random"])
async def test_the_database_climbs_the_ladder_as_its_description_says(
    db: Database, tenant: MadeTenant, seed: int
) -> None:
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    world = await random_organisation(db, tenant, random.Random(seed))
    async with db.transaction(tenant.id) as session:
        for person in world.people:
            wanted = {project.id: expected(world, person, project) for project in world.projects}
            tiers = tiers_of(person)
            rows = (await session.execute(select(tiers.c.id, tiers.c.tier, tiers.c.source))).all()
            assert {row.id: (row.tier, row.source) for row in rows} == wanted, (seed, person)
            visible = set((await session.execute(visible_projects(person))).scalars())
            assert visible == {key for key, (tier, _) in wanted.items() if tier is not None}, (seed, person)
        for project in world.projects:
            everybody = tiers_on(ProjectId(project.id))
            rows = (await session.execute(select(everybody.c.user_id, everybody.c.tier, everybody.c.source))).all()
            found = {row.user_id: (row.tier, row.source) for row in rows}
            assert found == {person.user_id: expected(world, person, project) for person in world.people}, seed

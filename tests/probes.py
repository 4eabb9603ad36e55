"""Requests that ask for what is not theirs, made from the OpenAPI document: every route with every kind of id.

A probe puts an id into one place of a route (a parameter of its path, or a UUID of its body) and its own, valid ids
into all others. Three ids of each kind are tried: another tenant's, a deleted one and one that never was. The three
answers must be the same, nothing of the other tenant may be in any of them, and its rows must be as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text
from tests.make import MadeTenant, make_person

from pharos.access.models import Project, ProjectGrant, ShareRequest
from pharos.chat.models import Conversation, Message, TurnRow
from pharos.identity.models import (
    ApiKey,
    AuditEntry,
    Department,
    Group,
    OneTimeToken,
    SecurityEvent,
    SignInSession,
)
from pharos.infra.db import Database, Table
from pharos.infra.ids import TenantId, new_id
from pharos.infra.models import Mail
from pharos.library.models import Document
from pharos.providers.models import Provider
from pharos.runtime import Runtime
from pharos.tables import metadata

CANARY = "Zanzibar-canary"

OWN_TO_EACH = re.compile(r'"requestId":"[^"]*"|"(latency_?|retryAfter)ms":[\d.]+', re.IGNORECASE)
"""What no two answers have in common, whatever was asked."""

Ids = dict[str, UUID]


@dataclass(frozen=True)
class Probe:
    """One place of one route, and the kind of id to put there."""

    method: str
    path: str
    place: str
    kind: str


@dataclass
class Findings:
    """What was found: `leaks` hold the other tenant's rows, `differences` tell that they exist."""

    probes: int = 0
    leaks: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        return self.leaks + self.differences


async def make_everything(db: Database, tenant: MadeTenant, *, mark: str) -> Ids:
    """A row of every kind that has an id of its own, with `mark` in whatever people would read of it."""
    person = await make_person(db, tenant.id)
    assert person.user_id is not None
    ids: Ids = {"user": person.user_id}
    for kind, row in _rows(tenant.id, person.user_id, mark):
        async with db.transaction(tenant.id) as session:
            session.add(row)
        ids[kind] = row.id  # type: ignore[attr-defined]
    return ids


def _rows(tenant_id: TenantId, user_id: UUID, mark: str) -> Iterator[tuple[str, Table]]:
    key: dict[str, Any] = {"tenant_id": tenant_id}
    later = text("now() + interval '1 day'")
    project = Project(**key, id=new_id(), name=f"{mark} {new_id().hex}", owner_id=user_id, instructions=mark)
    conversation = Conversation(**key, id=new_id(), project_id=project.id, user_id=user_id, title=mark)
    yield "project", project
    yield "department", Department(**key, id=new_id(), name=f"{mark} {new_id().hex}")
    yield "group", Group(**key, id=new_id(), name=f"{mark} {new_id().hex}")
    document = {"name": f"{mark}.txt", "sha256": new_id().hex * 2, "size_bytes": 1, "media_type": "text/plain"}
    yield "document", Document(**key, id=new_id(), project_id=project.id, status="failed", reason=mark, **document)
    yield "conversation", conversation
    message = Message(**key, id=new_id(), conversation_id=conversation.id, role="user", body=mark)
    yield "message", message
    ended = {"state": "failed", "owner": mark}
    yield "turn", TurnRow(**key, id=new_id(), conversation_id=conversation.id, question_id=message.id, **ended)
    grant = {"grantee_kind": "user", "grantee_id": user_id, "tier": "use"}
    yield "grant", ProjectGrant(**key, id=new_id(), project_id=project.id, granted_by=mark, **grant)
    asked = {"conversation_id": conversation.id, "requested_by": user_id, "message": mark}
    yield "share request", ShareRequest(**key, id=new_id(), project_id=project.id, **asked)
    api_key = {"name": mark, "prefix": mark[:10], "key_hash": new_id().hex, "scopes": ["read"], "created_by": mark}
    yield "api key", ApiKey(**key, id=new_id(), **api_key)
    yield "session", SignInSession(**key, id=new_id(), user_id=user_id, agent=mark, expires_at=later)
    token = {"purpose": "invitation", "email": f"{mark}@example.org", "token_hash": new_id().hex, "expires_at": later}
    yield "invitation", OneTimeToken(**key, id=new_id(), **token)
    yield "mail", Mail(**key, id=new_id(), recipient=f"{mark}@example.org", subject=mark)
    asked_at = {"kind": "local", "base_url": f"https://{mark}.invalid", "models": [mark]}
    yield "provider", Provider(**key, id=new_id(), name=f"{mark}-{new_id().hex}", **asked_at)
    yield "audit entry", AuditEntry(**key, id=new_id(), actor=mark, action="test.made", subject=mark)
    yield "security event", SecurityEvent(**key, id=new_id(), event_type="test_made", severity="low", subject=mark)


async def delete_everything(runtime: Runtime, tenant: MadeTenant, ids: Ids) -> None:
    """Remove what `make_everything` made; logs only grow, so their rows stay."""
    tables = (
        "mails",
        "providers",
        "one_time_tokens",
        "sessions",
        "api_keys",
        "projects",
        "groups",
        "departments",
        "memberships",
    )
    async with runtime.db.transaction(tenant.id) as session:
        for table in tables:
            column = "user_id" if table == "memberships" else "id"
            await session.execute(text(f"delete from {table} where {column} = any(:ids)"), {"ids": list(ids.values())})


def list_probes(openapi: Mapping[str, Any], kinds: list[str]) -> list[Probe]:
    """Every place for a UUID in every route, with every kind of id."""
    return [
        Probe(method, path, place, kind)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
        for place in _places(openapi, operation)
        for kind in kinds
    ]


def _places(openapi: Mapping[str, Any], operation: Mapping[str, Any]) -> list[str]:
    # A cursor is a position in a list, by its value; nothing is looked up by it.
    cursors = {"before", "after"}
    listed = [p for p in operation.get("parameters", []) if p["name"] not in cursors]
    parameters = [p["name"] for p in listed if _is_uuid(p["schema"])]
    properties = _body_schema(openapi, operation).get("properties", {})
    return parameters + [f"body.{name}" for name, schema in properties.items() if _is_uuid(schema)]


def _is_uuid(schema: Mapping[str, Any]) -> bool:
    inner = [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
    return schema.get("format") == "uuid" or any(_is_uuid(each) for each in inner)


def _body_schema(openapi: Mapping[str, Any], operation: Mapping[str, Any]) -> Mapping[str, Any]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return _resolved(openapi, content.get("schema", {}))


def _resolved(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        resolved: Mapping[str, Any] = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return resolved
    return schema


def _example(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    schema = _resolved(openapi, schema)
    if "enum" in schema or "const" in schema or "default" in schema:
        return schema.get("default", schema.get("const", schema.get("enum", [None])[0]))
    if "anyOf" in schema:
        return _example(openapi, schema["anyOf"][0])
    match schema.get("type"):
        case "object":
            required = schema.get("required", [])
            return {name: _example(openapi, schema["properties"][name]) for name in required}
        case "array":
            return []
        case "boolean":
            return False
        case "integer" | "number":
            return schema.get("minimum", 1)
    return "x" * max(schema.get("minLength", 0), 3)


async def run_probes(
    runtime: Runtime,
    client: httpx.AsyncClient,
    openapi: Mapping[str, Any],
    *,
    own: Ids,
    foreign: Ids,
    deleted: Ids,
    probes: list[Probe],
) -> Findings:
    """Send each probe three times as the client's principal and compare."""
    findings = Findings()
    for probe in probes:
        answers = []
        await runtime.limits.reset()  # they are not what is probed here: three invitations an hour are
        for ids in (foreign, deleted, {probe.kind: new_id()}):
            answers.append(await _send(client, openapi, probe, own, ids[probe.kind]))
            findings.probes += 1
        for status, body in answers:
            if CANARY in body:
                findings.leaks.append(f"{probe}: {status} {body[:200]}")
        if len(set(answers)) > 1:
            findings.differences.append(f"{probe}: " + " | ".join(f"{status} {body[:120]}" for status, body in answers))
    return findings


async def _send(
    client: httpx.AsyncClient, openapi: Mapping[str, Any], probe: Probe, own: Ids, probed: UUID
) -> tuple[int, str]:
    operation = openapi["paths"][probe.path][probe.method]
    path = re.sub(r"{(\w+)}", lambda match: str(probed if match[1] == probe.place else _own(own, match[1])), probe.path)
    query = {
        p["name"]: str(probed)
        for p in operation.get("parameters", [])
        if p["in"] == "query" and p["name"] == probe.place
    }
    content = operation.get("requestBody", {}).get("content", {})
    body: dict[str, Any] = {}
    if "application/json" in content:
        body["json"] = _body(openapi, operation, probe, own, probed)
    elif content:
        body["files"] = {"file": ("note.txt", f"A note {probed}".encode())}
    answer = await client.request(probe.method.upper(), path, params=query, **body)
    said = answer.text.replace(str(probed), "ID").replace(probed.hex, "ID")
    return answer.status_code, re.sub(
        r'"requestId":"[^"]*"|"(latency_?|retryAfter)ms":[\d.]+', "", said, flags=re.IGNORECASE
    )


def _body(
    openapi: Mapping[str, Any], operation: Mapping[str, Any], probe: Probe, own: Ids, probed: UUID
) -> dict[str, Any]:
    schema = _body_schema(openapi, operation)
    properties = schema.get("properties", {})
    body: dict[str, Any] = _example(openapi, schema)
    for name, each in properties.items():
        if _is_uuid(each) and (name in body or probe.place == f"body.{name}"):
            value = str(probed if probe.place == f"body.{name}" else _own(own, name))
            body[name] = [value] if "items" in str(each) else value
    return body


def _own(own: Ids, name: str) -> UUID | str:
    """One's own id for a place, by its name: `project_id`, `granteeId`; the key and request of a path by theirs."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    other_names = {"request": "share request", "key": "api key", "grantee": "user"}
    kind = words.removesuffix("_ids").removesuffix("_id")
    return own.get(other_names.get(kind, kind), "x")


async def fingerprint(db: Database, tenant_id: TenantId) -> dict[str, str]:
    """A digest of every row of a tenant, by table."""
    digests = {}
    async with db.transaction(tenant_id) as session:
        for table in (table.name for table in metadata.sorted_tables if "tenant_id" in table.columns):
            rows = text(f"select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) from {table} t")
            digests[table] = str((await session.execute(rows)).scalar_one())
    return digests

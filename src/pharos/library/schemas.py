"""Projects and documents on the wire: camelCase out, both spellings in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.access.projects import Source, Tier


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class Project(Body):
    """`access_tier` is what the caller may do there, `access_source` why."""

    id: UUID
    name: str
    is_private: bool
    is_handbook: bool
    is_hidden: bool
    access_tier: Annotated[Tier, Field(validation_alias="tier")]
    access_source: Annotated[Source, Field(validation_alias="source")]
    documents: int
    created_at: datetime


class Projects(Body):
    projects: list[Project]


class NewProject(Body):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    is_private: bool = False


class ProjectSettings(Body):
    """`model`: `provider/model` or a bare model; null is the organisation's default."""

    instructions: str
    model: str | None
    memories: list[str]


class NewProjectSettings(Body):
    """What is left out stays; an empty model is the organisation's default, and the memories are replaced together."""

    instructions: Annotated[str | None, Field(max_length=20_000)] = None
    model: Annotated[str | None, Field(max_length=1000)] = None
    memories: Annotated[list[str] | None, Field(max_length=1000)] = None


class Document(Body):
    """`reason` says why it failed, `warning` what is missing of an indexed one, both for a person."""

    id: UUID
    project_id: UUID
    name: str
    status: Literal["pending", "processing", "indexed", "failed"]
    reason: str | None
    warning: str | None
    media_type: str
    size_bytes: int
    sha256: str
    pages: Annotated[int | None, Field(validation_alias="page_count")]
    passages: Annotated[int, Field(validation_alias="passage_count")]
    language: str | None
    created_at: datetime
    updated_at: datetime


class Documents(Body):
    documents: list[Document]


class DocumentText(Body):
    """The text that every span counts in; `page_starts` are the offsets where its pages begin."""

    text: Annotated[str, Field(validation_alias="body")]
    page_starts: list[int]


class IngestAnswer(BaseModel):
    """What the configured folders held. `ingested_chunks` counts the passages of the documents that are indexed by
    now; the queued ones follow, as `GET /documents/{id}` shows."""

    ingested_chunks: int
    added: int
    replaced: int
    unchanged: int
    refused: int
    documents: list[UUID]

"""Column types of pgvector: `halfvec(n)` and `sparsevec(n)`, bound as text."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType


class HalfVector(UserDefinedType[str]):
    """`[0.1,0.2]` with a fixed number of dimensions, two bytes each."""

    cache_ok = True

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def get_col_spec(self, **_: object) -> str:
        return f"halfvec({self.dimensions})"


class SparseVector(UserDefinedType[str]):
    """`{index:value,…}/dimensions`, indices from 1 in ascending order."""

    cache_ok = True

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def get_col_spec(self, **_: object) -> str:
        return f"sparsevec({self.dimensions})"


# Lets reflection (the migration comparison) name the columns instead of warning about them.
ischema_names["halfvec"] = HalfVector
ischema_names["sparsevec"] = SparseVector

"""What the parts of an installation hold in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil

PARTS = ("web", "worker", "embedder")
MAX_BYTES = 900_000_000


def memory_figures(pids: Mapping[str, int]) -> dict[str, Any]:
    """Megabytes of each part's process with all that it started, their sum, and whether it keeps the bound.

    The figure is the proportional set size (PSS): a page shared by several processes is counted once in all.
    """
    used = {part: _bytes_of(psutil.Process(pids[part])) for part in PARTS}
    total = sum(used.values())
    return {
        "memory_mb": {part: round(number / 1e6, 1) for part, number in used.items()},
        "memory_sum_mb": round(total / 1e6, 1),
        "memory_ok": total < MAX_BYTES,
    }


def _bytes_of(top: psutil.Process) -> int:
    used = 0
    for process in (top, *top.children(recursive=True)):
        try:
            used += int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue  # a child that read one document and ended
    return used

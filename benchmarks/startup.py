"""How long `pharos up --detach` takes on a machine where Pharos is installed and has run before.

The first start, which makes the database, is told but has no bound. Then the installation is stopped and started again
three times; the time of a start runs from the command to its exit, which comes when every part answers. The bound is
on the median.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.scratch import scratch_installation

STARTS = 3
MAX_SECONDS = 5.0


def main(eval_dir: Path) -> dict[str, Any]:
    """Needs no evaluation set."""
    with scratch_installation() as scratch:
        seconds = []
        for _ in range(STARTS):
            scratch.run("down")
            seconds.append(scratch.run("up", "--detach")[0])
    median = statistics.median(seconds)
    return {
        "seconds": [round(each, 2) for each in seconds],
        "median_seconds": round(median, 2),
        "ready_ok": median <= MAX_SECONDS,
    }

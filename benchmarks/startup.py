"""How long Pharos takes to be ready on a machine where it is installed and has run before.

The first start, which makes the database, has no bound. Then the installation is stopped and started again three times
each way: in the foreground, as `make up` runs it, from the command to the line that says it is ready (the bound, on the
median); and detached, from the command to its exit, which starts the command line twice.
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
        scratch.run("down")
        foreground = [scratch.seconds_until_ready() for _ in range(STARTS)]
        detached = []
        for _ in range(STARTS):
            detached.append(scratch.run("up", "--detach")[0])
            scratch.run("down")
    median = statistics.median(foreground)
    return {
        "foreground_seconds": [round(each, 2) for each in foreground],
        "detached_seconds": [round(each, 2) for each in detached],
        "median_foreground_seconds": round(median, 2),
        "ready_ok": median <= MAX_SECONDS,
    }

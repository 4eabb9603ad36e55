"""`make bench EVAL_DIR=…`: run every benchmark and write bench-results/bench.json.

A benchmark is a module of this folder with `main(eval_dir: Path) -> dict`: figures by name, and for each bound a key
that ends in `_ok`. What it measures on may be absent: it raises FileNotFoundError, or names under `not_run` the sets of
several that are. Both are reported as not run, never as ok.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "bench-results" / "bench.json"


def find_benchmarks(folder: Path = FOLDER) -> list[str]:
    """Module names, in alphabetical order, of the files that define `main(`."""
    return [file.stem for file in sorted(folder.glob("*.py")) if _is_benchmark(file)]


def _is_benchmark(file: Path) -> bool:
    return file.name != Path(__file__).name and "\ndef main(eval_dir" in file.read_text()


def run_one(name: str, eval_dir: Path) -> dict[str, Any]:
    """`{"state": "ok" | "bound missed" | "not run", "missed": …, "not_run": …, "seconds": …, "figures": …}`.

    `not run` with figures says that some of it was not run; `not_run` names it.

    The load is what other work kept the machine busy with: on two cores, times taken above 2 say little.
    """
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        figures: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").main(eval_dir)
    except FileNotFoundError as missing:
        return {"state": "not run", "reason": str(missing)}
    missed = [key for key, value in figures.items() if key.endswith("_ok") and value is False]
    not_run = figures.pop("not_run", [])
    return {
        "state": "bound missed" if missed else "not run" if not_run else "ok",
        "missed": missed,
        "not_run": not_run,
        "seconds": round(time.monotonic() - started, 1),
        "load_before": round(load, 1),
        "figures": figures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("eval_dir", type=Path, help="folder that holds the evaluation sets")
    parser.add_argument("names", nargs="*", help="only these benchmarks")
    arguments = parser.parse_args()
    # A benchmark that is stopped must still remove its installation.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    results: dict[str, Any] = {}
    for name in arguments.names or find_benchmarks():
        print(f"{name} …", flush=True)
        results[name] = run_one(name, arguments.eval_dir.absolute())
        print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
    machine = {"system": platform.platform(), "python": platform.python_version(), "processor": platform.machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "benchmarks": results}, indent=1
        )
    )
    for name, result in results.items():
        print(f"{name}: {result['state']} {', '.join(result.get('missed') or result.get('not_run') or [])}".rstrip())
    print(f"Written to {RESULTS.relative_to(FOLDER.parent)}")
    return 1 if any(result["state"] == "bound missed" for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

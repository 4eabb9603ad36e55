"""The benchmark runner tells what ran, what missed its bound, and what could not run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import run


def planted(name: str, main: Any) -> None:
    module = ModuleType(f"benchmarks.{name}")
    module.__dict__["main"] = main
    sys.modules[module.__name__] = module


def test_a_missed_bound_is_told_apart_from_a_kept_one(tmp_path: Path) -> None:
    planted("planted_good", lambda _: {"ratio": 0.8, "ratio_ok": True})
    planted("planted_bad", lambda _: {"ratio": 0.2, "ratio_ok": False})
    assert run.run_one("planted_good", tmp_path)["state"] == "ok"
    assert run.run_one("planted_bad", tmp_path)["missed"] == ["ratio_ok"]


def test_an_absent_set_is_not_run_and_never_passed(tmp_path: Path) -> None:
    def main(_: Path) -> dict[str, Any]:
        raise FileNotFoundError("xquad")

    planted("planted_absent", main)
    outcome = run.run_one("planted_absent", tmp_path)
    assert outcome == {"state": "not run", "reason": "xquad"}


def test_only_files_with_a_main_are_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("\ndef main(eval_dir):\n    return {}\n")
    (tmp_path / "shared.py").write_text("def helper(): ...\n")
    assert run.find_benchmarks(tmp_path) == ["one"]

"""The benchmark runner tells what ran, what missed its bound, and what could not run."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarks import install, memory, quality, run, safety


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


def test_a_benchmark_of_which_a_set_is_absent_is_not_run_and_names_it(tmp_path: Path) -> None:
    planted("planted_half", lambda _: {"scifact_ok": True, "not_run": ["xquad"]})
    planted("planted_half_bad", lambda _: {"scifact_ok": False, "not_run": ["xquad"]})
    planted("planted_whole", lambda _: {"scifact_ok": True, "not_run": []})
    outcome = run.run_one("planted_half", tmp_path)
    assert (outcome["state"], outcome["not_run"]) == ("not run", ["xquad"])
    assert run.run_one("planted_half_bad", tmp_path)["state"] == "bound missed"
    assert run.run_one("planted_whole", tmp_path)["state"] == "ok"


def test_the_quality_benchmark_names_the_sets_that_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scifact").mkdir()
    (tmp_path / "scifact" / "corpus.jsonl").touch()
    monkeypatch.setattr(quality, "scratch_installation", nullcontext)
    monkeypatch.setattr(quality, "_evaluate", lambda _scratch, folder: {f"{folder.name}_all_ok": True})
    outcome = run.run_one("quality", tmp_path)
    assert (outcome["state"], outcome["not_run"]) == ("not run", ["covidqa-long", "xquad"])


def test_an_answer_after_a_restore_counts_when_it_quotes_the_known_document_as_it_was_written() -> None:
    true = {"document": safety.KNOWN_NAME, "start": 4, "end": 18, "text": safety.KNOWN_TEXT[4:18]}
    assert safety.quotes_known([true])
    assert not safety.quotes_known([])
    assert not safety.quotes_known([{**true, "document": "another.txt"}])
    assert not safety.quotes_known([{**true, "start": 5}])


def test_the_safety_benchmark_is_not_run_without_its_set(tmp_path: Path) -> None:
    assert run.run_one("safety", tmp_path)["state"] == "not run"


def test_the_memory_of_parts_is_told_apart_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dict.fromkeys(memory.PARTS, os.getpid())
    figures = memory.memory_figures(ours)
    assert figures["memory_mb"].keys() == {"web", "worker", "embedder"}
    assert figures["memory_sum_mb"] == pytest.approx(sum(figures["memory_mb"].values()), abs=0.2)
    monkeypatch.setattr(memory, "MAX_BYTES", 1_000_000)
    assert memory.memory_figures(ours)["memory_ok"] is False


def test_an_install_is_measured_on_the_files_of_the_working_tree(tmp_path: Path) -> None:
    install.copy_tree(tmp_path / "tree")
    assert (tmp_path / "tree" / "Makefile").read_text() == (install.ROOT / "Makefile").read_text()
    assert not (tmp_path / "tree" / ".venv").exists()
    assert not (tmp_path / "tree" / ".git").exists()


def test_only_files_with_a_main_are_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("\ndef main(eval_dir):\n    return {}\n")
    (tmp_path / "shared.py").write_text("def helper(): ...\n")
    assert run.find_benchmarks(tmp_path) == ["one"]

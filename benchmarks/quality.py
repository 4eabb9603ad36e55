"""How well search finds what people marked as right: what `pharos eval` says of three sets.

Each set is indexed and asked in a scratch installation, through the command an operator would use. The figure is
nDCG@10. SciFact (5,183 English abstracts, 300 claims) is judged by documents, covidqa-long (92 papers, 505 questions)
by passages that hold the marked span, XQuAD (240 paragraphs in English, German and Chinese in one corpus) by
paragraphs, each question by its own language's alone. A set that is absent is named under `not_run`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.scratch import Scratch, scratch_installation

BOUNDS = {
    "scifact": {"all": 0.725},
    "covidqa-long": {"all": 0.62},
    "xquad": {"en": 0.95, "de": 0.90, "zh": 0.90},
}
"""The least nDCG@10 by set and language."""


def main(eval_dir: Path) -> dict[str, Any]:
    present = [name for name in BOUNDS if (eval_dir / name / "corpus.jsonl").is_file()]
    if not present:
        raise FileNotFoundError(f"{eval_dir} has none of {', '.join(BOUNDS)}")
    figures: dict[str, Any] = {"not_run": [name for name in BOUNDS if name not in present]}
    with scratch_installation() as scratch:
        for name in present:
            figures |= _evaluate(scratch, eval_dir / name)
    return figures


def _evaluate(scratch: Scratch, folder: Path) -> dict[str, Any]:
    seconds, told = scratch.run("eval", str(folder), "--json")
    report = json.loads(told)
    by_language = {"all": report, **report["per_lang"]}
    figures: dict[str, Any] = {
        f"{folder.name}_passages": report["passages"],
        f"{folder.name}_seconds": round(seconds, 1),
        f"{folder.name}_recall_at_20": report["recall_at_20"],
    }
    for language, bound in BOUNDS[folder.name].items():
        name = f"{folder.name}_{language}"
        figures[f"{name}_ndcg_at_10"] = by_language[language]["ndcg_at_10"]
        figures[f"{name}_ok"] = by_language[language]["ndcg_at_10"] >= bound
    return figures

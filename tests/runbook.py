"""Read the command blocks of a page and run them the way a reader would: top to bottom, in one directory.

A block is a fence whose first word is `sh`; its postcondition is the `expect` fence that follows it:

    ```sh id=ingest-folder
    pharos ingest papers --project Papers --wait
    ```
    ```expect
    /1 (document )?indexed/
    not: failed
    $ test -d papers
    ```

Words behind `sh`: `id=` (required), `exit=` (0 when not said), `seconds=` (60 when not said), `in=checkout` (runs in a
copy of the source tree instead of an empty directory). A line of `expect` is text that must appear in what the block
printed, or `/a pattern/`, or `not:` and text that must not appear, or `$` and a command that must succeed.
A page with the line `<!-- installation: fresh -->` gets a data directory of its own, not started.
A line `<!-- contract: DE-24; DE-16 = the port -->` names rows of the contract that the page proves, wholly or in part.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:(?<![\w./-])|(?<=\.venv/bin/))pharos(?P<words>(?: +[a-z][a-z-]*)+)")
INLINE = re.compile(r"`(pharos [^`\n]+)`")
FRESH = "<!-- installation: fresh -->"
CONTRACT = re.compile(r"^<!-- contract: (.+) -->$", re.MULTILINE)
KNOWN_WORDS = {"id", "exit", "seconds", "in"}
# Fences that are not run and say so by their language.
SHOWN_ONLY = {"text", "json", "ini", "python", "mermaid"}


class BadPage(Exception):
    """A page that cannot be run as it is; the message names the page and the place."""


@dataclass(frozen=True)
class Block:
    id: str
    script: str
    expect: tuple[str, ...]
    exit_code: int = 0
    seconds: int = 60
    in_checkout: bool = False


@dataclass(frozen=True)
class Page:
    name: str
    text: str
    blocks: tuple[Block, ...]

    @property
    def wants_fresh_installation(self) -> bool:
        return FRESH in self.text

    @property
    def rows(self) -> list[tuple[str, str | None]]:
        """The contract's rows it proves, each with the part it proves or None for the whole."""
        entries = [entry.strip() for line in CONTRACT.findall(self.text) for entry in line.split(";")]
        split = [entry.partition(" = ") for entry in entries]
        return [(row, part or None) for row, _, part in split]


def read_page(name: str, text: str) -> Page:
    """Raises BadPage for a block without id or postcondition, an id used twice, and a fence of unknown kind."""
    fences = [(match["info"].strip(), match["body"]) for match in FENCE.finditer(text)]
    blocks: list[Block] = []
    for position, (info, body) in enumerate(fences):
        kind, _, words = info.partition(" ")
        if kind == "sh":
            following = fences[position + 1] if position + 1 < len(fences) else ("", "")
            blocks.append(_read_block(name, words, body, following))
        elif kind == "expect":
            if position == 0 or not fences[position - 1][0].startswith("sh"):
                raise BadPage(f"{name}: an expect block follows no sh block")
        elif kind not in SHOWN_ONLY:
            raise BadPage(f"{name}: a block of kind {kind!r}; commands are `sh id=…`, output shown is `text`")
    ids = [block.id for block in blocks]
    if len(ids) != len(set(ids)):
        raise BadPage(f"{name}: a block id is used twice")
    return Page(name, text, tuple(blocks))


def _read_block(name: str, words: str, script: str, following: tuple[str, str]) -> Block:
    options = dict(word.partition("=")[::2] for word in words.split())
    if unknown := set(options) - KNOWN_WORDS:
        raise BadPage(f"{name}: a sh block says {sorted(unknown)}")
    if not options.get("id"):
        raise BadPage(f"{name}: a sh block has no id: {script.splitlines()[0]}")
    expect = tuple(line for line in following[1].splitlines() if line.strip()) if following[0] == "expect" else ()
    if not expect:
        raise BadPage(f"{name}: block {options['id']} has no postcondition")
    return Block(
        id=options["id"],
        script=script,
        expect=expect,
        exit_code=int(options.get("exit", 0)),
        seconds=int(options.get("seconds", 60)),
        in_checkout=options.get("in") == "checkout",
    )


def run_page(page: Page, *, directory: Path, environment: Mapping[str, str]) -> list[str]:
    """Run all blocks; the sentences of the first block that does not end as it says, or an empty list."""
    for block in page.blocks:
        where, around = directory, dict(environment)
        if block.in_checkout:
            where = directory / "pharos"
            copy_checkout(where)
            around["PYTHONPATH"] = str(where / "src")
        code, output = run_script(block.script, where=where, environment=around, seconds=block.seconds)
        faults = find_block_faults(block, code, output)
        for line in block.expect:
            if line.startswith("$ "):
                check_code, said = run_script(line[2:], where=where, environment=around, seconds=60)
                if check_code != 0:
                    faults.append(f"`{line}` ended with {check_code}: {said.strip()}")
        if faults:
            return [f"{page.name}, block {block.id}: {fault}\n--- printed:\n{output}" for fault in faults]
    return []


def copy_checkout(target: Path) -> None:
    """A source tree that looks freshly set up, for blocks that call make or write into the source.

    Its `.venv` borrows the programs of the real one and has stamps of its own, so that `make` finds nothing to install
    and can never point the real environment at the copy. The bytecode comes with the source, whose times it names.
    """
    if target.exists():
        return
    left_out = shutil.ignore_patterns("node_modules")
    for name in ("src", "docs", "scripts", "tests", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, target / name, ignore=left_out)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, target / file.name)
    stamps = target / ".venv" / ".stamps"
    stamps.mkdir(parents=True)
    (target / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (target / ".tools").symlink_to(ROOT / ".tools")  # else it would be brought again
    for file in target.rglob("*"):
        if not file.is_symlink() and file.relative_to(target).parts[0] not in {".venv", ".tools", "src"}:
            os.utime(file, (0, 0))
    for name in ("venv", "parts", "project", "bytecode", "dev", "models"):
        (stamps / name).touch()


def find_block_faults(block: Block, code: int, output: str) -> list[str]:
    """What the exit code and the output say against the postcondition; check commands are not run here."""
    faults = [] if code == block.exit_code else [f"ended with {code} instead of {block.exit_code}"]
    for line in block.expect:
        if line.startswith("$ "):
            continue
        if line.startswith("not:"):
            if line[4:].strip() in output:
                faults.append(f"printed {line[4:].strip()!r}")
        elif len(line) > 2 and line.startswith("/") and line.endswith("/"):
            if not re.search(line[1:-1], output, re.MULTILINE):
                faults.append(f"printed nothing like {line}")
        elif line.strip() not in output:
            faults.append(f"did not print {line.strip()!r}")
    return faults


def run_script(script: str, *, where: Path, environment: Mapping[str, str], seconds: int) -> tuple[int, str]:
    """Exit code and everything printed. A script that takes too long is ended with all it started: code 124."""
    process = subprocess.Popen(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=where,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False)
            output, _ = process.communicate()
            return 128 + signal.SIGKILL, f"{output}\n(ended after {seconds} s)"
    return process.returncode, output


def commands_run(page: Page, known: Iterable[str]) -> set[str]:
    """The commands its blocks run, by their full names. Raises BadPage for one that does not exist."""
    scripts = [block.script for block in page.blocks]
    scripts += [line[2:] for block in page.blocks for line in block.expect if line.startswith("$ ")]
    return {command for script in scripts for command in resolve(page.name, script, set(known))}


def commands_named(page: Page, known: Iterable[str]) -> set[str]:
    """The commands its prose names between backticks. Raises BadPage for one that does not exist."""
    prose = FENCE.sub("", page.text)
    return {
        command for inline in INLINE.findall(prose) for command in resolve(page.name, inline, set(known), group=True)
    }


def resolve(where: str, text: str, known: set[str], *, group: bool = False) -> list[str]:
    """Each `pharos …` of the text as the longest known command; with `group`, the start of one counts too."""
    found = []
    for match in COMMAND.finditer(text):
        words = match["words"].split()
        names = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
        name = next((name for name in names if name in known), None)
        if name is None and group:
            name = next((name for name in names if any(other.startswith(f"{name} ") for other in known)), None)
        if name is None:
            raise BadPage(f"{where}: there is no command `pharos {' '.join(words)}`")
        found.append(name)
    return found

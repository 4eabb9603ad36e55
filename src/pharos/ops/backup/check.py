"""Is a backup's folder what was made? Every check that needs no server, cheapest first; nothing is changed by it.

The signature is looked at before anything is believed: it covers the manifest, the manifest names every other file by
its hash. What comes after it notices a backup that was signed although something was wrong with it.

Each failure has its own code, which says what is wrong:

    no_manifest  no_signature  bad_signature  unknown_signer  bad_manifest  newer_backup  renamed_backup  newer_schema
    missing_file  foreign_file  wrong_size  damaged_file  misnamed_blob  wrong_blobs
    unreadable_dump  missing_table  bad_identity_file  escrow_not_opened  escrow_format  wrong_escrow
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from pharos.infra import migrate
from pharos.infra.errors import Conflict, NotFound, PharosError
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import Escrow, drill_identity_file, open_escrow
from pharos.ops.backup.manifest import (
    BLOBS_FOLDER,
    DATABASE_FOLDER,
    ESCROW,
    MANIFEST,
    SIGNATURE,
    UNLISTED,
    FileState,
    Manifest,
    merkle_root,
    parse_manifest,
)
from pharos.ops.backup.signing import is_signed_by, known_keys
from pharos.ops.backup.store import NAME

CHUNK_BYTES = 1024 * 1024
NEEDED = (f"{DATABASE_FOLDER}/toc.dat", ESCROW)
"""Files without which nothing can be restored, whatever a manifest says."""
TABLE_DATA = re.compile(r"^\d+; \d+ \d+ TABLE DATA public (\S+) ", re.MULTILINE)
BLOB = re.compile(rf"{BLOBS_FOLDER}/([0-9a-f-]{{36}})/([0-9a-f]{{2}})/([0-9a-f]{{2}})/([0-9a-f]{{64}})")
NO_FILE = -1
OTHERS = "`pharos backup list` shows the others."

Progress = Callable[[int, int], None]
"""Told the bytes read so far and those to read."""


def check_backup(
    settings: Settings,
    folder: Path,
    *,
    signed_by: str | None = None,
    identity: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Check everything about a backup's folder; its manifest when nothing is wrong.

    `signed_by` is a public key that is trusted besides the known ones; `identity` opens the escrow where the drill
    identity of this machine is not the one. Raises the error of the first check that fails, see above for its code.
    """
    manifest = check_manifest(settings, folder, signed_by=signed_by)
    check_files(folder, manifest, progress=progress)
    check_blobs(manifest)
    check_dump(folder, manifest)
    check_escrow(settings, folder, manifest, identity=identity)
    return manifest


def check_uploads(settings: Settings, folder: Path, *, signed_by: str | None = None) -> Manifest:
    """Check the signature and the uploaded files alone: whoever reads no more needs no more."""
    manifest = check_manifest(settings, folder, signed_by=signed_by)
    check_files(folder, manifest, below=f"{BLOBS_FOLDER}/")
    check_blobs(manifest)
    return manifest


def check_manifest(settings: Settings, folder: Path, *, signed_by: str | None = None) -> Manifest:
    """Its signature, then what it says of itself: name, format and schema. Reads two small files."""
    content, signature = _read_signed(folder)
    trusted = known_keys(settings) | ({signed_by} if signed_by else set())
    if not any(is_signed_by(key, content, signature) for key in trusted):
        raise _not_trusted(folder, content, signature)
    manifest = parse_manifest(content, where=str(folder / MANIFEST))
    if NAME.fullmatch(folder.name) and manifest.name != folder.name:
        raise Conflict(
            f"{folder} holds the backup {manifest.name}: it was renamed or mixed up. Give it that name again if it is "
            f"the one you want, or take another. {OTHERS}",
            code="renamed_backup",
        )
    if not migrate.knows_revision(manifest.schema):
        raise Conflict(
            f"{manifest.name} has the schema {manifest.schema} of Pharos {manifest.version}; this version knows up to "
            f"{migrate.head_revision()}. Update Pharos to {manifest.version} or newer and try again.",
            code="newer_schema",
        )
    return manifest


def check_files(folder: Path, manifest: Manifest, *, below: str = "", progress: Progress | None = None) -> None:
    """Every file that the manifest names is there with its size and hash, and no other is; of those whose path begins
    with `below`."""
    found = {path: size for path, size in _sizes(folder).items() if path.startswith(below)}
    wanted = {path: state for path, state in manifest.files.items() if path.startswith(below)}
    needed = {path for path in NEEDED if path.startswith(below)}
    if missing := sorted((set(wanted) | needed) - set(found)):
        raise Conflict(
            f"{manifest.name} lacks {_first_of(missing)}: it was copied half or something was removed. Copy it again "
            f"from where it is whole, or take another backup. {OTHERS}",
            code="missing_file",
            files=missing[:20],
        )
    if links := sorted(path for path, size in found.items() if size == NO_FILE):
        raise Conflict(
            f"{manifest.name} holds {_first_of(links)}, which is no file of its own but a link or a device. Put the "
            f"file itself in its place, or take another backup. {OTHERS}",
            code="foreign_file",
            files=links[:20],
        )
    if foreign := sorted(set(found) - set(wanted) - set(UNLISTED)):
        raise Conflict(
            f"{manifest.name} holds {_first_of(foreign)}, which its manifest does not name. Move it out of the backup "
            "if you know what it is, and check again with `pharos backup verify`.",
            code="foreign_file",
            files=foreign[:20],
        )
    if changed := sorted(path for path, state in wanted.items() if found[path] != state.bytes):
        state = wanted[changed[0]]
        raise _damaged(manifest, "wrong_size", changed, f"is {found[changed[0]]} bytes long instead of {state.bytes}")
    _check_hashes(folder, manifest, wanted, progress or (lambda done, total: None))


def check_blobs(manifest: Manifest) -> None:
    """The blobs' names are their content, and together they are those that the snapshot named."""
    blobs = {path: state for path, state in manifest.files.items() if path.startswith(f"{BLOBS_FOLDER}/")}
    names = []
    for path, state in blobs.items():
        found = BLOB.fullmatch(path)
        if found is None or found[4] != state.sha256 or found[4][:4] != found[2] + found[3]:
            raise Conflict(
                f"{manifest.name}: the content of {path} is not what its name says. Take another backup. {OTHERS}",
                code="misnamed_blob",
            )
        names.append(f"{found[1]}/{found[4]}")
    size, wanted = sum(state.bytes for state in blobs.values()), manifest.blobs
    if (len(blobs), size, merkle_root(names)) != (wanted.count, wanted.bytes, wanted.merkle_root):
        raise Conflict(
            f"{manifest.name} holds {len(blobs)} uploaded files ({size} bytes); its database names {wanted.count} "
            f"({wanted.bytes} bytes) and not all of them are these. Take another backup. {OTHERS}",
            code="wrong_blobs",
        )


def check_dump(folder: Path, manifest: Manifest) -> None:
    """The table of contents of the dump can be read and names every table of the manifest."""
    program = reachable_binaries(os.geteuid(), os.getegid()) / "bin" / "pg_restore"
    done = subprocess.run(  # noqa: S603 - our own program
        [program, "--list", folder / DATABASE_FOLDER],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Conflict(
            f"The dump of {manifest.name} cannot be read ({reason[0]}). Take another backup. {OTHERS}",
            code="unreadable_dump",
        )
    there = {name.strip('"') for name in TABLE_DATA.findall(done.stdout)}
    if missing := sorted(set(manifest.tables) - there):
        raise Conflict(
            f"The dump of {manifest.name} lacks the table {_first_of(missing)}. Take another backup. {OTHERS}",
            code="missing_table",
            tables=missing,
        )


def check_escrow(settings: Settings, folder: Path, manifest: Manifest, *, identity: Path | None = None) -> Escrow:
    """The escrow opens and holds every key that the snapshot's secrets need."""
    escrow = open_escrow((folder / ESCROW).read_bytes(), identity or drill_identity_file(settings))
    held = {key.id for key in escrow.keys}
    if missing := [key for key in manifest.keys if key not in held]:
        raise Conflict(
            f"The escrow of {manifest.name} lacks the encryption key {_first_of(missing)}, so the secrets in it could "
            f"not be read. Take another backup. {OTHERS}",
            code="wrong_escrow",
            keys=missing,
        )
    if escrow.signed_by != manifest.signed_by:
        raise Conflict(
            f"The escrow of {manifest.name} belongs to another installation's backup. Take another backup. {OTHERS}",
            code="wrong_escrow",
        )
    return escrow


def _read_signed(folder: Path) -> tuple[bytes, bytes]:
    """The manifest's bytes and its signature."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"{folder} holds no {MANIFEST}, so it is no complete backup. `pharos backup list` shows those that are.",
            code="no_manifest",
        ) from error
    try:
        return content, (folder / SIGNATURE).read_bytes()
    except FileNotFoundError as error:
        raise Conflict(
            f"{folder} is not signed ({SIGNATURE} is missing): nobody can say that it is what was made. Copy it again "
            f"from where it is whole, or take another backup. {OTHERS}",
            code="no_signature",
        ) from error


def _not_trusted(folder: Path, content: bytes, signature: bytes) -> Conflict:
    """Two ways not to be signed by a known key: by another one, or not at all as it lies there now."""
    try:
        signer = str(json.loads(content)["signed_by"])
        if is_signed_by(signer, content, signature):
            return Conflict(
                f"{folder} was signed by a key that this installation does not know: {signer}. Compare it with the one "
                "kept with the offline identity, or with what `pharos backup show` prints where the backup was made; "
                f"if it is the same, add `--signed-by {signer}`.",
                code="unknown_signer",
                signed_by=signer,
            )
    except (ValueError, KeyError, TypeError, PharosError):
        pass  # too damaged to name who signed it
    return Conflict(
        f"The manifest of {folder} does not fit its signature: one of them is damaged or was changed. Copy the backup "
        f"again from where it is whole, or take another. {OTHERS}",
        code="bad_signature",
    )


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file by its path with slashes; `NO_FILE` for what is neither a plain file nor a folder."""
    found = {}
    for directory, folders, files in os.walk(folder):
        for name in [*files, *(one for one in folders if Path(directory, one).is_symlink())]:
            path = Path(directory, name)
            is_plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = path.stat().st_size if is_plain else NO_FILE
    return found


def _check_hashes(folder: Path, manifest: Manifest, wanted: Mapping[str, FileState], progress: Progress) -> None:
    done, total = 0, sum(state.bytes for state in wanted.values())
    for path, state in wanted.items():
        digest = hashlib.sha256()
        with (folder / path).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress(done, total)
        if digest.hexdigest() != state.sha256:
            raise _damaged(manifest, "damaged_file", [path], "is not the file that was written")


def _damaged(manifest: Manifest, code: str, paths: list[str], said: str) -> Conflict:
    more = f" ({len(paths)} files in all)" if len(paths) > 1 else ""
    return Conflict(
        f"{manifest.name} is damaged: {paths[0]} {said}{more}. Copy it again from where it is whole, or take another "
        f"backup. {OTHERS}",
        code=code,
        files=paths[:20],
    )


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

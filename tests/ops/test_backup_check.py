"""Whatever is wrong with a backup is noticed by the check that names it, before anything is touched.

One real backup is made; each case gets a copy of it that shares the files (hard links) and breaks one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import psycopg
import pyrage  # type: ignore[import-untyped]
import pytest
from tests.conftest import ENCRYPTION_KEY, make_runtime
from tests.make import make_document, make_project, make_tenant
from tests.postgres import Server
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.tenant_secrets import save_tenant_secret
from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.db import create_database
from pharos.infra.errors import Conflict, Invalid, PharosError
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.ops.backup import escrow as escrows
from pharos.ops.backup.check import check_backup
from pharos.ops.backup.commands import check_quickly
from pharos.ops.backup.manifest import FileState, TableState, manifest_bytes, read_manifest
from pharos.ops.backup.restore_plan import prepare
from pharos.ops.backup.restore_uploads import restore_uploads
from pharos.ops.backup.signing import public_key, sign
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.backup.store import describe_folder, find_backup, list_backups, record_verification
from pharos.ops.backup.verification import verify_backup

pytestmark = pytest.mark.xdist_group("backup_check")  # one installation for all of them

SEED = secrets.randbits(32)
"""Decides which bits and places are hit; a failure names it."""
NAME = f"check_{secrets.token_hex(4)}"
API_KEY = "sk-" + secrets.token_hex(20)
SMTP_PASSWORD = "mail-" + secrets.token_hex(12)


@dataclass(frozen=True)
class Made:
    """An installation with two backups; between them a document was added."""

    settings: Settings
    older: Path
    backup: Path
    offline: Path


@pytest.fixture(scope="module")
def made(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    home = tmp_path_factory.mktemp("check")
    identity = pyrage.x25519.Identity.generate()
    (home / "offline").write_text(f"{identity}\n")
    address = database_server.admin_url.rpartition("@")[2].partition("/")[0]
    settings = Settings(
        _env_file=None,
        data_dir=home / "data",
        database_url=f"postgresql://{NAME}_app:of-the-test@{address}/{NAME}",
        database_admin_url=database_server.admin_url,
        secret_key=secrets.token_hex(32),
        encryption_key=ENCRYPTION_KEY,
        smtp_url=f"smtp://me:{SMTP_PASSWORD}@mail:25",
        backup_recipient=str(identity.to_public()),
    )
    urls = initialise_database(settings)
    migrate.upgrade(urls.migrator, owner=urls.owner_role)
    asyncio.run(live_in(settings, b"The first file.", b"Another file..."))
    older = make_backup(settings)
    asyncio.run(live_in(settings, b"A file that came later, and longer."))
    yield Made(settings, older, make_backup(settings), home / "offline")
    database_server.drop(NAME)


async def live_in(settings: Settings, *contents: bytes) -> None:
    """A tenant with a document of each content, and with a secret."""
    assert settings.database_url is not None
    runtime = make_runtime(settings, create_database(settings.database_url, pool_size=2))
    tenant = await make_tenant(runtime.db)
    project = await make_project(runtime.db, tenant.admin)
    for content in contents:
        await make_document(runtime, tenant.admin, project, name=f"{content[:9].decode()}.txt", content=content)
    async with runtime.db.transaction(tenant.id) as session:
        await save_tenant_secret(session, runtime.vault, tenant.admin, kind="github", name="default", value=API_KEY)
    await runtime.db.dispose()


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """The newer backup, to be broken."""
    return copy_backup(made.backup, tmp_path / made.backup.name)


def copy_backup(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, copy_function=os.link))


def put(file: Path, content: bytes) -> None:
    """Replace a file of a copy; the original behind the hard link stays."""
    file.unlink()
    file.write_bytes(content)


def resign(made: Made, folder: Path, content: bytes) -> None:
    """As if it had been made so: a signature of the installation's own key."""
    put(folder / "manifest.json", content)
    put(folder / "manifest.sig", sign(made.settings, content))


def code_of(made: Made, folder: Path, **options: str | Path) -> str:
    """The code of the check that refuses a folder, or `good`; whatever refuses it names the next step."""
    refusal = None
    try:
        check_backup(made.settings, folder, **options)  # type: ignore[arg-type]
    except PharosError as error:
        refusal = error
    if refusal is None:
        return "good"
    assert "`" in refusal.message or "Update Pharos" in refusal.message
    return refusal.code


# ---- what happens to files on disks and on the way ----

Pick = Callable[[Path], Path]
PARTS: dict[str, Pick] = {
    "manifest": lambda folder: folder / "manifest.json",
    "signature": lambda folder: folder / "manifest.sig",
    "escrow": lambda folder: folder / "escrow.age",
    "contents": lambda folder: folder / "database" / "toc.dat",
    "table": lambda folder: max((folder / "database").glob("*.dat.gz"), key=lambda file: file.stat().st_size),
    "empty-table": lambda folder: min((folder / "database").glob("*.dat.gz"), key=lambda file: file.stat().st_size),
    "blob": lambda folder: blobs_of(folder)[0],
}


def blobs_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "blobs").rglob("*") if path.is_file())


def flip(content: bytes, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def zero(content: bytes, rng: random.Random) -> bytes:
    """A block that was never written. Where there were zeros anyway it says nothing, so a last byte is changed too."""
    start = rng.randrange(len(content))
    return content[:start] + bytes(len(content) - start - 1) + bytes([content[-1] ^ 0xFF])


Damage = Callable[[bytes, random.Random], bytes]
SAME_SIZE: dict[str, Damage] = {f"flip-{number}": flip for number in range(6)} | {
    "zeros": zero,
    "random": lambda content, rng: rng.randbytes(len(content)),
}
OTHER_SIZE: dict[str, Damage] = {
    "empty": lambda content, rng: b"",
    "half": lambda content, rng: content[: len(content) // 2],
    "last-byte-lost": lambda content, rng: content[:-1],
    "cut-anywhere": lambda content, rng: content[: rng.randrange(1, len(content))],
    "byte-added": lambda content, rng: content + b"\n",
    "twice": lambda content, rng: content + content,
}
DAMAGES = SAME_SIZE | OTHER_SIZE


def wanted_code(part: str, damage: str) -> str:
    if part in ("manifest", "signature"):
        return "bad_signature"
    return "damaged_file" if damage in SAME_SIZE else "wrong_size"


@pytest.mark.contract("RS-11", part="every damage of every kind of file is noticed by its check; nothing is written")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_noticed_by_the_check_that_names_it(made: Made, copied: Path, part: str, damage: str) -> None:
    file, rng = PARTS[part](copied), random.Random(f"{SEED} {part} {damage}")
    put(file, DAMAGES[damage](file.read_bytes(), rng))
    assert code_of(made, copied) == wanted_code(part, damage), f"seed {SEED}"


LISTED = [part for part in PARTS if part not in ("manifest", "signature")]


@pytest.mark.contract("RS-11", part="a missing file is noticed")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_missing_file_is_noticed(made: Made, copied: Path, tmp_path: Path, part: str, how: str) -> None:
    PARTS[part](copied).rename(copied / "renamed" if how == "renamed" else tmp_path / "aside")
    assert code_of(made, copied) == {"manifest": "no_manifest", "signature": "no_signature"}.get(part, "missing_file")


@pytest.mark.parametrize("part", LISTED)
def test_a_folder_or_a_link_in_a_files_place_is_noticed(made: Made, copied: Path, tmp_path: Path, part: str) -> None:
    file, aside = PARTS[part](copied), tmp_path / "aside"
    file.rename(aside)
    file.symlink_to(aside)
    assert code_of(made, copied) == "foreign_file"
    file.unlink()
    file.mkdir()
    assert code_of(made, copied) == "missing_file"


@pytest.mark.parametrize(
    ("one", "other", "code"),
    [
        ("manifest", "signature", "bad_signature"),
        ("contents", "table", "wrong_size"),
        ("table", "empty-table", "wrong_size"),
        ("escrow", "contents", "wrong_size"),
        ("blob", "escrow", "wrong_size"),
    ],
)
def test_two_files_in_each_others_place_are_noticed(made: Made, copied: Path, one: str, other: str, code: str) -> None:
    swap(PARTS[one](copied), PARTS[other](copied))
    assert code_of(made, copied) == code


def test_two_blobs_of_one_size_in_each_others_place_are_noticed(made: Made, copied: Path) -> None:
    first, second = (file for file in blobs_of(copied) if file.stat().st_size == 15)
    swap(first, second)
    assert code_of(made, copied) == "damaged_file"


def swap(first: Path, second: Path) -> None:
    a, b = first.read_bytes(), second.read_bytes()
    put(first, b)
    put(second, a)


@pytest.mark.parametrize("part", PARTS)
def test_a_file_of_yesterdays_backup_is_noticed(made: Made, copied: Path, part: str) -> None:
    file = PARTS[part](copied)
    counterpart = made.older / file.relative_to(copied)
    if part == "blob":  # blobs never change: another one of yesterday's stands in
        counterpart = next(blob for blob in blobs_of(made.older) if blob.name != file.name)
    content = counterpart.read_bytes()
    is_same = content == file.read_bytes()
    put(file, content)
    expected = {"bad_signature"} if part in ("manifest", "signature") else {"wrong_size", "damaged_file"}
    assert code_of(made, copied) in ({"good"} if is_same else expected)


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "database/9999.dat.gz",
        "database/toc.dat.orig",
        "blobs/core",
        "blobs/.hidden",
        "new/folder/file",
        "manifest.json.bak",
        "escrow.age~",
        ".verified.json",
        "Thumbs.db",
    ],
)
def test_a_foreign_file_is_noticed(made: Made, copied: Path, path: str) -> None:
    file = copied / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    assert code_of(made, copied) == "foreign_file"


# ---- what was signed although something was wrong with it ----


def without_key(field: str) -> Callable[[dict[str, object]], object]:
    return lambda fields: {name: value for name, value in fields.items() if name != field}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda fields: {**fields, "format": 2}, "newer_backup"),
        (lambda fields: {**fields, "schema": "9999"}, "newer_schema"),
        (lambda fields: {**fields, "name": "pharos-20200101-000000"}, "renamed_backup"),
        (lambda fields: {**fields, "keys": [*fields["keys"], "0123456789abcdef"]}, "wrong_escrow"),
        (lambda fields: {**fields, "signed_by": "A" * 43 + "="}, "wrong_escrow"),
        (lambda fields: {**fields, "tables": {**fields["tables"], "x": asdict(TableState(1, "1"))}}, "missing_table"),
        (lambda fields: {**fields, "blobs": {**fields["blobs"], "merkle_root": "00" * 32}}, "wrong_blobs"),
        (lambda fields: {**fields, "blobs": {**fields["blobs"], "count": 99}}, "wrong_blobs"),
        (lambda fields: {**fields, "blobs": {**fields["blobs"], "bytes": 1}}, "wrong_blobs"),
        (lambda fields: {**fields, "files": {}}, "foreign_file"),
        (without_key("tables"), "bad_manifest"),
        (without_key("made_at"), "bad_manifest"),
        (lambda fields: {**fields, "surprise": 1}, "bad_manifest"),
        (lambda fields: [fields], "bad_manifest"),
        (lambda fields: None, "bad_manifest"),
    ],
)
def test_a_signed_manifest_that_says_something_wrong_is_refused(
    made: Made, copied: Path, change: Callable[[dict[str, object]], object], code: str
) -> None:
    fields = json.loads((copied / "manifest.json").read_bytes())
    resign(made, copied, json.dumps(change(fields)).encode())
    assert code_of(made, copied) == code


@pytest.mark.parametrize("change", [{"format": 2}, {"schema": "9999"}, {"name": "pharos-20200101-000000"}])
def test_an_older_pharos_or_another_name_leaves_a_good_backup_good(
    made: Made, copied: Path, change: dict[str, object]
) -> None:
    fields = json.loads((copied / "manifest.json").read_bytes())
    resign(made, copied, json.dumps({**fields, **change}).encode())
    record_verification(made.settings, copied, seconds=1)
    kept = (copied / "verified.json").read_bytes()
    with pytest.raises((Conflict, Invalid)):
        verify_backup(made.settings, copied, tell=lambda step, words: None)
    assert (copied / "verified.json").read_bytes() == kept


def replace_and_resign(made: Made, folder: Path, path: str, content: bytes) -> None:
    """Give a file another content, which the manifest then names."""
    put(folder / path, content)
    manifest = read_manifest(folder)
    files = {**manifest.files, path: FileState(len(content), sha256(content).hexdigest())}
    resign(made, folder, manifest_bytes(replace(manifest, files=files)))


def test_a_blob_whose_content_is_not_its_name_is_noticed_whatever_was_signed(made: Made, copied: Path) -> None:
    path = blobs_of(copied)[0].relative_to(copied).as_posix()
    replace_and_resign(made, copied, path, b"something else")
    assert code_of(made, copied) == "misnamed_blob"


def test_a_blob_that_was_left_out_is_noticed_whatever_was_signed(made: Made, copied: Path) -> None:
    blob, manifest = blobs_of(copied)[0], read_manifest(copied)
    blob.unlink()
    files = {path: state for path, state in manifest.files.items() if not path.endswith(blob.name)}
    resign(made, copied, manifest_bytes(replace(manifest, files=files)))
    assert code_of(made, copied) == "wrong_blobs"


@pytest.mark.parametrize("path", ["escrow.age", "database/toc.dat"])
def test_a_backup_without_dump_or_escrow_is_refused_whatever_was_signed(made: Made, copied: Path, path: str) -> None:
    (copied / path).unlink()
    manifest = read_manifest(copied)
    files = {name: state for name, state in manifest.files.items() if name != path}
    resign(made, copied, manifest_bytes(replace(manifest, files=files)))
    assert code_of(made, copied) == "missing_file"


@pytest.mark.parametrize("damage", [lambda toc: b"PGDMP", lambda toc: toc[: len(toc) // 2], lambda toc: b""])
def test_a_dump_that_pg_restore_cannot_read_is_noticed_whatever_was_signed(
    made: Made, copied: Path, damage: Callable[[bytes], bytes]
) -> None:
    toc = damage((copied / "database" / "toc.dat").read_bytes())
    replace_and_resign(made, copied, "database/toc.dat", toc)
    assert code_of(made, copied) == "unreadable_dump"


def test_an_escrow_that_does_not_fit_is_noticed_whatever_was_signed(made: Made, copied: Path, tmp_path: Path) -> None:
    stranger = pyrage.x25519.Identity.generate().to_public()
    ours = escrows.recipients(made.settings)
    other_key = made.settings.model_copy(update={"encryption_key": None, "encryption_key_file": tmp_path / "key"})
    (tmp_path / "key").write_text(secrets.token_hex(32))
    content = escrows.open_escrow((copied / "escrow.age").read_bytes(), made.offline)
    for sealed, code in (
        (pyrage.encrypt(b"{}", [stranger]), "escrow_not_opened"),
        (pyrage.encrypt(json.dumps({**asdict(content), "format": 2}).encode(), ours), "escrow_format"),
        (pyrage.encrypt(b"[]", ours), "escrow_format"),
        (pyrage.encrypt(b"no json", ours), "escrow_format"),
        (escrows.seal_escrow(other_key), "wrong_escrow"),
    ):
        replace_and_resign(made, copied, "escrow.age", sealed)
        assert code_of(made, copied) == code


# ---- who signed it ----


def test_a_backup_of_another_installation_needs_its_key_named_and_an_identity(
    made: Made, copied: Path, tmp_path: Path
) -> None:
    here = replace(made, settings=Settings(_env_file=None, data_dir=tmp_path / "other"))
    signer = public_key(made.settings)
    assert code_of(here, copied) == "unknown_signer"
    assert code_of(here, copied, signed_by=public_key(here.settings)) == "unknown_signer"
    assert code_of(here, copied, signed_by=signer) == "bad_identity_file"
    assert code_of(here, copied, signed_by=signer, identity=made.offline) == "good"


def test_a_backup_signed_anew_by_somebody_else_is_not_taken_for_ours(made: Made, copied: Path, tmp_path: Path) -> None:
    forger = Settings(_env_file=None, data_dir=tmp_path / "forger")
    content = manifest_bytes(replace(read_manifest(copied), signed_by=public_key(forger)))
    put(copied / "manifest.json", content)
    put(copied / "manifest.sig", sign(forger, content))
    assert code_of(made, copied) == "unknown_signer"
    put(copied / "manifest.sig", sign(forger, b"something else"))
    assert code_of(made, copied) == "bad_signature"


# ---- a good one ----


def test_a_good_backup_passes_and_checking_it_changes_nothing(made: Made, copied: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in copied.rglob("*")}
    seen: list[tuple[int, int]] = []
    manifest = check_backup(made.settings, copied, progress=lambda done, total: seen.append((done, total)))
    assert {path: path.lstat().st_mtime_ns for path in copied.rglob("*")} == before
    assert seen[-1] == (manifest.bytes, manifest.bytes)
    assert (manifest.documents, manifest.blobs.count, len(manifest.keys)) == (3, 3, 1)
    record_verification(made.settings, copied, seconds=1)
    assert code_of(made, copied) == "good", "what a verification leaves is no foreign file"


@pytest.mark.contract("BK-17")
def test_only_its_owner_can_read_a_backup(made: Made) -> None:
    paths = [made.backup, made.settings.backup_root, *made.backup.rglob("*")]
    assert len(paths) > 40
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.contract("BK-18")
@pytest.mark.contract("SE-09", part="nothing of them in the database's dump")
def test_no_secret_lies_in_the_dump_in_clear(made: Made) -> None:
    program = reachable_binaries(os.geteuid(), os.getegid()) / "bin" / "pg_restore"
    done = subprocess.run([program, "--file=-", made.backup / "database"], capture_output=True, check=True)
    with psycopg.connect(connection_urls(made.settings).backup) as connection:
        (ciphertext,) = connection.execute("select encode(ciphertext, 'hex') from secrets").fetchall()[0]
    assert ciphertext.encode() in done.stdout, "the dump holds the secrets, as they lie in the vault"
    clear = [API_KEY, SMTP_PASSWORD, ENCRYPTION_KEY, made.settings.secret_key.get_secret_value()]  # type: ignore[union-attr]
    assert [word for word in clear if word.encode() in done.stdout] == []
    for file in (path for path in made.backup.rglob("*") if path.is_file()):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert [word for word in clear if word.encode() in content] == [], file


# ---- what was found is remembered, and in the way of nothing else ----


@pytest.mark.contract("BK-15", part="damage that a restore finds makes it failed, too")
def test_a_fault_that_a_restore_finds_makes_the_backup_failed(made: Made, copied: Path) -> None:
    put(PARTS["table"](copied), b"rotten")
    with pytest.raises(Conflict) as found:
        prepare(made.settings, copied, identity=None, signed_by=None, tell=lambda step, sentence: None)
    known = describe_folder(copied)
    assert (known.state, known.error_code, known.error) == ("failed", found.value.code, found.value.message)


def test_a_wrong_identity_says_nothing_about_the_backup(made: Made, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    with pytest.raises(PharosError):
        prepare(made.settings, copied, identity=tmp_path / "other", signed_by=None, tell=lambda step, sentence: None)
    assert describe_folder(copied).state == "written"


@pytest.mark.contract("RS-08", part="from a backup of which only the uploads are whole")
def test_uploads_come_back_from_a_backup_whose_dump_is_damaged(made: Made, copied: Path, tmp_path: Path) -> None:
    put(PARTS["table"](copied), b"rotten")
    put(copied / "escrow.age", b"nobody opens it")
    with pytest.raises(Conflict):
        check_quickly(made.settings, copied, identity=None, signed_by=None)
    lost = made.settings.blob_root / PARTS["blob"](copied).relative_to(copied / "blobs")
    content = lost.read_bytes()
    lost.unlink()
    said: list[str] = []
    changes = restore_uploads(made.settings, copied, signed_by=None, tell=lambda step, words: said.append(words))
    assert (len(changes.missing), lost.read_bytes()) == (1, content)
    assert "its database and keys are not read" in said[0]
    assert said[1].startswith(f"{copied.name} has failed (")
    put(PARTS["blob"](copied), content[::-1])
    with pytest.raises(Conflict, match="is not the file that was written"):
        restore_uploads(made.settings, copied, signed_by=None, tell=lambda step, words: None)


# ---- the commands ----


@pytest.fixture
def run(made: Made, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(made.settings.data_dir))
    monkeypatch.setenv("PHAROS_DATABASE_URL", str(made.settings.database_url))
    monkeypatch.setenv("PHAROS_ENCRYPTION_KEY", ENCRYPTION_KEY)
    monkeypatch.setenv("PHAROS_BACKUP_RECIPIENT", str(made.settings.backup_recipient))
    return lambda *words: CliRunner().invoke(app, ["backup", *words], env={"COLUMNS": "250"})


@pytest.mark.contract("BK-15", part="without a restore: exists, non-empty, readable")
def test_verify_quick_says_what_was_checked_and_leaves_the_state(made: Made, run: Callable[..., Result]) -> None:
    result = run("verify", "--quick")
    assert result.exit_code == 0, result.output
    assert made.backup.name in result.output
    assert "It was not restored" in result.output
    assert find_backup(made.settings, "latest").backup.state == "written"


@pytest.mark.contract("BK-15", part="a damaged one is refused with its reason and listed as failed")
def test_a_backup_that_fails_its_check_is_listed_as_failed_and_stops_retention(
    made: Made, run: Callable[..., Result]
) -> None:
    newest = copy_backup(made.backup, made.backup.with_name("pharos-20990101-000000"))
    try:
        made_at = read_manifest(newest).made_at + timedelta(hours=1)
        manifest = replace(read_manifest(newest), name=newest.name, made_at=made_at)
        resign(made, newest, manifest_bytes(manifest))
        put(PARTS["blob"](newest), b"")
        result = run("verify", "latest", "--quick")
        assert isinstance(result.exception, PharosError)
        assert result.exception.code == "wrong_size"
        found = list_backups(made.settings)[0]
        assert (found.name, found.state, found.error_code) == (newest.name, "failed", "wrong_size")
        assert "wrong_size" in run("list").output
        assert "failed (wrong_size)" in run("prune").output
    finally:
        shutil.rmtree(newest)
        with psycopg.connect(connection_urls(made.settings).app) as connection:
            connection.execute("delete from backups where name = 'pharos-20990101-000000'")


@pytest.mark.contract("BK-10", part="file, size and date of a backup that was made")
def test_show_says_what_a_backup_holds_and_what_it_does_not(made: Made, run: Callable[..., Result]) -> None:
    said = run("show", made.backup.name).output
    manifest = read_manifest(made.backup)
    for words in (
        made.backup.name,
        "not inside",
        manifest.signed_by,
        f"{manifest.made_at:%Y-%m-%d}",
        "documents",
        "MB",
    ):
        assert words in said.replace("kB", "MB"), words
    fields = json.loads(run("show", "--json").output)
    assert (fields["state"], fields["documents"], fields["manifest"]["name"]) == ("written", 3, made.backup.name)
    assert API_KEY not in said

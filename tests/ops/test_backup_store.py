"""Which backups are listed, which one is meant, which may go; who signed one and who opens its secrets."""

from __future__ import annotations

import json
import random
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pyrage  # type: ignore[import-untyped]
import pytest
from tests.conftest import ENCRYPTION_KEY
from tests.postgres import Server
from typer.testing import CliRunner

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid, NotFound, PharosError
from pharos.infra.keyring import encryption_secret, read_keys
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import (
    drill_identity_file,
    offline_warning,
    open_escrow,
    seal_escrow,
    write_secrets,
)
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.manifest import MANIFEST, BlobState, FileState, Manifest, TableState, write_manifest
from pharos.ops.backup.retention import REMOVING, Retention, plan_retention, prune
from pharos.ops.backup.signing import is_signed_by, known_keys, public_key, remember_key, sign
from pharos.ops.backup.store import (
    StoredBackup,
    find_backup,
    installation_file,
    list_backups,
    newest_good,
    pulled_file,
    read_verification,
    record_failure,
    record_verification,
)

NOW = datetime(2026, 3, 10, 3, 5, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    """An installation without a database: its folders are all there is."""
    return Settings(_env_file=None, data_dir=tmp_path / "data", secret_key="4f1a" * 16, encryption_key=ENCRYPTION_KEY)


def make_folder(
    settings: Settings,
    made_at: datetime,
    *,
    name: str | None = None,
    is_verified: bool = False,
    installation_id: str = "",
) -> Path:
    """A folder that looks like a backup from outside."""
    folder = settings.backup_root / (name or f"pharos-{made_at:%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, mode=0o700)
    (folder / "escrow.age").write_bytes(b"x" * 1234)
    manifest = Manifest(
        name=folder.name,
        made_at=made_at,
        version="0",
        schema="0003",
        server_version="18.4",
        vector_version="0.8.5",
        collation_version="1",
        database="pharos",
        installation_id=installation_id,
        tables={"documents": TableState(3, "17")},
        tenants={},
        blobs=BlobState(0, 0, ""),
        keys=[],
        files={"escrow.age": FileState(1234, "00")},
        not_inside=[],
        seconds=2.5,
        signed_by="",
    )
    write_manifest(folder, manifest)
    if is_verified:
        record_verification(settings, folder, seconds=1)
    return folder


# ---- which one is meant (C-17) ----

MOMENTS = ("20251223-030000", "20251224-030000", "20251224-153012", "20251225-030000")


@pytest.mark.contract("RS-03", part="date, timestamp, name or path; of several the newest, and it is said")
@pytest.mark.parametrize(
    ("what", "taken", "others"),
    [
        ("latest", "20251225-030000", 0),
        ("2025-12-24", "20251224-153012", 1),
        ("20251224", "20251224-153012", 1),
        ("20251224_030000", "20251224-030000", 0),
        ("20251224-030000", "20251224-030000", 0),
        ("20251224030000", "20251224-030000", 0),
        ("2025-12-24T15:30:12Z", "20251224-153012", 0),
        ("2025-12-24 15:30", "20251224-153012", 0),
        ("2025-12-24T03:00:00+00:00", "20251224-030000", 0),
        ("pharos-20251223-030000", "20251223-030000", 0),
        ("{root}/pharos-20251223-030000", "20251223-030000", 0),
        ("{root}/pharos-20251223-030000/manifest.json", "20251223-030000", 0),
    ],
)
def test_a_backup_is_found_by_what_people_call_it(place: Settings, what: str, taken: str, others: int) -> None:
    for moment in MOMENTS:
        make_folder(place, datetime.strptime(moment, "%Y%m%d-%H%M%S").replace(tzinfo=UTC))
    found = find_backup(place, what.format(root=place.backup_root))
    assert found.backup.name == f"pharos-{taken}"
    assert len(found.others) == others
    assert (found.remark is None) == (others == 0)
    if found.remark:
        assert "pharos-20251224-030000" in found.remark


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ("2025-12-26", NotFound, "no_such_backup"),
        ("2025-13-99", NotFound, "no_such_backup"),
        ("0198c0de-0000-7000-8000-000000000000", NotFound, "no_such_backup"),
        ("yesterday", Invalid, "no_such_backup"),
        ("{root}/nothing", NotFound, "no_such_backup"),
        ("{root}/.writing-pharos-20251224-030000", Conflict, "unfinished_backup"),
    ],
)
def test_words_that_mean_no_backup_are_answered_with_those_there_are(
    place: Settings, what: str, kind: type[PharosError], code: str
) -> None:
    make_folder(place, NOW)
    make_folder(place, NOW, name=".writing-pharos-20251224-030000")
    with pytest.raises(kind) as caught:
        find_backup(place, what.format(root=place.backup_root))
    assert caught.value.code == code
    assert "pharos-20260310-030500" in caught.value.message or "`pharos backup list`" in caught.value.message


def test_without_any_backup_the_next_step_is_to_make_one(place: Settings) -> None:
    with pytest.raises(NotFound, match="`pharos backup now`"):
        find_backup(place, "latest")


def test_what_is_to_be_used_is_not_one_that_failed_while_another_fits(place: Settings) -> None:
    make_folder(place, NOW - timedelta(hours=1))
    bad = make_folder(place, NOW)
    record_verification(place, bad, seconds=1, error=Conflict("damaged", code="damaged_file"))
    assert find_backup(place, "latest").folder == bad
    assert find_backup(place, "latest", usable=True).backup.name == "pharos-20260310-020500"


# ---- states ----


def test_a_verification_counts_for_the_manifest_it_was_made_of_only(place: Settings) -> None:
    good, other = make_folder(place, NOW, is_verified=True), make_folder(place, NOW - timedelta(days=1))
    (other / "verified.json").write_bytes((good / "verified.json").read_bytes())
    assert [one.state for one in list_backups(place)] == ["verified", "written"]
    (good / "verified.json").write_text("{")
    assert read_verification(good) is None


@pytest.mark.contract("BK-09", part="a verified backup that lost something since is no good one")
def test_a_verified_backup_that_lost_a_file_or_part_of_one_is_failed(place: Settings) -> None:
    escrow = make_folder(place, NOW, is_verified=True) / "escrow.age"
    assert [one.state for one in list_backups(place)] == ["verified"]
    escrow.write_bytes(b"x" * 1233)
    (cut,) = list_backups(place)
    assert (cut.state, cut.error_code, cut.is_good) == ("failed", "wrong_size", False)
    escrow.unlink()
    (lost,) = list_backups(place)
    assert (lost.state, lost.error_code, lost.is_good) == ("failed", "missing_file", False)


def test_a_backup_made_while_the_clock_was_wrong_hides_no_later_failure(place: Settings) -> None:
    make_folder(place, datetime.now(UTC) + timedelta(days=300), is_verified=True)
    today = make_folder(place, datetime.now(UTC).replace(microsecond=0) - timedelta(days=8), is_verified=True)
    future, _ = found = list_backups(place)
    assert (future.is_good, future.error_code) == (False, "made_in_the_future")
    assert newest_good(found) is not None
    assert find_backup(place, "latest", usable=True).folder == today
    assert find_backup(place, future.name).folder == future.folder
    assert plan_retention(found, keep_days=7, now=datetime.now(UTC)).remove == ()


def test_a_folder_without_a_readable_manifest_is_listed_as_failed(place: Settings) -> None:
    (make_folder(place, NOW, is_verified=True) / "manifest.json").write_text("{}")
    (place.backup_root / "pharos-20260101-030000").mkdir()
    newest, oldest = list_backups(place)
    assert (newest.state, newest.error_code, newest.is_good) == ("failed", "bad_manifest", False)
    assert (oldest.state, oldest.error_code, oldest.made_at.year) == ("failed", "no_manifest", 2026)


@pytest.mark.contract("BK-10")
def test_the_log_of_backups_names_size_and_date_of_each_and_why_one_failed(
    database_server: Server, place: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = database_server.clone("backup_rows")
    try:
        settings = place.model_copy(update={"database_url": urls.app})
        make_folder(settings, NOW - timedelta(days=1), is_verified=True)
        gone = make_folder(settings, NOW - timedelta(days=9), is_verified=True)
        full = Conflict("The disk is full: 3 GB were needed.", code="storage_full")
        record_failure(settings, "pharos-20260310-030500", full, made_at=NOW, seconds=3)
        with psycopg.connect(urls.app) as connection:
            connection.execute("update backups set offsite_at = now() where name = 'pharos-20260309-030500'")
        newest, copied, removed = list_backups(settings)
        assert (newest.state, newest.folder, newest.error_code) == ("failed", None, "storage_full")
        assert (copied.state, removed.state) == ("offsite", "verified")
        assert find_backup(settings, str(copied.id)).backup == copied
        monkeypatch.setenv("PHAROS_DATABASE_URL", urls.app)
        monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
        assert [item["state"] for item in list_as_json()] == ["failed", "offsite", "verified"]
        prune(settings, list_backups(settings, removed=True), now=NOW)
        assert gone.exists(), "the newest attempt failed: nothing may go"
        for file in gone.iterdir():
            file.unlink()
        gone.rmdir()
        assert len(list_as_json()) == 2
        said = CliRunner().invoke(app, ["backup", "list", "--log"], env={"COLUMNS": "250"}).output
    finally:
        database_server.drop("backup_rows")
    assert "storage_full: The disk is full: 3 GB were needed." in said
    assert all(word in said for word in ("2026-03-09 03:05", "1.2 kB", "removed", "offsite", "Warning"))


def list_as_json() -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["backup", "list", "--json"])
    assert result.exit_code == 0, result.output
    listed: list[dict[str, object]] = json.loads(result.stdout)
    return listed


# ---- retention ----

GOOD_WEEK = [("verified", age) for age in range(8)]


def stored(*backups: tuple[str, float]) -> list[StoredBackup]:
    """Backups by state and age in days. `gone` was verified and its folder is gone, `attempt` failed without one."""
    made = []
    for state, age in backups:
        at = NOW - timedelta(days=age)
        known = {"gone": "verified", "attempt": "failed"}.get(state, state)
        folder = None if state in ("gone", "attempt") else Path(f"/backups/pharos-{at:%Y%m%d-%H%M%S}")
        code = "storage_full" if known == "failed" else None
        made.append(StoredBackup(f"pharos-{at:%Y%m%d-%H%M%S}", at, known, folder, error_code=code))
    return made


@pytest.mark.contract("BK-09")
@pytest.mark.contract("WM-06")
@pytest.mark.parametrize(
    ("backups", "removed", "because"),
    [
        ([], [], "there is no backup"),
        ([("verified", 0)], [], None),
        (GOOD_WEEK, [], None),
        ([*GOOD_WEEK, ("verified", 7.1), ("verified", 8), ("offsite", 30)], [30, 8, 7.1], None),
        ([("offsite", 0), ("offsite", 9)], [9], None),
        ([("verified", 0), ("written", 9), ("failed", 10), ("verified", 11)], [11, 10, 9], None),
        ([("verified", 0), ("written", 6), ("failed", 6), ("attempt", 9)], [], None),
        ([("written", 0), ("verified", 1), ("verified", 9)], [], "was not verified yet"),
        ([("failed", 0), ("verified", 1), ("verified", 9)], [], "failed (storage_full)"),
        ([("attempt", 0), ("verified", 1), ("verified", 9)], [], "failed (storage_full)"),
        ([("attempt", 1), ("verified", 0), ("verified", 9)], [9], None),
        ([("gone", 0), ("verified", 1), ("verified", 9)], [], "is gone from the disk"),
        ([("verified", 0), ("gone", 8), ("verified", 9)], [9], None),
        ([("verified", 1.1), ("verified", 9)], [], "26 hours old"),
        ([("verified", 20), ("verified", 30)], [], "480 hours old"),
        ([("failed", 0), ("failed", 20), ("verified", 30)], [], "failed (storage_full)"),
    ],
)
def test_retention_removes_old_backups_while_the_newest_is_good(
    backups: list[tuple[str, float]], removed: list[float], because: str | None
) -> None:
    plan = plan_retention(stored(*backups), keep_days=7, now=NOW)
    assert [one.made_at for one in plan.remove] == [NOW - timedelta(days=age) for age in removed]
    assert (plan.kept_because is None) == (because is None)
    assert (because or "") in (plan.kept_because or "")


@pytest.mark.contract("BK-09", part="the last good one stays however short they are kept")
def test_the_last_good_backup_stays_when_it_is_older_than_backups_are_kept() -> None:
    plan = plan_retention(stored(("verified", 1.05), ("verified", 2)), keep_days=1, now=NOW)
    assert [one.made_at for one in plan.remove] == [NOW - timedelta(days=2)]


@pytest.mark.contract("BK-09")
def test_no_mixture_of_states_and_ages_loses_the_last_good_backup() -> None:
    rng = random.Random()
    states = ("written", "verified", "offsite", "failed", "gone", "attempt")
    for _ in range(2000):
        mixture = [(rng.choice(states), round(rng.uniform(0, 20), 3)) for _ in range(rng.randint(0, 8))]
        backups = stored(*mixture)
        plan = plan_retention(backups, keep_days=rng.randint(1, 9), now=NOW)
        good = [one for one in backups if one.is_good]
        assert all(one.folder is not None for one in plan.remove), mixture
        assert not good or max(good, key=lambda one: one.made_at) not in plan.remove, mixture
        assert not plan.remove or max(backups, key=lambda one: one.made_at).is_good, mixture


@pytest.mark.contract("WM-06")
def test_a_removed_backup_leaves_the_list_at_once_and_a_killed_removal_is_finished(place: Settings) -> None:
    newest = make_folder(place, NOW, is_verified=True)
    old = make_folder(place, NOW - timedelta(days=8), is_verified=True)
    killed = make_folder(place, NOW - timedelta(days=9), name=f"{REMOVING}pharos-20260301-030500")
    assert [one.folder for one in list_backups(place)] == [newest, old]
    plan = prune(place, list_backups(place, removed=True), now=NOW)
    assert [one.folder for one in plan.remove] == [old]
    assert list(place.backup_root.iterdir()) == [newest]
    assert not killed.exists()


def test_a_backup_that_was_fetched_is_kept_as_long_from_then_on(place: Settings) -> None:
    make_folder(place, NOW, is_verified=True)
    fetched = make_folder(place, NOW - timedelta(days=90), is_verified=True)
    pulled_file(fetched).write_text((NOW - timedelta(days=6)).isoformat())
    assert prune(place, list_backups(place, removed=True), now=NOW).remove == ()
    pulled_file(fetched).write_text((NOW - timedelta(days=7, minutes=1)).isoformat())
    assert [one.folder for one in prune(place, list_backups(place, removed=True), now=NOW).remove] == [fetched]
    assert len(list(place.backup_root.iterdir())) == 1


def test_backups_of_another_installation_are_neither_counted_nor_removed(place: Settings) -> None:
    write_secret(installation_file(place), "ours")
    theirs = [
        make_folder(place, NOW - timedelta(days=days), is_verified=True, installation_id="theirs") for days in (0, 9)
    ]
    old = make_folder(place, NOW - timedelta(days=8), is_verified=True, installation_id="ours")
    assert prune(place, list_backups(place, removed=True), now=NOW).kept_because, "their new one does not replace ours"
    make_folder(place, NOW - timedelta(hours=1), is_verified=True, installation_id="ours")
    assert [one.folder for one in prune(place, list_backups(place, removed=True), now=NOW).remove] == [old]
    assert all(folder.exists() for folder in theirs)


def test_a_backup_of_another_installation_that_was_verified_and_is_gone_is_no_lost_one_of_ours(
    database_server: Server, place: Settings
) -> None:
    write_secret(installation_file(place), "ours")
    urls = database_server.clone("backup_foreign")
    try:
        settings = place.model_copy(update={"database_url": urls.app})
        ours = make_folder(settings, NOW - timedelta(hours=1), is_verified=True, installation_id="ours")
        shutil.rmtree(make_folder(settings, NOW, is_verified=True, installation_id="theirs"))
        known = list_backups(settings, removed=True)
        assert [(one.folder, one.id is not None) for one in known] == [(ours, True)]
        assert prune(settings, known, now=NOW).kept_because is None
    finally:
        database_server.drop("backup_foreign")


def test_a_backup_whose_manifest_cannot_be_read_is_never_removed(place: Settings) -> None:
    """It may be another installation's: of a newer Pharos, or copied here just now, its manifest last."""
    make_folder(place, NOW, is_verified=True)
    half, newer, damaged = (make_folder(place, NOW - timedelta(days=days)) for days in (90, 91, 92))
    (half / MANIFEST).unlink()
    (newer / MANIFEST).write_text('{"format": 2}')
    (damaged / MANIFEST).write_text("{")
    assert prune(place, list_backups(place, removed=True), now=NOW) == Retention(())
    assert all(folder.exists() for folder in (half, newer, damaged))
    make_folder(place, NOW + timedelta(hours=1)).joinpath(MANIFEST).unlink()
    assert "failed (no_manifest)" in (prune(place, list_backups(place), now=NOW).kept_because or "")


def test_damage_is_told_also_where_it_cannot_be_noted(place: Settings) -> None:
    folder = make_folder(place, NOW, is_verified=True)
    folder.with_name(f".verified.json-{folder.name}").mkdir()  # as on a full disk, the verdict cannot be written
    with pytest.raises(Conflict, match="rotten"), remember_faults(place, folder):
        raise Conflict("rotten", code="damaged_file")


def test_a_manifest_with_another_type_inside_is_a_damaged_one(place: Settings) -> None:
    folder = make_folder(place, NOW, is_verified=True)
    found = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**found, "sealed_to": None}))
    assert [(one.state, one.error_code) for one in list_backups(place)] == [("failed", "bad_manifest")]


# ---- who signed it, who opens it ----


def test_any_flipped_bit_of_message_or_signature_is_noticed(place: Settings) -> None:
    message, key = b'{"name": "pharos"}\n', public_key(place)
    signature = sign(place, message)
    assert is_signed_by(key, message, signature)
    for bit in range(8 * len(signature)):
        assert not is_signed_by(key, message, flipped(signature, bit)), bit
    assert not any(is_signed_by(key, flipped(message, bit), signature) for bit in range(8 * len(message)))
    assert stat.S_IMODE((place.data_dir / "secrets" / "backup_signing_key").stat().st_mode) == 0o600


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_keys_of_other_installations_are_known_once_remembered(place: Settings, tmp_path: Path) -> None:
    other = public_key(place.model_copy(update={"data_dir": tmp_path / "other"}))
    assert known_keys(place) == frozenset(), "asking makes no key"
    own = public_key(place)
    for key in (other, other, own):
        remember_key(place, key)
    assert known_keys(place) == {own, other}
    with pytest.raises(Invalid) as caught:
        remember_key(place, "no key")
    assert caught.value.code == "bad_public_key"


@pytest.mark.contract("SE-09")
def test_keys_and_secrets_of_the_environment_come_back_with_the_offline_identity_alone(
    place: Settings, tmp_path: Path
) -> None:
    offline = pyrage.x25519.Identity.generate()
    given = {
        "backup_recipient": str(offline.to_public()),
        "smtp_url": "smtp://me:pass@mail:25",
        "public_url": "https://x",
    }
    settings = Settings(**{**place.model_dump(exclude_defaults=True), **given}, _env_file=None)
    sealed = seal_escrow(settings)
    identity = tmp_path / "identity.txt"
    identity.write_text(f"# created: today\n# public key: {offline.to_public()}\n{offline}\n")
    for file in (identity, drill_identity_file(settings)):
        escrow = open_escrow(sealed, file)
        assert escrow.keys == read_keys(settings)
        assert escrow.signing_secrets["secret_key"] == "4f1a" * 16
        assert escrow.settings["PHAROS_SMTP_URL"] == "smtp://me:pass@mail:25"
        assert escrow.settings["PHAROS_PUBLIC_URL"] == "https://x"
    assert not [word for word in (b"4f1a", b"mail", ENCRYPTION_KEY.encode()) if word in sealed]
    assert "4f1a" not in repr(escrow)
    empty = Settings(_env_file=None, data_dir=tmp_path / "new")
    write_secrets(empty, escrow)
    assert read_keys(empty) == read_keys(settings)
    assert known_keys(empty) == {public_key(settings)}


@pytest.mark.contract("SE-09")
def test_the_escrow_holds_no_password_of_the_database(place: Settings) -> None:
    url = "postgresql://pharos_app:database-password@db/pharos"
    settings = place.model_copy(update={"database_url": url, "database_direct_url": url})
    assert "database-password" not in repr(vars(open_escrow(seal_escrow(settings), drill_identity_file(settings))))


def test_another_identity_or_a_file_without_one_does_not_open_the_escrow(place: Settings, tmp_path: Path) -> None:
    sealed = seal_escrow(place)
    stranger, empty = tmp_path / "stranger", tmp_path / "empty"
    stranger.write_text(str(pyrage.x25519.Identity.generate()))
    empty.write_text("# nothing\n")
    for file, code in ((stranger, "escrow_not_opened"), (empty, "bad_identity_file"), (tmp_path, "bad_identity_file")):
        with pytest.raises((Conflict, Invalid), match="--identity FILE") as caught:
            open_escrow(sealed, file)
        assert caught.value.code == code


def test_without_an_offline_recipient_there_is_a_warning_and_a_wrong_one_is_refused(place: Settings) -> None:
    assert "PHAROS_BACKUP_RECIPIENT" in (offline_warning(place) or "")
    good = str(pyrage.x25519.Identity.generate().to_public())
    assert offline_warning(place.model_copy(update={"backup_recipient": f"{good}, {good}"})) is None
    with pytest.raises(Invalid) as caught:
        seal_escrow(place.model_copy(update={"backup_recipient": good[:-1]}))
    assert caught.value.code == "bad_backup_recipient"


def test_a_backup_that_the_offline_identity_does_not_open_says_so_wherever_it_is_shown(
    place: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(place, NOW, is_verified=True)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(place.data_dir))
    monkeypatch.setenv("PHAROS_BACKUP_RECIPIENT", str(pyrage.x25519.Identity.generate().to_public()))
    monkeypatch.setenv("PHAROS_OFFSITE", f"rsync:{place.data_dir / 'elsewhere'}")
    for command, remark in (("list", "this machine alone opens it"), ("show", "while PHAROS_BACKUP_RECIPIENT was not")):
        said = CliRunner().invoke(app, ["backup", command], env={"COLUMNS": "250"}).output
        assert remark in said
        assert "`pharos backup now`, then `pharos backup verify`, then `pharos backup push`" in " ".join(said.split())
    assert [item["opens_offline"] for item in list_as_json()] == [False]


def test_a_kept_key_is_named_by_its_check_value_only(place: Settings) -> None:
    (key,) = read_keys(place)
    assert key == encryption_secret(key.secret)
    assert key.secret.hex() not in key.id

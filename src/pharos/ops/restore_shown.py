"""What `pharos restore` shows before it changes anything: what there is, what would happen, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pharos.infra.settings import Settings
from pharos.infra.terminal import count_text, echo_json, echo_line, echo_table, size_text, time_text
from pharos.ops.backup.manifest import read_manifest
from pharos.ops.backup.restore_blobs import bytes_missing
from pharos.ops.backup.restore_compare import COMPARED, NamedDocument
from pharos.ops.backup.restore_journal import read_unfinished
from pharos.ops.backup.restore_plan import (
    Live,
    Prepared,
    bytes_to_load,
    free_bytes,
    refuse_no_room,
    server_differences,
)
from pharos.ops.backup.restore_time import estimate_restore
from pharos.ops.backup.rollback_points import BEFORE, FAILED, kept_here
from pharos.ops.backup.store import StoredBackup, list_backups


def moment(at: datetime) -> str:
    """As it is printed, to the minute."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def echo_list(settings: Settings, *, as_json: bool) -> None:
    """Backups, what can be swapped back to, what failed restores left, and one that was broken off."""
    backups = [backup for backup in list_backups(settings) if backup.folder is not None]
    points, failed = kept_here(settings, BEFORE), kept_here(settings, FAILED)
    if as_json:
        listed = [_as_object(backup) for backup in backups]
        echo_json({"backups": listed, "rollback_points": points, "failed": failed})
        return
    echo_table(
        ["backup", "made (UTC)", "state", "documents", "size"],
        [
            [
                backup.name,
                f"{backup.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
                backup.state,
                backup.documents,
                size_text(backup.bytes),
            ]
            for backup in backups
        ],
        empty=f"There is no backup in {settings.backup_root}. Name the folder of a copy by its path.",
    )
    if (left := read_unfinished(settings)) is not None:
        echo_line(left.words)
    if points is None or failed is None:
        echo_line(
            "Rollback points cannot be listed: the database does not answer. `pharos up --detach --only postgres` "
            "starts it where it is the one that comes with Pharos."
        )
        return
    for number, point in enumerate(points):
        which = f" {point.database}" if number else ""
        echo_line(
            f"Rollback point {point.database} ({size_text(point.bytes)}), kept until {moment(point.until)}: what was "
            f"live until {moment(point.since)}. Swap back with `pharos restore --undo{which}`."
        )
    for one in failed:
        echo_line(
            f"Left by a failed restore: {one.database} ({size_text(one.bytes)}), kept until {moment(one.until)}: "
            f"what did not work on {moment(one.since)}, for whoever looks into the cause."
        )
    if points or failed:
        echo_line("Each goes by itself when its time is over, or now with `pharos restore --forget NAME`.")


def echo_price(settings: Settings, folder: Path) -> None:
    """Time and room, by the manifest alone. Raises `StorageFull` where there is no room."""
    manifest = read_manifest(folder)
    needed = bytes_to_load(manifest) + bytes_missing(settings, folder)
    refuse_no_room(settings, needed)
    echo_line(_time(estimate_restore(settings, folder, manifest.bytes)))
    echo_line(f"It needs about {size_text(needed)} on the disk, and {size_text(free_bytes(settings))} are free.")
    echo_line(f"`pharos restore --dry-run {manifest.name}` names the documents that would be lost.")


def echo_plan(settings: Settings, plan: Prepared, *, as_json: bool) -> None:
    """What a restore would do. Never the escrow: it holds keys."""
    seconds = estimate_restore(settings, plan.folder, plan.manifest.bytes)
    if as_json:
        echo_json({**_plan_object(plan), "seconds_expected": seconds})
        return
    manifest = plan.manifest
    echo_line(
        f"{manifest.name}, made {manifest.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC by Pharos {manifest.version}, "
        f"is whole: {len(manifest.files)} files, {size_text(manifest.bytes)}, checked in {plan.seconds_to_check:.1f} s."
    )
    now = plan.live.rows
    names = [name for name in sorted(manifest.tables) if manifest.tables[name].rows or (now and now.get(name))]
    rows = [[name, manifest.tables[name].rows, now.get(name, 0) if now is not None else None] for name in names]
    echo_table(["table", "rows then", "rows now"], rows, empty="It holds no row.")
    _echo_compared(plan.live)
    grown = [f"{more} in {name}" for name, more in sorted(plan.lost_rows.items()) if name not in COMPARED]
    if grown:
        echo_line(f"Rows of other tables that there are more of now than then: {', '.join(grown)}.")
    echo_line(
        f"Uploaded files: {plan.blobs.present} are here, {len(plan.blobs.missing)} would be added, "
        f"{len(plan.blobs.damaged)} damaged ones replaced ({size_text(plan.blobs.bytes)})."
    )
    for sentence in server_differences(manifest, plan.live.server) if plan.live.server is not None else ():
        echo_line(sentence)
    echo_line(f"Migrations that would follow: {', '.join(plan.migrations) or 'none'}.")
    echo_line(_time(seconds))
    echo_line(f"It needs about {size_text(plan.bytes_needed)} on the disk, and there is room. Nothing was changed.")


def _echo_compared(live: Live) -> None:
    found = live.compared
    if found is None:
        echo_line(f"What would be lost cannot be said: nothing is compared. {live.why_not}")
        return
    echo_line(f"Would be lost, because the backup does not have them: {_counts(found.lost)}.")
    _echo_documents(found.documents_lost, found.lost["documents"])
    echo_line(f"Would come back, because they are gone here: {_counts(found.back)}.")
    _echo_documents(found.documents_back, found.back["documents"])


def _counts(by_table: dict[str, int]) -> str:
    return ", ".join(count_text(by_table[table], table.removesuffix("s")) for table in COMPARED)


def _echo_documents(named: Sequence[NamedDocument], count: int) -> None:
    for one in named:
        echo_line(f"  {one.name} (in {one.project})")
    if count > len(named):
        echo_line(f"  and {count - len(named)} more")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "How long it would take is not known: `pharos backup verify` measures it."
    return f"It would take about {time_text(seconds)}, by its size and what the last verification took."


def _plan_object(plan: Prepared) -> dict[str, object]:
    now = plan.live.server
    return {
        "name": plan.manifest.name,
        "made_at": plan.manifest.made_at.isoformat(),
        "version": plan.manifest.version,
        "schema": plan.manifest.schema,
        "rows": {name: state.rows for name, state in plan.manifest.tables.items()},
        "rows_now": plan.live.rows,
        "lost_rows": plan.lost_rows,
        "compared": plan.live.compared and asdict(plan.live.compared),
        "not_compared": plan.live.why_not,
        "blobs": asdict(plan.blobs),
        "migrations": plan.migrations,
        "server": {"then": plan.manifest.server_version, "now": now and now.version},
        "collation": {"then": plan.manifest.collation_version, "now": now and now.collation},
        "keys": plan.keys,
        "bytes_needed": plan.bytes_needed,
        "dry_run": True,
    }


def _as_object(backup: StoredBackup) -> dict[str, object]:
    return {**asdict(backup), "made_at": backup.made_at.isoformat(), "folder": str(backup.folder)}

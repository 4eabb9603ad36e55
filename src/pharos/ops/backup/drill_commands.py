"""`pharos drill`: prove that the newest backup can be restored, and how long that takes."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import Annotated

import typer

from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, count_text, echo_json, echo_line, echo_table, time_text
from pharos.ops.backup.drill import run_drill, run_due_drill
from pharos.ops.backup.drill_log import OVERDUE_DAYS, DrillCheck, DrillReport, days_since_passed, list_drills

app = typer.Typer()


@app.command()
def drill(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let the second Pharos run until Ctrl-C, to look around.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Only show the drills so far.")] = False,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only if PHAROS_DRILL_EVERY_DAYS says so, as the worker does.")
    ] = False,
    by: Annotated[str, typer.Option(help="Who asked for it; this machine's user if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Restore the newest backup beside the live system, start a second Pharos on it, ask it, throw it away.

    Ends with 1 when a check failed; the log lies below the backups in `drills`.
    """
    settings = Settings()
    if show_list:
        _show(settings, as_json=as_json)
        return
    tell = _quiet if as_json else _say
    if if_due:
        due = run_due_drill(settings, by=by, tell=tell)
        if due is None:
            echo_line("No drill is due.")
            return
        report = due
    else:
        report = run_drill(settings, by=by, tell=tell, wait_for_end=_wait if keep else None)
    if as_json:
        echo_json({**report.__dict__, "passed": report.passed})
    else:
        _say_end(settings, report)
    if not report.passed:
        raise typer.Exit(1)


def _show(settings: Settings, *, as_json: bool) -> None:
    drills = list_drills(settings)
    if as_json:
        echo_json(drills)
        return
    rows = [
        [
            f"{one['started_at'].astimezone(UTC):%Y-%m-%d %H:%M}",
            "passed" if one["passed"] else "FAILED",
            one["backup_name"],
            round(one["seconds"], 1),
            one["by"],
        ]
        for one in drills
    ]
    echo_table(["started (UTC)", "result", "backup", "seconds", "by"], rows, empty="There was no drill yet.")
    days = days_since_passed(drills, now=datetime.now(UTC))
    if days is None or days >= OVERDUE_DAYS:
        since = "None has ever passed" if days is None else f"The last that passed is {count_text(days, 'day')} old"
        echo_line(f"{since}: a drill is overdue. Run `pharos drill`.")


def _say(check: DrillCheck) -> None:
    echo_line(f"{check.result}  {check.name}: {check.said}  ({check.seconds:.1f} s)")
    if check.cause:
        echo_line(f"      likely: {check.cause}")
        echo_line(f"      next: {check.next_step}")


def _quiet(check: DrillCheck) -> None:
    """A script reads the result."""


def _say_end(settings: Settings, report: DrillReport) -> None:
    words = "Passed" if report.passed else "FAILED"
    same, tables = report.tables
    took = time_text(report.seconds)
    echo_line(f"{words}: {report.name}, {report.backup_name or 'no backup'}, {same}/{tables} tables, {took}.")
    echo_line(f"Its log lies in {settings.backup_root / 'drills'}.")


def _wait(url: str) -> None:
    """Until somebody has looked enough."""
    echo_line(f"The second Pharos runs at {url}. Ctrl-C ends it and removes it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        return

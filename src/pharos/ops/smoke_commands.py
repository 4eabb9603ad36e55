"""`pharos smoke`: does it work as people reach it?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, count_text, echo_json, echo_line, run_async
from pharos.ops.listen import local_url
from pharos.ops.smoke import OF_AN_ACCOUNT, PAUSE_SECONDS, Check, SmokeReport, run_smoke

app = typer.Typer()


@app.command()
def smoke(
    url: Annotated[str | None, typer.Option(help="The public address; this installation's if left out.")] = None,
    email: Annotated[str | None, typer.Option(help="Who signs in; a magic link is asked for too.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="A file with the password; `-` reads it from a pipe.")] = (
        None
    ),
    pause: Annotated[
        float, typer.Option(min=0.2, max=300, help="Seconds of silence a stream is tried with; 75 finds idle limits.")
    ] = PAUSE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Check health, sign-in, projects and a streamed, cited answer; PASS, FAIL or SKIP each. Ends with 1 on a FAIL."""
    settings = Settings()
    address = url or settings.base_url
    work = run_smoke(
        address,
        email=email,
        password=_read_password(password_file),
        outbox=_outbox(settings, address),
        pause_seconds=pause,
        on_check=None if as_json else _say,
    )
    report = run_async(work)
    if as_json:
        echo_json({"passed": report.passed, "url": report.url, "seconds": report.seconds, "checks": report.checks})
    else:
        _say_end(report, email=email)
    if not report.passed:
        raise typer.Exit(1)


def _say_end(report: SmokeReport, *, email: str | None) -> None:
    skipped = [check.name for check in report.checks if check.result == "SKIP"]
    untried = [name for name in skipped if name in OF_AN_ACCOUNT]
    if "sign-in" in untried:
        give = "--email and --password-file" if email is None else "--password-file"
        echo_line(f"SKIP  without an account: {', '.join(untried)} not tried. Give {give} to try all of it.")
    words = "It works" if report.passed else f"{len(report.failed)} failed"
    checks = count_text(len(report.checks), "check")
    echo_line(f"{words}: {checks}, {len(skipped)} skipped, {report.seconds:.1f} s, {report.url}")


def _say(check: Check) -> None:
    echo_line(f"{check.result}  {check.name}: {check.said}")
    if check.next_step:
        echo_line(f"      next: {check.next_step}")


def _read_password(file: Path | None) -> str | None:
    if file is None:
        return None
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    return text.rstrip("\r\n")


def _outbox(settings: Settings, url: str) -> Path | None:
    """Where this installation's mail lies as files; None when another one is asked or a mail server sends it."""
    here = {urlsplit(own).netloc for own in (settings.base_url, local_url(settings))}
    is_ours = settings.smtp_url is None and urlsplit(url).netloc in here
    return settings.data_dir / "outbox" if is_ours else None

"""`pharos wipe` and `pharos cache`: back to the first day, and signing everybody out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy import text

from pharos.chat.answer_cache import forget_answers
from pharos.identity.principal import operator
from pharos.identity.sessions import count_open_sessions, end_all_sessions
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, run_async
from pharos.ops.backup.restore_plan import Tell
from pharos.ops.secrets_check import every_tenant
from pharos.ops.wipe import Wiped, WipePlan, installation_name, is_production, plan_wipe, refuse_while_busy
from pharos.ops.wipe import wipe as wipe_installation
from pharos.runtime import open_runtime

app = typer.Typer()
cache_app = typer.Typer(help="What is kept only to be faster, and sessions.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@app.command()
def wipe(
    *,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the installation's name.")] = False,
    production: Annotated[bool, typer.Option("--production", help="Also where PHAROS_PUBLIC_URL is set.")] = False,
    skip_backup: Annotated[bool, typer.Option("--skip-backup", help="Make no backup first; audited.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also while documents are being processed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove everything people put in: accounts, projects, documents, conversations. A backup is made first."""
    settings = Settings()
    plan = plan_wipe(settings)
    if dry_run:
        _show(plan, "Would remove", as_json=as_json)
        return
    if is_production(settings) and not production:
        raise Conflict(
            f"People use this installation at {settings.base_url}. If it is the one you mean, say so: --production",
            code="in_production",
        )
    if not force:
        refuse_while_busy(plan)
    if not yes:
        ask_for_name(settings, plan, skip_backup=skip_backup)
    done = run_async(_wipe(settings, skip_backup=skip_backup, force=force, tell=_quiet if as_json else _tell))
    if as_json:
        echo_json({**asdict(done), "is_initialized": False})
    else:
        _say(done)


async def _wipe(settings: Settings, *, skip_backup: bool, force: bool, tell: Tell) -> Wiped:
    async with open_runtime(settings) as runtime:
        return await wipe_installation(runtime, skip_backup=skip_backup, force=force, tell=tell)


def _tell(_step: str, words: str) -> None:
    echo_line(f"{words} …")


def _quiet(_step: str, _words: str) -> None:
    """JSON on stdout stays JSON."""


def ask_for_name(settings: Settings, plan: WipePlan, *, skip_backup: bool) -> None:
    """Raises `Invalid` when what is typed is not the name, or nobody is there to type it."""
    name = installation_name(settings)
    if not sys.stdin.isatty():
        raise Invalid("Nobody is here to ask. Look with --dry-run, then run it with --yes.", code="nobody_to_ask")
    _show(plan, "This removes", as_json=False)
    if skip_backup:
        echo_line("No backup is made: there will be no way back.")
    if typer.prompt(f"Type {name} to go on") != name:
        raise Invalid(f"That is not {name}; nothing was removed.", code="wrong_name")


def _show(plan: WipePlan, verb: str, *, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(plan))
        return
    echo_table(
        ["table", "rows"],
        [[table, number] for table, number in plan.rows.items() if number],
        empty="The tables are empty.",
    )
    mails = f", the texts of {plan.mail_texts} mails" if plan.mail_texts else ""
    echo_line(f"{verb} {sum(plan.rows.values())} rows{mails} and {plan.files} files ({plan.file_bytes:,} bytes).")
    if plan.busy:
        echo_line(f"{plan.busy} documents or jobs are on their way just now: a wipe would refuse.")


def _say(done: Wiped) -> None:
    echo_line(f"Removed {sum(done.rows.values())} rows.")
    echo_line(f"The backup {done.backup} has all of it." if done.backup else "No backup was made.")
    if done.files_aside is not None:
        echo_line(f"{done.files} files lie in {done.files_aside} for a day; then the worker removes them.")
    echo_line(f"The audit log until now is in {done.audit_file}.")
    echo_line("Bootstrap status: false. Nobody can sign in until the first account is made at")
    echo_line(done.setup_link)
    echo_line("The handbook comes back with `pharos restart worker`.")


@cache_app.command("clear")
def clear_cache(
    responses: Annotated[bool, typer.Option("--responses", help="Only the answers that are kept.")] = False,
    sessions: Annotated[bool, typer.Option("--sessions", help="Also sign everybody out, of all tenants.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let answers and sign-ins that are remembered be found anew; nobody is signed out unless --sessions says so."""
    if responses and sessions:
        raise Invalid("--responses leaves sign-ins alone and --sessions ends them: use one of them.", code="one_of_two")
    ended = run_async(_clear_cache(only_responses=responses, sessions=sessions, dry_run=dry_run))
    if as_json:
        echo_json({"sessions_ended": ended, "dry_run": dry_run})
        return
    echo_line("Would forget the answers that are kept." if dry_run else "Answers are made anew.")
    if sessions:
        echo_line(f"{'Would end' if dry_run else 'Ended'} {ended} sessions; everybody signs in again.")
    elif not responses:
        echo_line("Would forget who is remembered as signed in." if dry_run else "Sign-ins are looked up anew.")


async def _clear_cache(*, only_responses: bool, sessions: bool, dry_run: bool) -> int:
    ended = 0
    async with open_runtime(Settings()) as runtime:
        for tenant_id, _ in await every_tenant(runtime) if sessions else []:
            async with runtime.db.transaction(tenant_id) as session:
                if dry_run:
                    ended += await count_open_sessions(session)
                else:
                    ended += await end_all_sessions(session, operator(tenant_id))
        if not dry_run:
            async with system_transaction(runtime.db) as session:
                await forget_answers(session)
                if not only_responses:
                    await session.execute(text("select pg_notify('pharos_sign_ins', 'all')"))
            await runtime.cache.clear()
    return ended

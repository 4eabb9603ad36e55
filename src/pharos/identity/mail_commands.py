"""`pharos mail` and `pharos user invite`: what was mailed, what waits and why, and inviting somebody."""

from __future__ import annotations

from typing import Annotated, cast, get_args
from uuid import UUID

import typer

from pharos.identity.commands import user_app
from pharos.identity.invitations import Invited, invite
from pharos.identity.principal import PlatformRole
from pharos.identity.tenants import as_operator
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.mail import State, find_text, get_mail, list_mails, retry_mail
from pharos.infra.models import Mail
from pharos.infra.settings import Settings
from pharos.infra.smtp import NO_SERVER, MailTransport, lies_in_outbox, read_outbox
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, id_shown_by, run_async

IN_OUTBOX = "outbox"
"""How a mail is shown that lies as a file since no server was set: "sent" would say that somebody got it."""
WRITTEN = (
    "No mail server was set when this mail was sent: it lies in the file outbox, and `pharos mail show ID` prints it. "
    "To send one, set PHAROS_SMTP_URL and let its cause make a new one."
)

app = typer.Typer()
mail_app = typer.Typer(help="Mail on its way.", no_args_is_help=True)
app.add_typer(mail_app, name="mail")

MailId = Annotated[
    UUID, typer.Argument(parser=id_shown_by("pharos mail list"), metavar="ID", help="Id of the mail, whole.")
]


@mail_app.command("list")
def list_all(
    state: Annotated[str, typer.Option(help="Only queued, sent (by a server or into the outbox) or failed.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest.")] = 50,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Mails of a tenant, newest first: where to, how far, and why not further."""
    if state and state not in get_args(State):
        raise Invalid(f"A mail is {', '.join(get_args(State))}; “{state}” is none of these.", code="bad_state")

    async def work() -> list[dict[str, object]]:
        wanted = cast(State, state) if state else None
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            mails = await list_mails(session, tenant_id=me.tenant_id, state=wanted, limit=limit)
        return [_facts(runtime.settings, mail) for mail in mails]

    mails = run_async(work())
    if as_json:
        echo_json(mails)
        return
    columns = ("id", "recipient", "subject", "state", "attempts", "reason")
    rows = [[mail[column] for column in columns] for mail in mails]
    echo_table(["id", "to", "subject", "state", "tries", "reason"], rows, empty="There is no such mail.")
    if any(mail["state"] == IN_OUTBOX for mail in mails):
        echo_line("What is in the outbox went to no mail server: `pharos mail show ID` prints it.")


@mail_app.command()
def show(mail_id: MailId, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """One mail with its text, as long as it waits or lies in the file outbox; what an SMTP server took is gone."""

    async def work() -> tuple[dict[str, object], str]:
        async with as_operator(tenant) as (runtime, principal):
            async with runtime.db.transaction(principal.tenant_id) as session:
                mail = await get_mail(session, tenant_id=principal.tenant_id, mail_id=mail_id)
                text = await find_text(session, runtime.vault, tenant_id=principal.tenant_id, mail_id=mail_id)
            text = read_outbox(runtime.settings, mail_id) if text is None else text
            return _facts(runtime.settings, mail), text

    facts, text = run_async(work())
    if as_json:
        echo_json({**facts, "text": text})
        return
    for name, value in facts.items():
        if value is not None:
            echo_line(f"{name}: {value}")
    echo_line(f"\n{text}")


@mail_app.command()
def retry(mail_id: MailId, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Send a failed or waiting mail now."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            if lies_in_outbox(runtime.settings, mail_id):
                raise Conflict(WRITTEN, code="mail_sent")
            await retry_mail(session, tenant_id=me.tenant_id, mail_id=mail_id)

    run_async(work())
    if as_json:
        echo_json({"id": mail_id, "state": "queued"})
    else:
        echo_line("It is sent now; `pharos mail list` shows how that went.")


@mail_app.command()
def check(as_json: AsJson = False) -> None:
    """Ask the mail server, with the settings as they are, whether it takes our mail; sends none."""
    words = run_async(MailTransport(Settings()).probe())
    if as_json:
        echo_json({"ok": True, "message": words})
    else:
        echo_line(words)


@user_app.command("invite")
def invite_somebody(
    email: Annotated[str, typer.Argument(help="Where to send the invitation.", show_default=False)],
    name: Annotated[str, typer.Option(help="What they are called; they can choose another name.")] = "",
    role: Annotated[str, typer.Option(help="none, engineer or admin.")] = "none",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Invite somebody by mail; they choose their password themselves, within seven days."""
    if role not in get_args(PlatformRole):
        raise Invalid("A role is none, engineer or admin.", code="bad_role")

    async def work() -> tuple[UUID, bool]:
        async with as_operator(tenant) as (runtime, principal):
            invited = Invited(email=email, name=name, platform_role=cast(PlatformRole, role))
            return await invite(runtime, principal, invited), runtime.settings.smtp_url is not None

    invitation_id, has_server = run_async(work())
    if as_json:
        echo_json({"id": invitation_id, "email": email})
    else:
        echo_line(f"{email} is invited; the mail is on its way." if has_server else f"{email} is invited. {NO_SERVER}")


def _facts(settings: Settings, mail: Mail) -> dict[str, object]:
    names = ("id", "recipient", "subject", "state", "attempts", "reason", "created_at", "sent_at")
    facts = {name: getattr(mail, name) for name in names}
    return facts | ({"state": IN_OUTBOX} if lies_in_outbox(settings, mail.id) else {})

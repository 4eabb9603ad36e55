"""`pharos ratelimit`: give somebody their requests back."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from pharos.infra.limits import ip_subject
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, echo_json, echo_line, run_async
from pharos.runtime import open_runtime

app = typer.Typer()
ratelimit_app = typer.Typer(help="How often somebody may ask.", no_args_is_help=True)
app.add_typer(ratelimit_app, name="ratelimit")


@ratelimit_app.callback()
def ratelimit() -> None:
    """Makes `reset` a word of its own although it is the only command."""


@ratelimit_app.command()
def reset(
    subject: Annotated[
        str | None, typer.Option(help="A network address, an e-mail address or `user:ID`; everybody if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Forget what was counted, so that whoever waits can go on at once."""
    subjects = _subjects(subject) if subject is not None else ()

    async def work() -> int:
        async with open_runtime(Settings()) as runtime:
            return await runtime.limits.reset(*subjects)

    ended = run_async(work())
    if as_json:
        echo_json({"subject": subject, "windows_ended": ended})
    else:
        echo_line(f"Forgotten: {ended} counts of {subject or 'everybody'}.")


def _subjects(text: str) -> tuple[str, ...]:
    """The subjects that doors count for what a person types: see where they call `limits.hit`."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return (f"email:{text.strip().lower()}",) if "@" in text else (text,)
    return (ip_subject(text),)

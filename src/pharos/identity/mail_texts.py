"""The words of our mails: plain text, so that every reader shows the same and a link is what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOT_YOU = "If you did not ask for this, do nothing: without the link nothing happens."


@dataclass(frozen=True)
class Letter:
    subject: str
    text: str


def magic_link(link: str) -> Letter:
    """Works for 15 minutes."""
    return Letter(
        "Your sign-in link for Pharos",
        f"Open this link and confirm to sign in:\n\n{link}\n\nIt works once, within 15 minutes.\n\n{NOT_YOU}\n",
    )


def password_reset(link: str) -> Letter:
    """Works for an hour."""
    return Letter(
        "A new password for Pharos",
        f"Choose a new password here:\n\n{link}\n\nThe link works once, within an hour. The new password ends every "
        f"sign-in of yours.\n\n{NOT_YOU}\n",
    )


def password_changed(base_url: str, *, key_names: Sequence[str]) -> Letter:
    """Told afterwards, so that a stolen mailbox is noticed; the person's API keys open the account still."""
    names = ", ".join(key_names)
    keys = f"API keys of yours open it still: {names}. Revoke what you do not need at {base_url}/account.\n\n"
    return Letter(
        "Your password was changed",
        f"The password of your account at {base_url} was changed, and every sign-in was ended.\n\n"
        f"{keys if key_names else ''}If that was not you, somebody can read your mail: tell the person who runs this "
        "installation.\n",
    )


def invitation(link: str, *, tenant: str, inviter: str) -> Letter:
    """Works for seven days."""
    return Letter(
        f"You are invited to {tenant} in Pharos",
        f"{inviter} invites you to {tenant}, a knowledge base in Pharos.\n\nAccept here:\n\n{link}\n\nThe link works "
        "once, within seven days. If you do not know what this is about, do nothing.\n",
    )


def email_change(link: str) -> Letter:
    """Goes to the new address; works for an hour."""
    return Letter(
        "Confirm your new e-mail address",
        f"Confirm that this is your address from now on:\n\n{link}\n\nThe link works once, within an hour. Until then "
        f"your old address stays.\n\n{NOT_YOU}\n",
    )


def email_changed(new_email: str, base_url: str) -> Letter:
    """Goes to the old address."""
    return Letter(
        "Your e-mail address was changed",
        f"Your account at {base_url} now belongs to {new_email}; this address opens it no longer, and your other "
        "sign-ins were ended.\n\nIf that was not you, tell the person who runs this installation at once.\n",
    )

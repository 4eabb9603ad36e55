"""How long a restore takes (RS-10): as long as the last one like it, with the part that grows scaled by size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pharos.infra.settings import Settings
from pharos.ops.backup.store import list_backups, newest_good, read_verification

How = Literal["drill", "verification"]
FIXED_SECONDS: dict[How, float] = {"verification": 5.0, "drill": 8.0}
"""What starting servers takes, however little there is; measured with a document or three on two cores that had other
work, too: 3 to 9 s, with the drill's second Pharos 7 s and more."""
TELLING_BYTES = 10_000_000
"""A smaller backup is restored before its size tells in the time: larger ones are not estimated by it."""


@dataclass(frozen=True)
class Measured:
    """A restore of `bytes` of backup that took `seconds`."""

    how: How
    seconds: float
    bytes: int


def estimate_seconds(measured: Measured, size_bytes: int) -> float | None:
    """Seconds for a backup of this size; None where what was measured was too small to tell.

    >>> estimate_seconds(Measured("verification", 25.0, 100_000_000), 300_000_000)
    65.0
    """
    if size_bytes > measured.bytes and measured.bytes < TELLING_BYTES:
        return None
    fixed = min(measured.seconds, FIXED_SECONDS[measured.how])
    return round(fixed + (measured.seconds - fixed) * size_bytes / max(measured.bytes, 1), 3)


def estimate_restore(settings: Settings, folder: Path, size_bytes: int) -> float | None:
    """Seconds for the backup in `folder`: by its own verification, else by that of the newest good one; None without
    either."""
    own = read_verification(folder)
    if own is not None and own.passed:
        return estimate_seconds(Measured("verification", own.seconds, size_bytes), size_bytes)
    good = newest_good(list_backups(settings))
    found = read_verification(good.folder) if good is not None and good.folder is not None else None
    if good is None or found is None:
        return None
    return estimate_seconds(Measured("verification", found.seconds, good.bytes), size_bytes)

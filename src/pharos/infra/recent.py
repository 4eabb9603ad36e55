"""What was found lately, remembered only while somebody tells us of changes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, each in a group, for at most `seconds`; at most `most` of them, the oldest go first.

    It starts deaf and remembers nothing: `listen` opens it once changes are announced to this process, `forget_all`
    with `deaf=True` closes it when they no longer are.
    """

    def __init__(self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._values: dict[Key, tuple[float, Hashable, Value]] = {}
        self._groups: defaultdict[Hashable, set[Key]] = defaultdict(set)
        self.is_listening = False
        self.changes = 0
        """How many changes were heard of. Read it before asking the source and give it to `keep`."""

    def listen(self) -> None:
        """Changes are announced from now on."""
        self.forget_all()
        self.is_listening = True

    def forget_all(self, *, deaf: bool = False) -> None:
        """Forget everything; `deaf`: and keep nothing until `listen`."""
        self.is_listening = self.is_listening and not deaf
        self.changes += 1
        self._values.clear()
        self._groups.clear()

    def find(self, key: Key) -> Value | None:
        """The value, if it is fresh."""
        kept = self._values.get(key)
        return kept[2] if kept is not None and self._clock() - kept[0] < self._seconds else None

    def keep(self, key: Key, value: Value, *, group: Hashable, changes: int) -> None:
        """Remember it, unless something changed since `changes` was read: the value may be from before that."""
        if not self.is_listening or changes != self.changes:
            return
        self._remove(key)
        if len(self._values) >= self._most:
            self._remove(next(iter(self._values)))
        self._values[key] = (self._clock(), group, value)
        self._groups[group].add(key)

    def forget(self, key: Key) -> None:
        """Forget one value."""
        self.changes += 1
        self._remove(key)

    def forget_group(self, group: Hashable) -> None:
        """Forget every value of a group."""
        self.changes += 1
        for key in list(self._groups.get(group, ())):
            self._remove(key)

    def _remove(self, key: Key) -> None:
        kept = self._values.pop(key, None)
        if kept is not None:
            keys = self._groups[kept[1]]
            keys.discard(key)
            if not keys:
                del self._groups[kept[1]]
